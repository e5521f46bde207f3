"""What tasks are called: a digest of the plan's meaning, and of the piece of input that a task reads.

A task whose name is known already is not run again, so two things must hold: what changes the result changes
the name, and what does not (a comment, a line, a file's name, another process) leaves it. The types of the
columns that a task uses are part of its name: they are inferred over all files of the job, so that another
file may change how this one is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onefold.compute.code.canonical import reduce_keys as keys
from onefold.compute.code.canonical.code import hash_parts
from onefold.compute.code.canonical.values import Normaliser
from onefold.compute.plan.explain import function_name
from onefold.compute.plan.nodes import (
    Explode,
    Filter,
    FlatMap,
    GroupAggregate,
    Job,
    Join,
    Map,
    MapBatches,
    MapReduce,
    Node,
    Select,
    Source,
    Union,
    WithColumns,
    WriteParquet,
)
from onefold.compute.plan.stages import (
    BroadcastJoin,
    JoinLeaf,
    MapOutput,
    PartialOutput,
    PublishOutput,
    ReduceLeaf,
    SessionLeaf,
    ShuffleOutput,
    SourceLeaf,
    Stage,
    TaskInput,
)
from onefold.compute.plan.used_types import used_types

_NOT_CONTENT = frozenset({"storage_options"})
"""Options of a source that say how to reach files, not what they hold."""
UNSTABLE = "unstable: "
"""Begins the names of parts that have no canonical form: the job is computed again each time."""


@dataclass(frozen=True)
class Digest:
    """The plan's digest, and the digests of what it is made of by a name that people can read."""

    hex: str
    parts: dict[str, str]


def plan_digest(job: Job) -> Digest:
    """The digest of what the job computes: steps, functions, options of sources and what the sink makes of
    rows.

    Not of where the input is (files are named by the splits), nor of the table, its mode or version.
    """
    digests = _Digests()
    root = digests.node(job.plan)
    digests.part("the order of the steps", digests.values(digests.order))
    sink: tuple[Any, ...] = ("into",)
    if isinstance(job.sink, WriteParquet):
        sink = ("write_parquet", job.sink.partition_by)
        if job.sink.partition_by:
            digests.part("write_parquet: partition_by", digests.values(job.sink.partition_by))
    whole = hash_parts("plan", root, digests.values(sink))
    return Digest(whole.hex(), digests.parts)


