"""Who the nodes of a space are, and what they report: a fold of shard 0's log, readable by every client of the space.

May import the rest of ``fold``, ``codec`` and the ground.
"""
