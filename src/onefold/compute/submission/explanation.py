"""Why a table's last run computed what it computed: how it is made, and what differs from the run before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from onefold.compute.blobs.store import BlobMissing, BlobStore
from onefold.compute.code.identity import explain_difference
from onefold.compute.jobs import state
from onefold.compute.plan.stages import SourceLeaf
from onefold.compute.plan.used_types import used_types
from onefold.errors import InvalidArgument, InvalidValue

if TYPE_CHECKING:
    from onefold.compute.jobs.read_rows import RunRow
    from onefold.compute.plan.nodes import Source
    from onefold.compute.plan.stages import Stage
    from onefold.fold.api import StoreView

_FILES_NAMED_MAX = 5


class Fingerprint(msgspec.Struct, frozen=True, array_like=True):
    """What the names of a run's tasks were made of."""

    parts: dict[str, str]
    """``Digest.parts`` of the plan."""
    files: dict[str, str]
    """Path -> etag of every input file."""
    types: tuple[dict[str, str], ...] = ()
    """For each source in the plan's order: the columns that tasks use, with their types."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Fingerprint)


def encode(fingerprint: Fingerprint) -> bytes:
    """The bytes that are kept with the run."""
    return _encoder.encode(fingerprint)


def decode(data: bytes) -> Fingerprint:
    """The reverse of ``encode``."""
    return _decoder.decode(data)


def types_of(stages: Sequence[Stage], sources: Sequence[Source]) -> tuple[dict[str, str], ...]:
    """``Fingerprint.types`` of a job."""
    used: dict[int, dict[str, str]] = {id(source): {} for source in sources}
    for stage in stages:
        for branch in stage.branches:
            if isinstance(branch.leaf, SourceLeaf):
                used[id(branch.leaf.source)].update(used_types(branch, stage.output))
    return tuple(used[id(source)] for source in sources)


def explain(view: StoreView, blobs: BlobStore, name: str) -> list[str]:
    """Sentences about the latest run of a table (or ``parquet:PATH``): its steps, what it took over, and why the
    rest was computed. Raises InvalidArgument when there is no such table.
    """
    run = state.last_run(view, name)
    if run is None:
        raise InvalidArgument(
            f"there is no table {name!r} in this space; `onefold tables` lists what there is"
        )
    before = state.read_run(view, run.previous) if run.previous is not None else None
    computed = run.total - run.reused
    verb = "were" if run.state == "done" else "are to be"
    return [
        f"The last run of {name!r} is {run.id}, {run.state}:",
        *(f"  {line}" for line in _steps(blobs, run)),
        f"{run.reused} of its {run.total} tasks are reused, {computed} {verb} computed.",
        *_reasons(blobs, run, before, computed),
    ]


def _steps(blobs: BlobStore, run: RunRow) -> list[str]:
    from onefold.compute.code import functions
    from onefold.compute.plan.explain import job_text
    from onefold.compute.results import stored

    try:
        described = stored.read(blobs, run.plan)
        if described.steps:
            return list(described.steps)
        return job_text(functions.load(blobs.get(run.plan)).job).splitlines()  # an earlier release wrote it
    except BlobMissing:
        return ["(its plan is not kept any more)"]
    except InvalidValue as error:
        return [f"(its steps cannot be shown: {error})"]


def _reasons(blobs: BlobStore, run: RunRow, before: RunRow | None, computed: int) -> list[str]:
    if run.previous is None:
        return ["It is the table's first run, so every task is computed."]
    if computed == 0:
        return ["Nothing that counts has changed since the run before."]
    if before is None:
        return [f"The run before, {run.previous}, is not kept any more, so nothing is known of what changed."]
    if run.mode == "replace":
        return ["The job says mode='replace', which computes every task again."]
    if run.version != before.version:
        return [
            f"The version was {_version(before)} and is {_version(run)}, so all tasks have new names and are computed."
        ]
    new, old = _fingerprint(blobs, run), _fingerprint(blobs, before)
    reasons: list[str] = []
    if run.version is None and run.digest != before.digest:
        changes = explain_difference(old.parts, new.parts) if new is not None and old is not None else []
        reasons = [f"All tasks are computed because {change}." for change in changes]
        return reasons or ["The plan has changed; what it was made of before is not kept any more."]
    if new is not None and old is not None:
        reasons = _files(old.files, new.files) + _types(old.types, new.types)
    if before.state != "done":
        reasons.append(f"The run before is {before.state}: what it had not finished was left to do.")
    return reasons or ["Their results were lost, or they read what such tasks have made."]


def _version(run: RunRow) -> str:
    return repr(run.version) if run.version is not None else "not given"


def _fingerprint(blobs: BlobStore, run: RunRow) -> Fingerprint | None:
    try:
        return decode(blobs.get(run.explain))
    except (BlobMissing, msgspec.DecodeError):
        return None


def _files(old: dict[str, str], new: dict[str, str]) -> list[str]:
    added = sorted(new.keys() - old.keys())
    removed = sorted(old.keys() - new.keys())
    changed = sorted(path for path in new.keys() & old.keys() if new[path] != old[path])
    kinds: list[tuple[Sequence[str], str]] = [(added, "new"), (changed, "changed"), (removed, "gone")]
    return [f"{_counted(paths)} {kind}: {_listed(paths)}." for paths, kind in kinds if paths]


def _types(old: Sequence[dict[str, str]], new: Sequence[dict[str, str]]) -> list[str]:
    if len(old) != len(new):
        return []  # a run of an earlier release, which kept no types
    reasons = []
    for number, (before, now) in enumerate(zip(old, new, strict=True), 1):
        where = f" of input {number}" if len(new) > 1 else ""
        reasons += [
            f"Column {name!r}{where} {_changed(before.get(name), now.get(name))}, "
            "so the tasks that use it have new names and are computed."
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)
        ]
    return reasons


def _changed(old: str | None, new: str | None) -> str:
    if old is None:
        return f"is new ({new})"
    return f"was {old} and is gone" if new is None else f"was {old} and is {new}"


def _counted(paths: Sequence[str]) -> str:
    return "1 file is" if len(paths) == 1 else f"{len(paths)} files are"


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:_FILES_NAMED_MAX])
    more = len(paths) - _FILES_NAMED_MAX
    return f"{shown} and {more} more" if more > 0 else shown
