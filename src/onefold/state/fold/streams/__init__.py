"""Streams and their consumers in the state fold: operations, rows, and how they apply.

Pure, as all of ``state.fold``.

May import what kinds of collections stand on: ``kind``, ``lock_table``, ``outcomes``; no other kind.
"""
