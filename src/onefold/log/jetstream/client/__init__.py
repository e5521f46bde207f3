"""This process's connection to a NATS cluster: address, wire, event loop, and the link that reconnects until it is closed.

Knows messages and answers, not logs. May import ``log.jetstream.names``, ``machine`` and the ground; the engine imports it.
"""
