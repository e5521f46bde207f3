"""The state fold: how operations change maps, queues, locks, streams and transactions, in log order.

Pure: no clock, randomness, sockets or files. May import ``state.encoding``, ``fold.api`` and the ground. A kind of collection
has a folder here and one line in ``kinds``, the only module that knows all of them.
"""
