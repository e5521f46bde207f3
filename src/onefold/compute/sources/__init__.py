"""Reading real files in splits: what a source names, how it is cut, and the rows of its pieces.

| module | responsibility |
|---|---|
| ``spec`` | checks the arguments of a source and freezes them |
| ``listing``, ``remote``, ``etags`` | paths, globs, directories and URLs become files; whether one is still the same |
| ``resolving`` | the schema at submission, and the units that files are cut into |
| ``content``, ``compression``, ``charsets`` | the bytes of a unit: opened, checked, decompressed |
| ``partition_values`` | values of partition columns as names of folders, and back |
| ``formats`` | one kind of file each |
| ``ranges`` | ranges of streams, in place of files |
| ``reading``, ``places``, ``error_places`` | rows of units; where rows and errors are in their files |

May import ``compute.plan``, ``compute.frames``, ``compute.foreign`` and the packages below ``compute``.
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
