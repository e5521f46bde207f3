"""Backups of a space: its files as of one moment, and restoring them into an embedded space.

Restoring into a cluster needs its servers: that is ``cluster.restore_cluster``. May import ``space`` and everything below it;
knows no collections and no jobs.
"""
