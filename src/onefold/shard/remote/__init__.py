"""A shard read through nodes: the protocol, the client's side (``shard``, ``view``, ``asking``) and the node's side (``server``).

May import ``shard``, ``store`` and ``log.jetstream``.
"""
