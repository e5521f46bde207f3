"""The nodes of a space as seen by one of them: membership, placement, what others say of states.

``placement``, ``witness`` and ``observer`` are pure: they decide from data alone. May import what is below
``node``, and nothing of the node itself.
"""
