"""``map_reduce``: pairs in runs sorted by (partition, key), merged and reduced with bounded memory.

A map task leaves one shuffle file (see ``onefold.compute.tasks.shuffle``) whose blocks have three columns: ``key``
(canonical bytes, ascending within a partition), ``original`` (the key itself, pickled) and ``values`` (a
pickled list). A key may take several rows in a row. Reduce tasks merge the files of all map tasks; the values
of a key come in dispatch order of their tasks and, within a task, in the order in which they were yielded. Of
keys that are equal but not the same (1, 1.0) the float is reported, whichever comes first: a key with a float has one
row without values before all others (``_MARK``), so that it is known before ``reduce`` is called.

``combine(key, values)`` is the classic combiner: it makes one value of some values of a key, any number of
times, before ``reduce`` sees them. What ``reduce`` returns is the key's value; of a generator, the list of
what it yields.
"""

from __future__ import annotations

import heapq
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from onefold.compute import renames
from onefold.compute.blobs.store import BlobStore
from onefold.compute.code.canonical.reduce_keys import Columns, encode_key, has_float, partition_of, widest
from onefold.compute.frames import values as frames
from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.plan.stages import DeadLetter, MapOutput, ReduceLeaf, Result, Unit
from onefold.compute.tasks import shuffle
from onefold.compute.tasks.failures import cause_of, letter_of
from onefold.compute.tasks.python_steps import Values
from onefold.compute.tasks.shuffle import ShuffleFile, ShuffleWriter
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.tasks.outputs import Stored

PAIRS_HELD_MAX: Final = 500_000
"""A map task sorts and writes (or combines) its pairs when it holds this many."""
VALUES_PER_ROW_MAX: Final = 4_096
BLOCK_BYTES: Final = 512 * 1024
"""Bytes of one block of a sorted run: what a merge holds in memory for each run."""
RUNS_MERGED_MAX: Final = 128
"""More runs than this are first merged into fewer."""
KEYS_PER_CHUNK: Final = 8_192
_MARK: Final = b""
"""Instead of values, in the row that says that a float is among the equal keys."""

_TEXT: Final = ord("s")
"""The canonical bytes of text begin with it: of most keys, and of none that holds a float."""

Row = tuple[bytes, bytes, bytes]
"""(canonical key, pickled key, pickled list of values)"""


class PairCollector:
    """Collects the pairs of a map task, grouped by key; combines or spills them when they are many."""

    def __init__(self, output: MapOutput, blobs: BlobStore) -> None:
        self._output = output
        self._blobs = blobs
        self._groups: dict[bytes, tuple[Any, list[Any]]] = {}
        self._held = 0
        self._held_after_combining = 0
        self._runs: list[str] = []
        self._pairs = 0
        self._columns = Columns()

    def add(self, rows: pl.DataFrame | Values, unit: Unit | None) -> None:  # noqa: ARG002
        """Pairs that come next."""
        assert isinstance(rows, Values)
        groups = self._groups
        for key, value in rows.items:
            encoded = b"s" + key.encode() if type(key) is str and key.isascii() else encode_key(key)
            group = groups.get(encoded)
            if group is None:
                groups[encoded] = (key, [value])
            else:
                group[1].append(value)
                if encoded[0] != _TEXT and has_float(key):
                    groups[encoded] = (widest(group[0], key), group[1])
        self._pairs += len(rows.items)
        self._held += len(rows.items)
        if self._held > PAIRS_HELD_MAX + self._held_after_combining:
            self._combine()
            if self._held > PAIRS_HELD_MAX // 2:
                self._spill()

    def finish(self, notes: Sequence[str] = ()) -> Stored:
        """Write one sorted file of everything."""
        self._combine()
        noted = not notes
        if self._groups or not self._runs:
            self._spill(notes)
            noted = True
        scratch = self._blobs.scratch
        if len(self._runs) == 1 and noted:
            return None, self._blobs.share(self._runs[0]), self._pairs
        blob = merge_runs(self._runs, self._output.partitions, scratch, notes)
        for run in self._runs:
            if run != blob:
                scratch.delete(run)
        return None, self._blobs.share(blob), self._pairs

    def _combine(self) -> None:
        combine = self._output.combine
        if combine is None:
            return
        for encoded, (key, values) in self._groups.items():
            if len(values) > 1:
                self._groups[encoded] = (key, [_plain(combine(key, iter(values)))])
        self._held = self._held_after_combining = sum(len(values) for _, values in self._groups.values())

    def _spill(self, notes: Sequence[str] = ()) -> None:
        partitions = self._output.partitions
        keys = sorted((partition_of(encoded, partitions), encoded) for encoded in self._groups)
        writer = _RunWriter(self._blobs.scratch, partitions, notes)
        try:
            for partition, encoded in keys:
                key, values = self._groups[encoded]
                if encoded[0] != _TEXT:
                    self._columns.add(key)
                pickled = dumps(key)
                if has_float(key):
                    writer.add(partition, (encoded, pickled, _MARK))
                for batch in _batched(values):
                    writer.add(partition, (encoded, pickled, dumps(batch)))
        except BaseException:
            writer.abandon()
            raise
        self._runs.append(writer.close())
        self._groups = {}
        self._held = self._held_after_combining = 0


