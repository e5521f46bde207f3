"""The job of ``onefold demo``: what the Python on this machine is made of.

Every file is parsed and the kinds of its syntax nodes are counted, once by a job and once by a plain loop
that shares nothing with it but the function. The two must agree to the last digit.
"""

from __future__ import annotations

import ast
import os
import random
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.dataset import PreparedJob
    from onefold.db import Database

TABLE: Final = "python_syntax"
UNPARSED: Final = "(does not parse)"
SEED: Final = 7
_GLOB_CHARACTERS: Final = frozenset("*?[]{}")


@dataclass(frozen=True)
class Sample:
    """The files that were taken, and how many there were to take from. Sizes in bytes."""

    paths: tuple[str, ...]
    size: int
    files_found: int
    size_found: int

    @property
    def whole(self) -> bool:
        """Whether all files were taken."""
        return len(self.paths) == self.files_found


def default_roots() -> list[Path]:
    """The standard library and the installed packages of this Python."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return [Path(path) for path in dict.fromkeys(sysconfig.get_path(name) for name in names)]


def sample(roots: Sequence[Path], size_max: int) -> Sample:
    """Python files below the roots, in a seeded random order, until they have ``size_max`` bytes together."""
    files = dict(_python_files(roots))
    order = sorted(files)
    random.Random(SEED).shuffle(order)
    taken: list[str] = []
    size = 0
    for path in order:
        if size + files[path] <= size_max:
            taken.append(path)
            size += files[path]
    return Sample(tuple(sorted(taken)), size, len(files), sum(files.values()))


def _python_files(roots: Sequence[Path]) -> Iterator[tuple[str, int]]:
    seen = {root.resolve() for root in roots}
    for root in roots:
        if root.is_file():
            yield str(root.absolute()), root.stat().st_size
        for folder, folders, names in os.walk(root):
            # A root inside another is walked once, and a packages folder inside the standard library only as
            # a root.
            folders[:] = [
                name
                for name in folders
                if name not in ("site-packages", "dist-packages") and Path(folder, name).resolve() not in seen
            ]
            for name in names:
                path = Path(folder, name).absolute()
                if name.endswith(".py") and path.is_file() and not _GLOB_CHARACTERS.intersection(str(path)):
                    yield str(path), path.stat().st_size


def constructs(file: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The syntax constructs of one file, each with how often it is used there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file["data"])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Broken on purpose (test data) or of another Python: a finding, not a failure.
        yield {"construct": UNPARSED, "uses": 1}
        return
    for name, uses in Counter(type(node).__name__ for node in ast.walk(tree)).items():
        yield {"construct": name, "uses": uses}


def job(db: Database, files: Sample, *, version: str) -> PreparedJob:
    """The job: per construct its uses ``n``, the number of ``files`` with it, and the mean uses in such a
    file."""
    import polars as pl

    from onefold import agg

    return (
        db.read_files(list(files.paths))
        .flat_map(constructs, schema={"construct": pl.String, "uses": pl.Int64})
        .group_by("construct")
        .agg(n=agg.sum("uses"), files=agg.count(), per_file=agg.mean("uses"))
        .into(TABLE, version=version)
    )


@dataclass(frozen=True)
class PlainResult:
    """What the loop counted, and how long it took."""

    uses: Counter[str]
    files: Counter[str]
    seconds: float


def plain_loop(files: Sample, tick: Callable[[int], None] = lambda _: None) -> PlainResult:
    """The same with a loop in this process. ``tick`` is called with the number of bytes after each file."""
    uses: Counter[str] = Counter()
    in_files: Counter[str] = Counter()
    started = time.perf_counter()
    for path in files.paths:
        data = Path(path).read_bytes()
        for found in constructs({"data": data}):
            uses[found["construct"]] += found["uses"]
            in_files[found["construct"]] += 1
        tick(len(data))
    return PlainResult(uses, in_files, time.perf_counter() - started)


def differences(frame: pl.DataFrame, plain: PlainResult) -> list[str]:
    """Where the table and the loop do not agree; empty when they do."""
    found = {
        row["construct"]: (row["n"], row["files"], row["per_file"]) for row in frame.iter_rows(named=True)
    }
    wrong = []
    for name in sorted({*found, *plain.uses}):
        uses, files = plain.uses[name], plain.files[name]
        expected = (uses, files, uses / files if files else None)
        if found.get(name) != expected:
            wrong.append(f"{name}: the job says {found.get(name)}, the loop {expected}")
    return wrong
