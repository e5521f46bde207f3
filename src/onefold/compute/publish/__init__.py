"""Publishing rows as a folder of Parquet files that is replaced in one step, and the log of what was published there.

May import ``compute.plan``, ``compute.sources`` and ``compute.frames``.
"""
