"""Nodes: the processes that host replicas, work on jobs and answer for clients without a replica."""
