"""Reading what tasks have left: partials, merged groups and rows, with the caches that make a second read cheap."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.blobs.store import blob_name
from onefold.compute.plan.stages import Result
from onefold.errors import InvalidPlan, LogCorrupt

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.client import JobClient
    from onefold.compute.results.merge import MergeCache
    from onefold.compute.results.stored import StoredResult
    from onefold.shard.api import Shard


class Results:
    """The results of a space's jobs. Thread-safe."""

    def __init__(self, client: JobClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._results: dict[str, StoredResult] = {}
        self._caches: dict[str, MergeCache] = {}

    @property
    def shard(self) -> Shard:
        """Where the log and the fold of jobs are."""
        return self._client.shard

    def result_of(self, plan: str) -> StoredResult:
        """What readers need to know of the result of runs with this plan. Loads no code. Raises InvalidValue, PlanMissing."""
        with self._lock:
            known = self._results.get(plan)
        if known is None:
            from onefold.compute.results import description
            from onefold.compute.results.stored import StoredResult, read

            stored = self._client.kept_stored(plan)
            described = description.describe(stored) if stored is not None else read(self._client.blobs, plan)
            with self._lock:
                known = self._results.setdefault(
                    plan, StoredResult(plan, described, partial(self._client.stored, plan))
                )
        return known

    def drop(self, plan: str) -> None:
        """Keep nothing in memory of results with this plan."""
        with self._lock:
            self._results.pop(plan, None)
            self._caches.pop(plan, None)

    # -- frames -----------------------------------------------------------------------------------------------------

    def partial(self, result: Result, columns: Collection[str] | None = None) -> pl.DataFrame | None:
        """A task's frame: its partial or its rows, or these columns of it; None when it left nothing. Raises BlobMissing."""
        from onefold.compute.tasks.outputs import load_frame

        return load_frame(result, self._client.blobs, columns)

    def finished(
        self, results: Mapping[int, Result], stored: StoredResult, *, whole: bool = True
    ) -> pl.DataFrame:
        """The merged and finished frame of an aggregation's tasks, by dispatch index; ``whole``: of all of them."""

        import polars as pl

        from onefold.compute import aggregates

        merged = self.merged(results, stored, whole=whole)
        if merged is None:
            return pl.DataFrame(schema=stored.empty_schema)
        return aggregates.final(merged, stored.key_columns, stored.aggs)

    def merged(
        self, results: Mapping[int, Result], stored: StoredResult, *, whole: bool = True
    ) -> pl.DataFrame | None:
        """The merged partial of an aggregation's tasks, as for ``finished``; None without any."""
        from onefold.compute import aggregates
        from onefold.compute.results import merge

        if not stored.grouped:
            raise InvalidPlan("the result is rows, not groups")
        keys, aggs = stored.key_columns, stored.aggs
        with self._lock:
            cache = self._caches.setdefault(stored.plan, merge.MergeCache())
        leaves = {
            index: merge.Leaf(_content_name(result), partial(self._leaf, result))
            for index, result in results.items()
            if not _is_empty(result)
        }
        self._client.blobs.prefetch(result.blob for result in results.values() if result.blob is not None)
        merged = None
        # A table that is still being made is read again after every task: the tree's cache serves that better.
        at_once = whole and not len(cache) and aggregates.adds_up(aggs)
        if at_once and self._stored_bytes(results.values()) <= config.MERGE_AT_ONCE_BYTES_MAX:
            merged = aggregates.merge_all({index: leaf.load() for index, leaf in leaves.items()}, keys, aggs)
        if merged is None:
            merged = merge.merge_tree(leaves, lambda a, b: aggregates.merge_pair(a, b, keys, aggs), cache)
        return merged

    def _stored_bytes(self, results: Iterable[Result]) -> int:
        paths = (self._client.blobs.path(result.blob) for result in results if result.blob is not None)
        return sum(path.stat().st_size for path in paths if path.exists())

    def _leaf(self, result: Result) -> pl.DataFrame:
        frame = self.partial(result)
        if frame is None:
            raise LogCorrupt("a result that is said to have rows has none")
        return frame

    def rows(self, results: Sequence[Result], stored: StoredResult) -> pl.DataFrame:
        """The rows of a collected dataset's tasks, in dispatch order.

        Columns whose type was found from values may differ between tasks; they meet in their supertype, and InvalidValue
        is raised where there is none.
        """
        import polars as pl

        from onefold.compute.frames import values as frames

        self._client.blobs.prefetch(result.blob for result in results if result.blob is not None)
        parts = [frame for frame in map(self.partial, results) if frame is not None]
        if not parts:
            return pl.DataFrame(schema=stored.empty_schema)
        return frames.concat(parts)

    def columns_of(self, result: Result) -> list[str]:
        """The columns of a task's rows, of which only the beginning is read. Raises BlobMissing, InvalidValue."""
        from onefold.compute import aggregates

        stored = self._client.blobs.open_path(result.blob) if result.blob is not None else result.inline
        return [] if stored is None else aggregates.read_head(stored)[0].names()

    def scan_rows(self, results: Sequence[Result], stored: StoredResult) -> pl.LazyFrame:
        """The same as a lazy frame that reads a task's rows when they are wanted, where the plan tells their types."""
        import polars as pl
        from polars.io.plugins import register_io_source

        if stored.types is None or not results:
            return self.rows(results, stored).lazy()

        def read(
            with_columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            batch_size: int | None,  # noqa: ARG001 - Polars passes it
        ) -> Iterator[pl.DataFrame]:
            left = n_rows
            for result in results:
                frame = self.partial(result)
                if frame is None:
                    continue
                if left is not None:
                    frame = frame.head(left)
                    left -= frame.height
                if predicate is not None:
                    frame = frame.filter(predicate)
                yield frame.select(with_columns) if with_columns is not None else frame
                if left == 0:
                    return

        return register_io_source(read, schema=pl.Schema(stored.empty_schema))


def _is_empty(result: Result) -> bool:
    """Whether a task left no frame at all."""
    return result.blob is None and result.inline is None


def _content_name(result: Result) -> str:
    """Names a result by its content."""
    return result.blob if result.blob is not None else blob_name(result.inline or b"")
