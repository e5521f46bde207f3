"""Mergeable aggregates over Polars frames: partial, merge, final.

May import ``frames``, ``renames``, ``machine`` and the ground.
"""

from onefold.compute.aggregates.adding.dense import adds_up, merge_all
from onefold.compute.aggregates.align import (
    MergeFailed,
    each_group_once,
    merge_pair,
    row_types,
    with_row_types,
)
from onefold.compute.aggregates.base import ORDER_COLUMN, Aggregate
from onefold.compute.aggregates.distinct import DISTINCT_ERROR, distinct_bounds
from onefold.compute.aggregates.frames import empty_partial, final, partial, result_schema, totals
from onefold.compute.aggregates.ipc import decode, encode, read_head
from onefold.compute.aggregates.kll import EXACT_VALUES_MAX, RANK_ERROR
from onefold.compute.aggregates.parse import from_polars
from onefold.compute.aggregates.quantile import (
    quantile_count,
    quantile_rank,
    quantile_states,
    quantile_value,
)

__all__ = [
    "DISTINCT_ERROR",
    "EXACT_VALUES_MAX",
    "ORDER_COLUMN",
    "RANK_ERROR",
    "Aggregate",
    "MergeFailed",
    "adds_up",
    "decode",
    "distinct_bounds",
    "each_group_once",
    "empty_partial",
    "encode",
    "final",
    "from_polars",
    "merge_all",
    "merge_pair",
    "partial",
    "quantile_count",
    "quantile_rank",
    "quantile_states",
    "quantile_value",
    "read_head",
    "result_schema",
    "row_types",
    "totals",
    "with_row_types",
]
