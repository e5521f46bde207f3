"""Handles of locks: acquiring and releasing them, and giving up what an interrupted holder left.

May import ``state.core``, ``state.fold``, ``state.encoding`` and the packages below ``state``.
"""
