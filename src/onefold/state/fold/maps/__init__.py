"""Maps in the state fold: operations, and how they apply.

Pure, as all of ``state.fold``.
"""
