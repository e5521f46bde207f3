"""Transactions: what one reads and writes before it commits, in one shard or over several, and one moment of the whole space.

May import ``state.core``, ``state.fold`` and ``state.encoding``; handles of collections only where a transaction gives them out.
"""
