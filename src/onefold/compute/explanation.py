"""Why something was computed again: the difference between a table's last run and the one before, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from onefold.compute import identity
from onefold.compute.blobs import BlobMissing, BlobStore
from onefold.compute.jobs import state
from onefold.errors import InvalidArgument
from onefold.fold.api import StoreView

_NAMES_SHOWN = 5


class Fingerprint(msgspec.Struct, frozen=True, array_like=True):
    """What the names of a run's tasks were made of."""

    parts: dict[str, str]
    """Readable name of a part of the plan -> its digest."""
    files: dict[str, str]
    """Path -> size and modification."""


def encode(fingerprint: Fingerprint) -> bytes:
    """As it is kept in a blob."""
    return msgspec.msgpack.encode(fingerprint)


def explain(view: StoreView, blobs: BlobStore, table: str) -> list[str]:
    """Sentences about the table's last run: how it was named, what it took over, and why the rest was computed.

    Raises InvalidArgument when there is no such table.
    """
    row = state.read_table(view, table)
    run = state.read_run(view, row.head) if row is not None else None
    if row is None or run is None:
        raise InvalidArgument(f"there is no table {table!r}; `onefold tables` lists what there is")
    named = f"version {run.version!r}" if run.version is not None else f"plan digest {run.digest[:12]}"
    sentences = [
        f"{table}: made by run {run.id} ({run.state}), tasks named by {named}, seed {run.seed}",
        f"{run.reused} of {run.total} tasks were taken over from earlier runs, {run.done - run.reused} were run, "
        f"{run.total - run.done} are left",
    ]
    before = state.read_run(view, run.previous) if run.previous is not None else None
    if before is None:
        return [*sentences, "it is the first run of this table, so nothing could be taken over"]
    if run.mode == "replace" and run.sink == "table":
        return [*sentences, 'mode="replace" computes everything again']
    if run.version != before.version:
        return [
            *sentences,
            f"the version was {before.version!r} and is {run.version!r}, so every task has a new name",
        ]
    new, old = _load(blobs, run.explain), _load(blobs, before.explain)
    if new is None or old is None:
        return [*sentences, f"what run {before.id} was made of is not kept any more"]
    if run.version is None:
        changes = identity.explain_difference(old.parts, new.parts)
        sentences += [f"{line}: everything was computed again" for line in changes]
    return [*sentences, *_files(old.files, new.files)]


def _load(blobs: BlobStore, name: str) -> Fingerprint | None:
    try:
        return msgspec.msgpack.decode(blobs.get(name), type=Fingerprint)
    except BlobMissing:
        return None


def _files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    kinds: Sequence[tuple[str, list[str], str]] = (
        ("added", sorted(new.keys() - old.keys()), "read"),
        ("changed", sorted(path for path in new.keys() & old.keys() if new[path] != old[path]), "read again"),
        ("removed", sorted(old.keys() - new.keys()), "taken out"),
    )
    sentences = []
    for what, paths, done in kinds:
        if paths:
            shown = ", ".join(paths[:_NAMES_SHOWN]) + (", …" if len(paths) > _NAMES_SHOWN else "")
            verb = "file was" if len(paths) == 1 else "files were"
            sentences.append(f"{len(paths)} {verb} {what} and {done}: {shown}")
    return sentences or ["no file was added, changed or removed"]
