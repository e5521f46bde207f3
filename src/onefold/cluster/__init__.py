"""The servers of a cluster on this machine: configuration, certificates, credentials, processes, setup and restoring.

What a cluster's administrator does, without nodes. May import ``database`` and everything below it, not ``node``.
"""