def _batched(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), VALUES_PER_ROW_MAX):
        yield values[start : start + VALUES_PER_ROW_MAX]


class _RunWriter:
    """Writes rows, given by (partition, key), as blocks of bounded size."""

    def __init__(self, blobs: BlobStore, partitions: int, notes: Sequence[str] = ()) -> None:
        import polars as pl

        self._schema = {"key": pl.Binary, "original": pl.Binary, "values": pl.Binary}
        self._writer = ShuffleWriter(blobs, partitions)
        self._writer.notes = notes
        self._writer.columns(pl.DataFrame(schema=self._schema))
        self._rows: list[Row] = []
        self._bytes = 0
        self._partition = 0

    def add(self, partition: int, row: Row) -> None:
        if partition != self._partition or self._bytes > BLOCK_BYTES:
            self._flush()
            self._partition = partition
        self._rows.append(row)
        self._bytes += len(row[0]) + len(row[1]) + len(row[2])

    def close(self) -> str:
        try:
            self._flush()
        except BaseException:
            self.abandon()
            raise
        return self._writer.close()

    def abandon(self) -> None:
        self._writer.abandon()

    def _flush(self) -> None:
        import polars as pl

        if self._rows:
            self._writer.add(self._partition, pl.DataFrame(self._rows, schema=self._schema, orient="row"))
        self._rows, self._bytes = [], 0


def merge_runs(names: Sequence[str], partitions: int, blobs: BlobStore, notes: Sequence[str] = ()) -> str:
    """One sorted file out of several; rows of equal keys in the order of the files. The files stay."""
    writer = _RunWriter(blobs, partitions, notes)
    try:
        for partition in range(partitions):
            for row in _merged(names, partition, blobs):
                writer.add(partition, row)
    except BaseException:
        writer.abandon()
        raise
    return writer.close()


def _rows_of(file: ShuffleFile, partition: int) -> Iterator[Row]:
    for block in file.blocks(partition):
        yield from block.iter_rows()


def _merged(names: Sequence[str], partition: int, blobs: BlobStore) -> Iterator[Row]:
    files: list[ShuffleFile] = []
    try:
        files.extend(shuffle.open_file(blobs, name) for name in names)
        yield from heapq.merge(*(_rows_of(file, partition) for file in files), key=_row_order)
    finally:
        for file in files:
            file.close()


def _row_key(row: Row) -> bytes:
    return row[0]


def _row_order(row: Row) -> bytes:
    """Keys in order, and of equal ones the marks first. (No key that may hold a float is another one and a zero byte.)"""
    encoded = row[0]
    return encoded if encoded[0] == _TEXT or not row[2] else encoded + b"\0"


