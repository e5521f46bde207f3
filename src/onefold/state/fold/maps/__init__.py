"""Maps in the state fold: operations, and how they apply.

Pure, as all of ``state.fold``.

May import what kinds of collections stand on: ``kind``, ``lock_table``, ``rows``, ``outcomes``; no other kind.
"""
