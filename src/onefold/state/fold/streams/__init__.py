"""Streams and their consumers in the state fold: operations, rows, and how they apply.

Pure, as all of ``state.fold``.
"""
