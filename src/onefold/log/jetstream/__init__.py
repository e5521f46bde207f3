"""The JetStream engine: a log on a NATS cluster.

May import ``log.api`` and what is below ``log``.
"""
