"""The foundation of all collections: the client of the state fold, consistency, tokens, leases, deadlines, recovery.

May import ``state.fold``, ``state.encoding`` and everything below ``state``; no collection.
"""
