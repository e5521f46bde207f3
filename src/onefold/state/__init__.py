"""Shared state: maps, transactions, queues, locks and streams, as one fold; and their handles.

From the bottom up: ``encoding``, ``fold``, ``core``, ``transactions`` (the parts of one), a package of handles for each kind of
collection, ``transaction`` (which gives handles out), ``catalog`` and ``past``, ``export``. May import ``display`` and everything
below it, not ``compute``.
"""
