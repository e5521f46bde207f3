"""Transactions over several shards in the state fold of each of them: operations, the locks of prepared ones, how they apply.

Pure, as all of ``state.fold``.

May import the rest of the state fold but ``machine``.
"""
