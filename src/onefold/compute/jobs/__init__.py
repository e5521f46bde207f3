"""The jobs fold: runs, tasks and tables as a state machine over the log. Pure: no clock, no randomness, no
I/O.

May import ``plan``, and ``fold`` and what is below it.
"""
