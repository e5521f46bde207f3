"""The state fold: how operations change maps, queues, locks, streams and transactions, in log order.

Pure: no clock, randomness, sockets or files. May import ``state.encoding``, ``fold.api`` and the ground. A kind of collection
that needs more than one module has a folder here.
"""
