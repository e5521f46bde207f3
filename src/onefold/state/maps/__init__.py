"""Handles of maps: reading, scanning, writing, caching and watching them, by themselves or in a transaction.

May import ``state.core``, ``state.fold``, ``state.encoding``, ``state.transactions`` and the
packages below ``state``.
"""
