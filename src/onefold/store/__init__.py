"""The state of a fold in SQLite: tables with their history, views, snapshots, exactly-once application of records.

A ``Replica`` applies a log to a store, and does not know where the log is. May import ``fold``, ``log``, ``machine`` and the
ground.
"""
