"""The jobs fold: runs, tasks and tables as a state machine over the log. Pure: no clock, no randomness, no
I/O.

May import ``plan``, and ``fold`` and what is below it.
"""

from typing import Final

GARBAGE: Final = "jobs/garbage"
"""The table of blobs that nothing names any more: looked at before what else there is of the jobs fold is imported."""
