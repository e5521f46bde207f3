"""The nodes of a space as seen by one of them: membership, placement, divergence, versions.

``placement``, ``witness`` and ``observer`` are pure: they decide from data alone. May import ``node.telemetry``,
``node.hosting`` and what is below ``node``.
"""