class Reducer:
    """Reduces one partition of a map stage."""

    def __init__(
        self,
        leaf: ReduceLeaf,
        partition: int,
        results: Sequence[Result],
        blobs: BlobStore,
        rows: tuple[int, int] | None = None,
    ) -> None:
        self._leaf = leaf
        self._partition = partition
        self._names = [result.blob for result in results if result.blob is not None]
        self._blobs = blobs
        self._range = rows
        self._made: list[str] = []
        self.columns = Columns()
        """What numbers the keys hold that were read last."""

    def count(self) -> int:
        """How many keys the partition has."""
        return sum(1 for _ in self._groups())

    def run(
        self, on_letter: Callable[[DeadLetter, str], None], mark: Callable[[int, int], None]
    ) -> Iterator[tuple[int, int, pl.DataFrame | None]]:
        """(number of the first key, how many keys, frame of ``key`` and ``value``), key by key in the files'
        order.
        """
        first = -1
        keys: list[Any] = []
        values: list[Any] = []
        read = 0
        for number, key, group in self._groups():
            if first < 0:
                first = number
            read += 1
            mark(number, number + 1)
            try:
                value = _plain(self._leaf.reduce(key, group))
            except BaseException as error:
                letter = letter_of(error, f"key {safe_repr(key, 200)}", safe_repr(key))
                on_letter(letter, type(cause_of(error)).__name__)
            else:
                keys.append(key)
                values.append(value)
            if read >= KEYS_PER_CHUNK:
                yield first, read, _frame(keys, values)
                first, keys, values, read = -1, [], [], 0
        if read:
            yield first, read, _frame(keys, values)

    def peek(self) -> tuple[str, str]:
        """(text, location) of the first key of the range."""
        for _, key, group in self._groups():
            some = list(itertools.islice(group, 10))
            return safe_repr((key, some)), f"key {safe_repr(key, 200)}"
        return "", ""

    def _groups(self) -> Iterator[tuple[int, Any, Iterator[Any]]]:
        lo, hi = self._range if self._range is not None else (0, None)
        columns = self.columns = Columns()
        try:
            merged = _merged(self._fewer_runs(), self._partition, self._blobs)
            for number, (_, rows) in enumerate(itertools.groupby(merged, key=_row_key)):
                if hi is not None and number >= hi:
                    return
                if number < lo:
                    continue
                head = next(rows)
                key = loads(head[1])
                if head[0][0] != _TEXT and has_float(key):
                    key = widest(key, key)
                while head[2] == _MARK:  # and the row with the values comes after it
                    key = widest(key, loads(head[1]))
                    head = next(rows)
                if head[0][0] != _TEXT:
                    columns.add(key)
                yield number, key, _values(itertools.chain([head], rows))
        finally:
            for name in self._made:
                self._blobs.scratch.delete(name)
            self._made = []

    def _fewer_runs(self) -> list[str]:
        names = self._names
        while len(names) > RUNS_MERGED_MAX:
            merged = []
            for start in range(0, len(names), RUNS_MERGED_MAX):
                merged.append(self._merged_into_one(names[start : start + RUNS_MERGED_MAX]))
                self._made.append(merged[-1])
            names = merged
        return names

    def _merged_into_one(self, names: Sequence[str]) -> str:
        writer = _RunWriter(self._blobs.scratch, self._partition + 1)
        try:
            for row in _merged(names, self._partition, self._blobs):
                writer.add(self._partition, row)
        except BaseException:
            writer.abandon()
            raise
        return writer.close()


def _values(rows: Iterator[Row]) -> Iterator[Any]:
    for row in rows:
        yield from loads(row[2])


def _plain(value: Any) -> Any:
    if inspect.isgenerator(value):
        return list(value)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(
            "the function of map_reduce's reduce or combine is async; it must be a plain function"
        )
    return value


def _frame(keys: list[Any], values: list[Any]) -> pl.DataFrame | None:
    if not keys:
        return None
    if all(type(key) is tuple for key in keys):  # a struct, since the parts of a tuple may differ in type
        keys = [{f"field_{number}": part for number, part in enumerate(key)} for key in keys]
    return frames.frame_of_dicts(
        [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)], None
    )


def dumps(value: Any) -> bytes:
    """Pickled; instances of classes that only the submitting program has travel with their class."""
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:
        if is_interrupt(error):
            raise
        from onefold.compute.code import functions

        return functions.dump(value)


def loads(data: bytes) -> Any:
    """What ``dumps`` made bytes of."""
    if data[:1] == pickle.PROTO:
        try:
            return pickle.loads(data)
        except (ImportError, AttributeError):
            return renames.loads_value(data)
    from onefold.compute.code import functions

    return functions.load(data)
