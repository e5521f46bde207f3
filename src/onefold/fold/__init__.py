"""What a fold is: a deterministic state machine over a log, its versions, and who may append what; and the fold of nodes.

Pure: no clock, randomness, sockets or files. May import the ground only. Where a fold's state is kept is ``store``.
"""
