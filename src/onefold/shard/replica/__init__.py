"""A replica of a shard over a log: a file shared by all processes of a machine, and the copies that replace damaged ones.

May import ``shard``, ``store``, ``log`` and ``machine``.
"""
