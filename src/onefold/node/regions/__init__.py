"""What a node does for its region: it pulls what other regions did, and brings decisions on regions into the region's logs.

May import what hosts replicas (``node.hosting``, ``node.maintenance``), ``node.members``, ``node.telemetry`` and what is below
``node``.
"""
