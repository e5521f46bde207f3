"""Shared state: maps, transactions, queues, locks and streams, as one fold; and their handles.

From the bottom up: ``encoding``, ``fold``, ``core``, ``transactions`` (the parts of one), a package of handles for each kind of
collection, ``transaction`` (which gives handles out), ``kinds`` (their list), ``catalog`` and ``past``, ``export``. Handles of
``live`` jobs are in ``compute``. May import ``display`` and everything below it, not ``compute``.
"""
