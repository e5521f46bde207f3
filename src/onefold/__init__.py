"""Onefold: many machines, one computer.

Everything is a fold over one log. A job is the fold of its finished tasks, so a task that is finished stays finished
whatever dies, and its table can be read while the rest still runs:

>>> import onefold as of
>>> from onefold import agg
>>> import polars as pl
>>> with of.connect("memory://") as db:  # a folder in real life
...     job = (
...         db.read_text("docs/**/*.md")
...         .select(pl.col("line").str.extract_all(r"[a-z]+").alias("word"))
...         .explode("word")
...         .group_by("word")
...         .agg(n=agg.count())
...         .into("word_counts")
...     )
...     table = job.run(progress=False).result()  # doctest: +SKIP

Start reading at ``docs/architecture.md``; the names here are all that programs need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onefold._version import __version__
from onefold.errors import (
    AppendUnknown,
    BelowFloor,
    Conflict,
    Expired,
    InvalidArgument,
    InvalidKey,
    InvalidPlan,
    InvalidValue,
    JobFailed,
    LogCorrupt,
    MergeFailed,
    OnefoldError,
    SpaceError,
    Timeout,
    TokenAhead,
    TokenError,
    TooLarge,
    TooOld,
    TooStale,
    TransactionError,
    Unavailable,
    UnsupportedConsistency,
)

if TYPE_CHECKING:
    from onefold import agg, aio, errors, window
    from onefold.compute.dataset import Dataset, GroupBy, PreparedJob
    from onefold.compute.live.job.status import LiveStatus
    from onefold.compute.live.tables import LiveTable
    from onefold.compute.live_runs import LiveRun
    from onefold.compute.results.tables import Table, TableStatus
    from onefold.compute.runs import Progress, Run, RunError
    from onefold.db import Database, connect
    from onefold.state.available.conflicts import ConflictEntry
    from onefold.state.available.counters import Counters
    from onefold.state.available.maps.map import AvailableMap
    from onefold.state.available.sets import Sets
    from onefold.state.available.status import Region
    from onefold.state.core.consistency import bounded
    from onefold.state.encoding.items import Change, Item, Version
    from onefold.state.encoding.positions import Position
    from onefold.state.maps.map import Map
    from onefold.state.queues.messages import Message
    from onefold.state.transaction import Transaction

_LAZY = {
    "connect": "onefold.db",
    "Database": "onefold.db",
    "Dataset": "onefold.compute.dataset",
    "GroupBy": "onefold.compute.dataset",
    "PreparedJob": "onefold.compute.dataset",
    "LiveRun": "onefold.compute.live_runs",
    "LiveStatus": "onefold.compute.live.job.status",
    "LiveTable": "onefold.compute.live.tables",
    "Run": "onefold.compute.runs",
    "RunError": "onefold.compute.runs",
    "Progress": "onefold.compute.runs",
    "AvailableMap": "onefold.state.available.maps.map",
    "ConflictEntry": "onefold.state.available.conflicts",
    "Counters": "onefold.state.available.counters",
    "Region": "onefold.state.available.status",
    "Sets": "onefold.state.available.sets",
    "Change": "onefold.state.encoding.items",
    "Item": "onefold.state.encoding.items",
    "Map": "onefold.state.maps.map",
    "Message": "onefold.state.queues.messages",
    "Position": "onefold.state.encoding.positions",
    "Transaction": "onefold.state.transaction",
    "Version": "onefold.state.encoding.items",
    "bounded": "onefold.state.core.consistency",
    "Table": "onefold.compute.results.tables",
    "TableStatus": "onefold.compute.results.tables",
}
_MODULES = ("agg", "aio", "errors", "window")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"onefold.{name}")
    else:
        raise AttributeError(f"module 'onefold' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "AppendUnknown",
    "AvailableMap",
    "BelowFloor",
    "Change",
    "Conflict",
    "ConflictEntry",
    "Counters",
    "Database",
    "Dataset",
    "Expired",
    "GroupBy",
    "InvalidArgument",
    "InvalidKey",
    "InvalidPlan",
    "InvalidValue",
    "Item",
    "JobFailed",
    "LiveRun",
    "LiveStatus",
    "LiveTable",
    "LogCorrupt",
    "Map",
    "MergeFailed",
    "Message",
    "OnefoldError",
    "Position",
    "PreparedJob",
    "Progress",
    "Region",
    "Run",
    "RunError",
    "Sets",
    "SpaceError",
    "Table",
    "TableStatus",
    "Timeout",
    "TokenAhead",
    "TokenError",
    "TooLarge",
    "TooOld",
    "TooStale",
    "Transaction",
    "TransactionError",
    "Unavailable",
    "UnsupportedConsistency",
    "Version",
    "__version__",
    "agg",
    "aio",
    "bounded",
    "connect",
    "errors",
    "window",
]
