"""Locks in the state fold: operations, and how they apply.

Pure, as all of ``state.fold``.

May import what kinds of collections stand on: ``kind``, ``outcomes``; no other kind.
"""
