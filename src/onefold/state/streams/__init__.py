"""Handles of streams: appending, reading, typed batches, consumers and their groups, by themselves or in a transaction.

May import ``state.core``, ``state.fold``, ``state.encoding``, ``state.transactions`` and the
packages below ``state``.
"""
