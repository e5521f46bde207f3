"""What a published folder says of itself.

Nothing but Parquet files stands in the folder, so that every reader takes it as it is. Who published what is kept in
them: the last file of each publication, ``RUN-NUMBER.parquet``, has a JSON text under ``onefold`` in its key-value
metadata. It comes and goes with its file, so it can never tell of rows that are not there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from onefold.compute.sources import partition_values

METADATA_KEY: Final = "onefold"
FORMAT: Final = 1
RUNS_REMEMBERED: Final = 100
_FILE: Final = re.compile(r"(?P<run>.+)-(?P<number>\d{5,})\.parquet")


@dataclass(frozen=True)
class Publication:
    """What one run published into a folder."""

    run: str
    files: int
    rows: int
    partition_by: list[str]
    contains: list[str]
    """Names of the tasks whose rows are in the folder with it."""
    earlier: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Runs whose own word is gone with their files, and how many files and rows they had published."""
    format: int = FORMAT
    inputs: dict[str, list[str]] = field(default_factory=dict)
    """By the name of a task: digests of the files that it read (see ``digest_of``). Not for what earlier releases published."""

    def encode(self) -> dict[str, str]:
        """As the file's metadata."""
        return {METADATA_KEY: msgspec.json.encode(self).decode()}


_decoder = msgspec.json.Decoder(Publication)


def digest_of(job: str, path: str) -> str:
    """A file as ``inputs`` has it, by its path and the job that read it; short, however long the path is."""
    key = hashlib.blake2b(job.encode(), digest_size=32).digest()
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), key=key, digest_size=8).hexdigest()


def files_of(folder: Path) -> Iterator[Path]:
    """All files below a folder (and links to folders, which are not followed), in the order of their names."""
    for directory, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(directory) / name
        for name in folders:
            if (Path(directory) / name).is_symlink():
                yield Path(directory) / name


def file_name(run: str, number: int) -> str:
    """The name of a run's file; runs never share one."""
    return f"{_prefix(run)}-{number:05d}.parquet"


@dataclass(frozen=True)
class Folder:
    """A folder's publications, and which files each of them has there."""

    publications: dict[Path, Publication]
    """By the file that tells of it, relative to the folder."""
    counts: dict[str, int]
    """How many files there are by what their names begin with."""
    others: int
    """Parquet files that no run has made."""
    types: dict[str, Any] | None = None
    """Types of the columns that are folders; None when no file says so."""

    def by_run(self, run: str) -> tuple[int, int] | None:
        """Files and rows that the run has published, also if they are no longer there; None when it has not."""
        for publication in self.publications.values():
            if publication.run == run:
                return publication.files, publication.rows
            if run in publication.earlier:
                return publication.earlier[run]
        return None

    def complete(self, publication: Publication) -> bool:
        """Whether all files of a publication are still there."""
        return self.counts.get(_prefix(publication.run), 0) == publication.files

    @property
    def contains(self) -> set[str]:
        """Names of all tasks whose rows are there."""
        return {name for publication in self.publications.values() for name in publication.contains}

    @property
    def inputs(self) -> dict[str, list[str]]:
        """What the tasks read whose rows are there, as far as it is known."""
        return {
            name: read
            for publication in self.publications.values()
            for name, read in publication.inputs.items()
        }

    @property
    def partition_by(self) -> list[str] | None:
        """The columns that are folders; None when nothing says so."""
        return next((publication.partition_by for publication in self.publications.values()), None)

    def successor(
        self,
        *,
        run: str,
        files: int,
        rows: int,
        partition_by: Iterable[str],
        contains: Iterable[str],
        kept: Iterable[Path],
        replaces_all: bool,
        inputs: Mapping[str, list[str]] | None = None,
    ) -> Publication:
        """The next publication. It takes on what those publications knew whose files do not stay."""
        staying = set(kept)
        gone = [known for file, known in self.publications.items() if file not in staying]
        earlier = {name: counts for known in gone for name, counts in known.earlier.items()}
        earlier |= {known.run: (known.files, known.rows) for known in gone}
        names = set(contains)
        read = dict(inputs or {})
        if not replaces_all:
            names.update(name for known in gone for name in known.contains)
            read = {name: paths for known in gone for name, paths in known.inputs.items()} | read
        return Publication(
            run,
            files,
            rows,
            list(partition_by),
            sorted(names),
            dict(list(earlier.items())[-RUNS_REMEMBERED:]),
            inputs=read,
        )


def read(folder: Path) -> Folder:
    """What a folder tells of itself; nothing when it is not there."""
    last: dict[str, tuple[int, Path]] = {}
    counts: dict[str, int] = {}
    others = 0
    for file in files_of(folder):
        found = _FILE.fullmatch(file.name)
        if found is None:
            others += file.name.endswith(".parquet")
            continue
        run, number = found["run"], int(found["number"])
        counts[run] = counts.get(run, 0) + 1
        if number >= last.get(run, (-1,))[0]:
            last[run] = (number, file)
    publications = {}
    types: dict[str, Any] | None = None
    for _, file in sorted(last.values(), key=lambda one: one[1].name):
        notes = _notes(file)
        known = _publication(notes)
        if known is not None:
            publications[file.relative_to(folder)] = known
        text = notes.get(partition_values.METADATA_KEY)
        said = partition_values.decode_types(text) if text is not None else None
        if said is not None:
            types = said if types is None or types.keys() != said.keys() else _known_types(types, said)
    return Folder(publications, counts, others, types)


def _known_types(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The types of both; a publication of which a column was null everywhere does not know its type."""
    import polars as pl

    return {name: after[name] if dtype == pl.Null else dtype for name, dtype in before.items()}


def _notes(file: Path) -> dict[str, str]:
    """A file's key-value metadata; nothing for a file that is not Parquet, which is found when its rows are needed."""
    import polars as pl

    try:
        return pl.read_parquet_metadata(file)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return {}


def _publication(notes: dict[str, str]) -> Publication | None:
    """A file's word on its publication; None for files that Onefold has not made."""
    try:
        known = _decoder.decode(notes[METADATA_KEY]) if METADATA_KEY in notes else None
    except msgspec.MsgspecError:
        return None
    return known if known is not None and known.format == FORMAT else None


def _prefix(run: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", run)
