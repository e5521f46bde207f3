"""Publishing a run's result: from the finished tasks to a folder of Parquet.

What is in a folder is told by the folder itself (``onefold.compute.publish`` keeps a manifest in it), not by the log, so a
folder that somebody removed is made again, and ``append`` adds exactly what the folder does not have yet, whoever died
when.
"""

from __future__ import annotations
