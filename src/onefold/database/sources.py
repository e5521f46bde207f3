"""What a job reads: files, and streams of the space. A part of ``Database``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, overload

from onefold.arguments import check_flag
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.compute.dataset import Dataset
    from onefold.compute.engine import Engine
    from onefold.compute.live_dataset import LiveDataset
    from onefold.compute.live_starting import LiveHost
    from onefold.durations import Duration
    from onefold.state.encoding.positions import Position

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class StreamSources:
    """The streams of a space."""

    @property
    def _engine(self) -> Engine:
        raise NotImplementedError

    def _check_process(self) -> None:
        raise NotImplementedError

    def _live_starter(self) -> LiveHost:
        raise NotImplementedError

    @overload
    def read_stream(
        self,
        name: str,
        *,
        follow: Literal[True],
        event_time: str | None = None,
        watermark_delay: Duration = 0,
        start: str | Position | datetime = "earliest",
        idle: Duration | None = "10s",
        max_ahead: Duration | None = "1m",
        hold: Duration = "1d",
        schema: Mapping[str, Any] | None = None,
        partitions: int | Sequence[int] | None = None,
    ) -> LiveDataset: ...
    @overload
    def read_stream(
        self,
        name: str,
        *,
        follow: Literal[False] = False,
        event_time: str | None = None,
        watermark_delay: Duration = 0,
        start: str | Position | datetime = "earliest",
        idle: Duration | None = "10s",
        max_ahead: Duration | None = "1m",
        hold: Duration = "1d",
        schema: Mapping[str, Any] | None = None,
        partitions: int | Sequence[int] | None = None,
    ) -> Dataset: ...
    def read_stream(
        self,
        name: str,
        *,
        follow: bool = False,
        event_time: str | None = None,
        watermark_delay: Duration = 0,
        start: str | Position | datetime = "earliest",
        idle: Duration | None = "10s",
        max_ahead: Duration | None = "1m",
        hold: Duration = "1d",
        schema: Mapping[str, Any] | None = None,
        partitions: int | Sequence[int] | None = None,
    ) -> LiveDataset | Dataset:
        """Rows of a stream as they come (``follow=True``), or its records up to the start of a job: a source of any batch plan,
        whose second run reads what was added since.

        Each row has the columns of its record and ``_partition``, ``_offset``, ``_time`` (of its append) and ``_key``; a sink or
        a join gets of these what was selected under other names. The columns are those of ``schema=`` or of the first records.
        ``event_time``: the column that says when an event happened (None: when it was appended). ``watermark_delay``: how far
        events may be out of order. ``idle``: after so long without a record a partition holds no window (None: it always does).
        ``max_ahead``: events further ahead of their append move no watermark. ``hold``: what the job has not read is kept for so
        much longer than the stream's retention; beyond that the job fails, and says how much is lost. ``start``: as for
        ``Stream.read``. Without ``follow``, ``event_time`` is that of windows without ``on=``, and ``watermark_delay``, ``idle``,
        ``max_ahead`` and ``hold`` have no meaning and are refused.

        Raises:
            InvalidArgument: definite; arguments that cannot be.
        """
        check_flag("follow", follow)
        with first_use:
            from onefold.compute.live_starting import bounded_source, check_not_followed, live_dataset

        self._check_process()
        if not follow:
            with first_use:
                from onefold.compute.dataset import Dataset
                from onefold.compute.starting import Starter

            check_not_followed(watermark_delay=watermark_delay, idle=idle, max_ahead=max_ahead, hold=hold)
            source = bounded_source(
                name, event_time=event_time, start=start, schema=schema, partitions=partitions
            )
            return Dataset(source, Starter(self._engine))
        return live_dataset(
            self._live_starter(),
            name,
            event_time=event_time,
            watermark_delay=watermark_delay,
            start=start,
            idle=idle,
            max_ahead=max_ahead,
            hold=hold,
            schema=schema,
            partitions=partitions,
        )


class DatabaseSources(StreamSources):
    """The sources of ``Database``."""

    def read_text(
        self,
        paths: Paths,
        *,
        encoding: str = "utf8",
        errors: Literal["strict", "replace", "ignore"] = "strict",
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Lines of text files: one column ``line``, without the line's end. Compressed files are unpacked.

        ``paths``: files, folders, globs (``**`` too) or fsspec URLs. With ``errors="strict"`` bytes that are not UTF-8 fail the
        job with the file and line.
        """
        return self._read(
            "text",
            paths,
            encoding=encoding,
            errors=errors,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
        )

    def read_csv(
        self,
        paths: Paths,
        *,
        schema: Mapping[str, Any] | None = None,
        schema_overrides: Mapping[str, Any] | None = None,
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Rows of CSV files with one schema, fixed when the job is submitted.

        ``options``: ``separator``, ``quote_char``, ``has_header``, ``null_values``, ``infer_schema_length``, … as in Polars.
        """
        return self._read(
            "csv",
            paths,
            schema=schema,
            schema_overrides=schema_overrides,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
            **options,
        )

    def read_jsonl(
        self,
        paths: Paths,
        *,
        schema: Mapping[str, Any] | None = None,
        schema_overrides: Mapping[str, Any] | None = None,
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Objects of newline-delimited JSON files with one schema, fixed when the job is submitted."""
        return self._read(
            "jsonl",
            paths,
            schema=schema,
            schema_overrides=schema_overrides,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
            **options,
        )

    def read_parquet(
        self,
        paths: Paths,
        *,
        schema: Mapping[str, Any] | None = None,
        include_file_paths: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Rows of Parquet files, cut into tasks by row group. All files must have the same columns.

        ``schema``: the columns and types that the files must have, in the order that the rows get; columns that are folders
        take their types from it.
        """
        return self._read(
            "parquet",
            paths,
            schema=schema,
            include_file_paths=include_file_paths,
            storage_options=storage_options,
            **options,
        )

    def read_files(self, paths: Paths, *, storage_options: Mapping[str, Any] | None = None) -> Dataset:
        """Whole files: one row each, with the columns ``path``, ``size`` (bytes) and ``data``."""
        return self._read("files", paths, storage_options=storage_options)

    def _read(self, kind: Any, paths: Paths, **options: Any) -> Dataset:
        with first_use:
            from onefold.compute.dataset import Dataset
            from onefold.compute.sources import make_source
            from onefold.compute.starting import Starter

        return Dataset(make_source(kind, paths, **options), Starter(self._engine))
