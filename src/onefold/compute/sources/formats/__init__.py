"""One module for each kind of file, and the parts of their formats: quotes in CSV, footers of Parquet, whole records in bytes.

Each says how a file is cut into units and read as rows. May import ``compute.plan``, and from ``compute.sources`` what opens
files (``content``, ``listing``). ``resolving`` and ``reading`` import it.
"""
