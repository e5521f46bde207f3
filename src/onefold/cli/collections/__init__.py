"""The commands about maps and streams.

May import ``cli.endings``, ``keys``, ``options`` and ``output``, and all below ``cli``.
"""
