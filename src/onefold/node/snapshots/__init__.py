"""Snapshots that a node makes, stores, archives and serves, and trimming the log up to them.

May import ``node.telemetry``, ``shard``, ``store`` and the packages below them.
"""
