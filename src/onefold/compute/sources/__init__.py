"""Reading real files in splits: what a source names, how it is cut, and the rows of its pieces.

| file | responsibility |
|---|---|
| ``spec`` | checks the arguments of a source and freezes them |
| ``listing``, ``remote`` | paths, globs, directories and URLs become files |
| ``resolving`` | the schema at submission, and the units that files are cut into |
| ``content``, ``records`` | bytes of a unit, decompressed, in pieces of whole records |
| ``text``, ``delimited``, ``jsonl``, ``parquet``, ``raw`` | one kind of file each |
| ``reading``, ``explain`` | rows of units; and from an error to file and line |
"""

from __future__ import annotations

from onefold.compute.sources.listing import FileInfo
from onefold.compute.sources.places import Places
from onefold.compute.sources.reading import batches, locate, scan, with_file
from onefold.compute.sources.resolving import Resolved, resolve, units_of
from onefold.compute.sources.spec import make_source, source_kinds

__all__ = [
    "FileInfo",
    "Places",
    "Resolved",
    "batches",
    "locate",
    "make_source",
    "resolve",
    "scan",
    "source_kinds",
    "units_of",
    "with_file",
]
