"""Nodes: the processes that host replicas, work on jobs and answer for clients without a replica.

May import ``cluster`` and everything below it. Only the command line and tests import it.
"""
