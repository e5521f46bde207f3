"""Shared state: maps, transactions, queues, locks and streams, as one fold; and their handles."""