def explain_difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Sentences that say why a plan's digest is another one, from the ``parts`` of both. Empty: nothing
    changed.
    """
    sentences = []
    for name, digest in new.items():
        if name.startswith(UNSTABLE):
            sentences.append(f"{name.removeprefix(UNSTABLE)}, so it counts as changed in every run")
        elif name not in old:
            sentences.append(f"{name} is new")
        elif old[name] != digest:
            sentences.append(f"{name} has changed")
    sentences += [f"{name} is gone" for name in old if name not in new and not name.startswith(UNSTABLE)]
    return sentences


# -- tasks ---------------------------------------------------------------------------------------------------


def task_identity(*, table: str, name: str, stage: int, content: bytes) -> bytes:
    """The 16-byte name of a task. ``name``: the job's version, or else the plan digest's hex."""
    return hash_parts("task", table, name, stage, content)


def split_content(
    item: TaskInput,
    kind: str,
    upstream: Sequence[bytes] = (),
    shape: bytes = b"",
    types: Sequence[tuple[str, str]] = (),
) -> bytes:
    """What a task over a split works on: units with size and etag, the branch, and what it joins with.

    ``kind``: of the source. ``upstream``: names of the tasks whose output is broadcast to it. ``shape``: see
    ``stage_shape``. ``types``: see ``used_types``.
    """
    units = [hash_parts(unit.path, unit.start, unit.stop, unit.size, unit.etag) for unit in item.units]
    read_as = hash_parts("types", *(part for column in types for part in column))
    return hash_parts("split", kind, item.branch, shape, read_as, hash_parts(*units), *sorted(upstream))


def partition_content(
    partition: int, upstream: Sequence[bytes], branch: int = 0, shape: bytes = b""
) -> bytes:
    """What a task over a partition works on: its number, and the names of the tasks that wrote it, in any
    order.
    """
    return hash_parts("partition", partition, branch, shape, *sorted(upstream))


def stage_shape(stage: Stage) -> bytes:
    """How a stage is laid out, as far as it may change while the plan and the version stay.

    The same plan is cut into other stages when an input grows over the limit for broadcasting; then stage 0
    is something else, though its number and its splits are the same.
    """
    parts: list[bytes] = []
    for branch in stage.branches:
        match branch.leaf:
            case SourceLeaf(source=source):
                parts.append(hash_parts("source", source.kind))
            case JoinLeaf() as leaf:
                parts.append(hash_parts("join", *leaf.on, leaf.how, leaf.partitions))
            case SessionLeaf() as session:
                parts.append(
                    hash_parts("session", *session.keys, session.on, session.gap_us, session.partitions)
                )
            case ReduceLeaf() as reduce:
                parts.append(hash_parts("reduce", reduce.partitions))
        joins = [
            hash_parts(position, *step.on, step.how, step.small_is)
            for position, step in enumerate(branch.steps)
            if isinstance(step, BroadcastJoin)
        ]
        parts.append(hash_parts("joins", *joins))
    output = stage.output
    match output:
        case ShuffleOutput():
            parts.append(hash_parts("shuffle", *output.keys, output.partitions))
        case MapOutput():
            parts.append(hash_parts("map", output.partitions, keys.VERSION))
        case PartialOutput():
            # With a version the plan itself does not count, but states of another kind never meet these.
            kinds = [hash_parts(name, agg.kind, len(agg.expressions())) for name, agg in output.aggs]
            parts.append(hash_parts("partial", len(output.keys), *kinds))
        case PublishOutput():
            parts.append(hash_parts("publish", *output.partition_by, output.mode))
        case _:
            parts.append(hash_parts("rows"))
    return hash_parts("shape", *parts)


def content_of(
    stage: Stage, upstream: Sequence[bytes], gives: Sequence[tuple[str, Any]] = ()
) -> Callable[[TaskInput], bytes]:
    """Gives the content of the tasks of a stage, for ``task_identity``.

    ``upstream``: names of the tasks of all its ``needs``. ``gives``: columns and types of the result that the stage
    makes, where they are known.
    """
    upstream = sorted(upstream)
    shape = stage_shape(stage)
    if gives:
        shape = hash_parts(shape, *(part for name, dtype in gives for part in (name, repr(dtype))))
    types = [used_types(branch, stage.output) for branch in stage.branches]

    def content(item: TaskInput) -> bytes:
        if stage.branches:
            leaf = stage.branches[item.branch].leaf
            if isinstance(leaf, SourceLeaf):
                return split_content(item, leaf.source.kind, upstream, shape, types[item.branch])
        return partition_content(item.partition or 0, upstream, item.branch, shape)

    return content


def task_content(stage: Stage, item: TaskInput, upstream: Sequence[bytes]) -> bytes:
    """The content of one task of a stage; see ``content_of``."""
    return content_of(stage, upstream)(item)


# -- plans ---------------------------------------------------------------------------------------------------


class _Digests:
    """Digests of a plan's nodes, and named parts along the way."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.order: list[str] = []
        self._counts: dict[str, int] = {}

    def values(self, *values: object) -> bytes:
        """Plain values and expressions."""
        normaliser = Normaliser()
        digest = normaliser.digest(values)
        self._flag(normaliser)
        return digest

    def part(self, name: str, digest: bytes) -> bytes:
        """Keep a part under a name; a second one of the same name gets a number."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        self.parts[name if count == 1 else f"{name} ({count})"] = digest.hex()
        return digest

    def function(self, step: str, fn: object) -> bytes:
        """A function, with a part for each definition of the program that it rests on."""
        normaliser = Normaliser()
        digest = normaliser.digest(fn)
        called = f"{step}: {function_name(fn)}"
        if not normaliser.definitions:
            self.part(f"{called} (function)", digest)
        for number, definition in enumerate(normaliser.definitions):
            self.part(
                f"{called} (function)" if number == 0 else f"{called} uses {definition.name}", definition.own
            )
            for variable, value in definition.uses.items():
                self.parts.setdefault(f"{called} uses {variable}", value.hex())
        self._flag(normaliser)
        return digest

    def _flag(self, normaliser: Normaliser) -> None:
        for reason in normaliser.unstable:
            self.part(UNSTABLE + reason, hashlib.blake2b(reason.encode(), digest_size=16).digest())

    def node(self, node: Node) -> bytes:
        """The digest of a node and of all below it."""
        chain = []
        while not isinstance(node, Source | Union | Join):
            chain.append(node)
            node = node.input  # type: ignore[attr-defined]
        match node:
            case Source():
                digest = self._source(node)
            case Union():
                digest = hash_parts("union", *(self.node(part) for part in node.inputs))
            case Join():
                sides = (self.node(node.left), self.node(node.right))
                name = f"join on {', '.join(node.on)}"
                digest = hash_parts(
                    "join", *sides, self.part(name, self.values(node.on, node.how)), self._keys_meet()
                )
        self.order.append(type(node).__name__)
        for step in reversed(chain):
            self.order.append(type(step).__name__)
            digest = hash_parts("step", digest, self._step(step))
        return digest

    def _source(self, source: Source) -> bytes:
        options = [
            self.part(f"read_{source.kind}: {name}", self.values(name, value))
            for name, value in sorted(source.options, key=lambda option: option[0])
            if name not in _NOT_CONTENT
        ]
        return hash_parts("source", source.kind, *options)

    def _step(self, step: Node) -> bytes:
        match step:
            case Select():
                return self._exprs("select", step.exprs)
            case WithColumns():
                return self._exprs("with_columns", step.exprs)
            case Filter():
                return self._exprs("filter", step.predicates)
            case Explode():
                return self.part(f"explode {', '.join(step.columns)}", self.values("explode", step.columns))
            case Map():
                return hash_parts("map", self.function("map", step.fn), self._schema("map", step.schema))
            case FlatMap():
                return hash_parts(
                    "flat_map", self.function("flat_map", step.fn), self._schema("flat_map", step.schema)
                )
            case MapBatches():
                rows = self.values(step.batch_rows)
                parts = self.function("map_batches", step.fn), self._schema("map_batches", step.schema), rows
                return hash_parts("map_batches", *parts)
            case GroupAggregate():
                keys = self._exprs("group_by", step.keys)
                aggs = [self._aggregate(name, agg) for name, agg in step.aggs]
                collected = any(not agg.native for _, agg in step.aggs)
                return hash_parts("group_by", keys, *aggs, *([self._keys_meet()] if collected else []))
            case MapReduce():
                functions = [
                    self.function(f"map_reduce {name}", fn)
                    for name, fn in (("map", step.map), ("reduce", step.reduce), ("combine", step.combine))
                    if fn is not None
                ]
                return hash_parts("map_reduce", self.values(step.partitions), *functions)
            case _:
                return hash_parts(type(step).__name__, self.values(step))

    def _keys_meet(self) -> bytes:
        """Results of releases in which a join, or an aggregate that collects its values, lost rows whose key is NaN have other
        names."""
        if "how keys that are NaN meet" not in self.parts:
            self.part("how keys that are NaN meet", self.values(2))
        return b"2"

    def _exprs(self, name: str, exprs: Sequence[Any]) -> bytes:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        digests = []
        for expr in exprs:
            made = expr.meta.output_name(raise_if_undetermined=False)
            label = f"{name} {count}: {made}" if made and name != "filter" else f"{name} {count}"
            digests.append(self.part(label, self.values(expr)))
        return hash_parts(name, *digests)

    def _schema(self, step: str, schema: Any) -> bytes:
        if schema is None:
            return b""
        return self.part(f"{step}: schema", self.values(tuple((name, repr(dtype)) for name, dtype in schema)))

    def _aggregate(self, name: str, agg: Any) -> bytes:
        kind, exprs, functions, options = agg.describe()
        digest = self.part(f"agg {name}", self.values(kind, tuple(exprs), options))
        called = [self.function(f"agg {name}", fn) for fn in functions]
        return hash_parts("agg", name, digest, *called)
