"""Queues in the state fold: operations, rows, and how they apply.

Pure, as all of ``state.fold``.

May import what kinds of collections stand on: ``kind``, ``rows``, ``outcomes``; no other kind.
"""
