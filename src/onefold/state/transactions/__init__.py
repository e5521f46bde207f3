"""Transactions: what one reads and writes before it commits, in one shard or over several, and one moment of the whole space.

The parts under ``state.transaction``, which users hold. May import ``state.core``, ``state.fold``, ``state.encoding`` and the
packages below ``state``; no handles of collections, which stand above it.
"""
