"""Handles of queues: putting, taking and settling messages, by themselves or in a transaction.

May import ``state.core``, ``state.fold``, ``state.encoding``, ``state.transactions`` and the
packages below ``state``.
"""
