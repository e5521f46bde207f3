"""Snapshots that a node makes, stores, archives and serves, and trimming the log up to them.

May import ``node.telemetry``, what hosts replicas (``node.hosting``, ``node.maintenance``), the blobs of ``compute``, ``shard``,
``store`` and the packages below them.
"""
