"""Shared state: maps, transactions, queues, locks and streams, as one fold; and their handles.

From the bottom up: ``encoding``, ``fold``, ``core``, ``transactions`` together with a package of handles for each kind of
collection, ``export``. May import ``display`` and everything below it, not ``compute``.
"""
