"""The numbers that folds use are part of what a fold version means.

Every replica and every rebuild folds the same records to the same rows, whichever release it is of. So one of these numbers
changes only together with a fold version: the earlier number stays for the earlier versions, as
``DEAD_LETTERS_KEPT_BEFORE_MAX`` does, and this list has both.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import onefold
from onefold import config
from onefold.available.fold import AvailableFold
from onefold.compute.jobs.fold import JobsFold
from onefold.fold.nodes.fold import NodesFold
from onefold.state.fold.machine import StateFold

SOURCE = Path(onefold.__file__).parent.parent
ROOTS = (
    "onefold.available.fold",
    "onefold.compute.jobs.fold",
    "onefold.state.fold.machine",
    "onefold.fold.nodes.fold",
    "onefold.store.replica",
)
NOT_FOLDED = ("onefold.log.", "onefold.machine.")
"""Modules of which folds take types alone."""
HOW_ROWS_ARE_STORED = (
    "onefold.store.paged_view",
    "onefold.store.pending",
    "onefold.store.writer",
    "onefold.store.tables",
)
"""Their own numbers say how rows are read and written, not which."""
VERSIONS = {"ap": 5, "jobs": 5, "state": 5, "nodes": 5}
CONFIG = {
    "ARCHIVES_KEPT": 1000,
    "BLOCKERS_TOLD_MAX": 16,
    "CLAIMS_PER_OPERATION_MAX": 1000,
    "CONSUMERS_PER_GROUP_MAX": 1024,
    "DEAD_LETTERS_KEPT_BEFORE_MAX": 1000,
    "DEAD_LETTERS_KEPT_MAX": 100000,
    "DIGESTS_KEPT": 8,
    "DIGEST_EVERY_OFFSETS": 4096,
    "ERRORS_PER_RUN_KEPT": 100,
    "EXPIRATIONS_PER_RECORD_MAX": 10000,
    "FAILURE_TEXT_CHARS_MAX": 20000,
    "HALT_REASON_CHARS_MAX": 500,
    "HASHES_KEPT": 4,
    "HASHES_TO_AGREE": 2,
    "HISTORY_PRUNE_EVERY_OFFSETS": 256,
    "HISTORY_WINDOW_OFFSETS": 10000,
    "JOB_STAGES_MAX": 64,
    "KEY_BYTES_MAX": 10000,
    "LIVE_DROPPED_RUNS_MAX": 1000,
    "LIVE_ERROR_CHARS_MAX": 2000,
    "LIVE_INLINE_BYTES_MAX": 65536,
    "LIVE_OUTBOX_COMMIT_BYTES_MAX": 33554432,
    "LIVE_PARTS_MAX": 100,
    "LIVE_POSITIONS_MAX": 4096,
    "LIVE_RUNS_PER_COMMIT_MAX": 1000,
    "LIVE_RUNS_PER_TABLE_MAX": 8,
    "LIVE_SCHEMA_BYTES_MAX": 1048576,
    "LIVE_SIGNATURE_BYTES_MAX": 262144,
    "LIVE_WORKERS_MAX": 1024,
    "LOCK_WAITERS_MAX": 10000,
    "MEMBERS_KEPT": 1000,
    "NAME_BYTES_MAX": 200,
    "NODES_MAX": 1000,
    "PREPARED_TRANSACTIONS_MAX": 1000,
    "PROCESS_DEATHS_MAX": 2,
    "QUEUE_ERRORS_KEPT": 10,
    "QUEUE_ERROR_CHARS_MAX": 2000,
    "REQUEST_ID_RETENTION_S": 86400.0,
    "RUNS_PER_TABLE_KEPT": 100,
    "SHARDS_MAX": 1024,
    "SNAPSHOTS_KEPT": 2,
    "STREAM_INLINE_BYTES_MAX": 16384,
    "STREAM_MERGE_BYTES_MAX": 4096,
    "STREAM_MERGE_MS": 1000,
    "STREAM_PARTITIONS_MAX": 1024,
    "STREAM_RETIRE_SEGMENTS_MAX": 1000,
    "SWEPT_BLOBS_MAX": 1000,
    "TASKS_AVOIDED_MAX": 1000,
    "TASKS_PER_JOB_MAX": 200000,
    "TOMBSTONE_OFFSETS": 10000,
    "TRANSACTION_OPERATIONS_MAX": 100000,
}
OWN = {
    "available.applying.CONFLICTS_BYTES_MAX": 67108864,
    "available.applying.CONFLICTS_KEPT": 10000,
    "available.applying.CONFLICTS_KEPT_MS": 604800000,
    "available.deciding.NAME_CHARS_MAX": 32,
    "available.out.DROPPED_PER_OPERATION_MAX": 1000,
    "available.out.KEPT_MS": 604800000,
    "available.out.OUT_BYTES_MAX": 10000000000,
    "available.out.OUT_EFFECTS_MAX": 20000000,
    "available.stamps.CLOCK_AHEAD_MAX_MS": 60000,
    "available.effects.CHAIN_BYTES": 16,
    "available.home._ENDS_MAX": 4611686018427387903,
    "available.kinds.shares.FIRST_OWNER": 1,
    "available.ops.INT_MAX": 9223372036854775807,
    "available.ops.NATURAL_MAX": 9007199254740991,
    "available.ops.SYNC_ROWS_MAX": 2000,
    "available.sync.joining.JOINED_BYTES_MAX": 1000000,
    "available.sync.joining.JOINED_ROWS_MAX": 1000,
    "available.sync.leaving.CLEARED_PER_OPERATION_MAX": 2000,
    "available.sync.leaving.LATER_PER_OPERATION_MAX": 100,
    "available.out._NONE": 9223372036854775808,
    "available.rows._HASH_BYTES": 16,
    "available.rows._HASH_MASK": 340282366920938463463374607431768211455,
    "available.stamps.COUNT_BITS": 16,
    "available.stamps.HLC_MAX": 4611686018427387903,
    "available.stamps.NUMBER_MAX": 65535,
    "available.stamps.SEQ_MAX": 9007199254740991,
    "codec.RECORD_FORMAT": 1,
    "compute.jobs.edit._CONTENT_MASK": 340282366920938463463374607431768211455,
    "compute.jobs.retention.ALL_LETTERS_VERSION": 2,
    "compute.jobs.rows.REOPENED": 0,
    "compute.jobs.rows.WAITING": 1,
    "compute.jobs.submit.IDENTITY_BYTES": 16,
    "compute.jobs.submit.NAME_CHARS_MAX": 512,
    "compute.jobs.submit.NUMBER_MAX": 35184372088832,
    "fold.api.NEVER": 9223372036854775808,
    "fold.authority.IN_FORCE_VERSION": 2,
    "store.exactly_once._CLIENTS_REMEMBERED": 16,
    "fold.nodes.fold._TEXT_CHARS_MAX": 200,
    "fold.nodes.ops.REGIONS_VERSION": 5,
    "fold.nodes.regions.NUMBER_MAX": 65535,
    "fold.nodes.rows.NUMBER_MAX": 4611686018427387904,
    "ids.REGIONS_MAX": 16,
    "store.replica._REFUSED_LISTED_MAX": 1000,
    "state.fold.streams.consumers._ID_CHARS_MAX": 100,
    "state.encoding.extensions.BIG_INT": 1,
    "state.encoding.extensions.DATE": 4,
    "state.encoding.extensions.DATETIME_AWARE": 3,
    "state.encoding.extensions.DATETIME_NAIVE": 2,
    "state.encoding.extensions.DECIMAL": 7,
    "state.encoding.extensions.TIME": 5,
    "state.encoding.extensions.TIMEDELTA": 6,
    "state.encoding.extensions.UUID_BYTES": 8,
    "state.encoding.keys._BYTES": 1,
    "state.encoding.keys._FALSE": 38,
    "state.encoding.keys._INT_BYTES_MAX": 255,
    "state.encoding.keys._INT_BYTES_SHORT": 8,
    "state.encoding.keys._NEGATIVE_LONG": 11,
    "state.encoding.keys._NESTED": 5,
    "state.encoding.keys._NULL": 0,
    "state.encoding.keys._POSITIVE_LONG": 29,
    "state.encoding.keys._STR": 2,
    "state.encoding.keys._TRUE": 39,
    "state.encoding.keys._ZERO": 20,
    "state.fold.locks.fold._PLACES": 16384,
    "state.fold.lock_table.EXCLUSIVE": 2,
    "state.fold.lock_table.SHARED": 1,
    "state.fold.ops.UNREAD": -1,
    "state.fold.queues.ops.QUEUE_RETURNS": 2,
    "state.fold.rows._MS_MAX": 4611686018427387903,
    "state.fold.shards.fold._ID_BYTES_MAX": 64,
    "state.fold.shards.fold._PRUNED_AT_ONCE": 4,
    "state.fold.streams.fold._COUNT_MAX": 2147483648,
    "state.fold.streams.rows.OFFSET_MAX": 4611686018427387904,
    "state.encoding.value_walk._INT_MAX": 18446744073709551615,
    "state.encoding.value_walk._INT_MIN": -9223372036854775808,
    "fold.api.NEWEST_VERSION": 5,
    "compute.jobs.ops.DROP_VERSION": 3,
    "compute.jobs.ops.NAMES_VERSION": 4,
    "state.fold.kind.NATURAL_MAX": 9007199254740991,
    "state.fold.live.lanes.LANES_MAX": 1024,
    "state.fold.live.ops.LIVE_VERSION": 3,
    "state.fold.live.ops.ENDINGS_VERSION": 4,
    "state.fold.live.ops.HOLDS_VERSION": 4,
    "state.fold.live.ops.NAMES_VERSION": 4,
    "state.fold.live.ops.STANDBY_VERSION": 4,
    "state.fold.streams.ops.STREAM_BLOBS_VERSION": 4,
    "state.fold.live.ops.TIME_MAX_US": 4611686018427387903,
    "state.fold.live.ops.WATERMARK_END_US": 4611686018427387904,
    "state.fold.blobs.BLOB_CHARS_MAX": 128,
    "state.fold.live.runs._ORDINALS": 65536,
}


def file_of(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split("."))
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.exists()), None)


def tree_of(module: str) -> ast.Module:
    path = file_of(module)
    assert path is not None
    return ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of this project that are imported when it runs, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onefold"):
            for name in node.names:
                below = f"{node.module}.{name.name}"
                yield below if file_of(below) else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("onefold"))


def fold_modules() -> dict[str, ast.Module]:
    """The folds, what applies records to them, and all that they import."""
    found: dict[str, ast.Module] = {}
    left = list(ROOTS)
    while left:
        module = left.pop()
        if module not in found and file_of(module) is not None and not module.startswith(NOT_FOLDED):
            tree = tree_of(module)
            typing_only = {
                id(inner)
                for node in ast.walk(tree)
                if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
                for part in node.body
                for inner in ast.walk(part)
            }
            for node in list(ast.walk(tree)):
                if id(node) in typing_only and isinstance(node, ast.Import | ast.ImportFrom):
                    node.names, node.module = [], ""  # type: ignore[union-attr]
            found[module] = tree
            left += imported(tree)
    return found


def config_used() -> set[str]:
    return {
        node.attr
        for tree in fold_modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "config"
        and node.attr.isupper()
    }


def own_numbers() -> dict[str, object]:
    """Numbers by name in the modules themselves."""
    found: dict[str, object] = {}
    for module, tree in fold_modules().items():
        if module == "onefold.config" or module in HOW_ROWS_ARE_STORED:
            continue
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                name, value = node.target.id, node.value
            else:
                continue
            try:
                number = eval(compile(ast.Expression(value), module, "eval"), {"__builtins__": {}})
            except Exception:
                continue
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[f"{module.removeprefix('onefold.')}.{name}"] = number
    return found


def test_the_folds_are_of_these_versions() -> None:
    """One that is raised gives its new numbers a line of their own below, beside the earlier ones."""
    folds = (AvailableFold(), JobsFold(), StateFold(), NodesFold())
    assert {fold.name: fold.version for fold in folds} == VERSIONS


def test_every_number_of_the_configuration_that_folds_use_is_listed() -> None:
    assert config_used() == set(CONFIG)


@pytest.mark.parametrize("name", CONFIG)
def test_a_number_changes_with_a_fold_version_only(name: str) -> None:
    assert getattr(config, name) == CONFIG[name], "another number takes another fold version"


def test_numbers_in_the_folds_themselves_change_with_a_fold_version_only() -> None:
    assert own_numbers() == OWN
