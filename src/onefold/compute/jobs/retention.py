"""What is kept, and for how long: results by the tasks that name them, blobs by the results and runs that
name them.

A result lives as long as a task of a kept run names it; that is also how long a new run can take it over. A
blob that nothing names is put on the garbage list, from which the processes delete it; one that is named again
leaves the list.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from onefold import config
from onefold.compute.jobs import rows
from onefold.compute.jobs.rows import (
    Known,
    RunSpec,
    RunState,
    TableState,
    TaskState,
    decode,
    encode,
    name_key,
)
from onefold.compute.plan.stages import Result
from onefold.fold.api import Store, prefix_stop

ALL_LETTERS_VERSION = 2
"""From this fold version on, all dead letters that a task may have are kept."""
_RUN_TABLES = (rows.TASK, rows.OPEN, rows.CLAIM, rows.TRIES, rows.CHANGE, rows.DEAD, rows.UNFIT)


def letters_max(fold_version: int) -> int:
    """How many dead letters of a task are kept."""
    if fold_version < ALL_LETTERS_VERSION:
        return config.DEAD_LETTERS_KEPT_BEFORE_MAX
    return config.DEAD_LETTERS_KEPT_MAX


class Retention:
    """Keeps and drops while one operation (at ``offset``) is applied."""

    def __init__(self, store: Store, offset: int) -> None:
        self._store = store
        self._offset = offset

    # -- results ---------------------------------------------------------------------------------------------

    def keep_result(self, result_id: bytes, result: Result, letters_max: int) -> None:
        """Store a result that one task names. Its dead letters, the first ``letters_max``, are kept apart."""
        self._store.put(rows.RESULT, result_id, encode(msgspec.structs.replace(result, dead=())))
        if result.dead:
            kept = result.dead[:letters_max]
            self._store.put(rows.LETTERS, result_id, encode(kept))
        if result.blob is not None:
            self.name_blob(result.blob)

    def share_results(self, result_ids: Iterable[bytes]) -> None:
        """Count one more task for each of these results (one may occur several times)."""
        more: dict[bytes, int] = {}
        for result_id in result_ids:
            more[result_id] = more.get(result_id, 0) + 1
        before = self._store.get_many(rows.REFERENCE, more)
        counts = {key: decode(before[key], int) if key in before else 1 for key in more}
        self._store.put_many(rows.REFERENCE, [(key, encode(counts[key] + more[key])) for key in more])

    def drop_result(self, table: str, task: TaskState, known_as: bytes) -> None:
        """One task names this result no longer. With the last one it goes, and its table forgets it."""
        shared = self._store.get(rows.REFERENCE, task.result)
        count = decode(shared, int) if shared is not None else 1
        if count > 2:
            self._store.put(rows.REFERENCE, task.result, encode(count - 1))
            return
        if count == 2:
            self._store.delete(rows.REFERENCE, task.result)
            return
        self.forget(table, task.result, known_as)
        stored = self._store.get(rows.RESULT, task.result)
        if stored is not None:
            blob = decode(stored, Result).blob
            self._store.delete(rows.RESULT, task.result)
            if blob is not None:
                self.unname_blob(blob)
        if task.dead:
            self._store.delete(rows.LETTERS, task.result)

    def forget(self, table: str, result_id: bytes, known_as: bytes) -> None:
        """No later run of the table takes this result over."""
        key = name_key(table) + known_as
        known = self._store.get(rows.KNOWN, key)
        if known is not None and decode(known, Known).result == result_id:
            self._store.delete(rows.KNOWN, key)

    # -- blobs -----------------------------------------------------------------------------------------------

    def name_blob(self, blob: str) -> None:
        """Something names this blob. (An empty name is not a blob.)"""
        if not blob:
            return
        key = blob.encode()
        before = self._store.get(rows.BLOB, key)
        self._store.put(rows.BLOB, key, encode(decode(before, int) + 1 if before is not None else 1))
        if before is None:
            self._store.delete(rows.GARBAGE, key)

    def unname_blob(self, blob: str) -> None:
        """Something names this blob no longer."""
        if not blob:
            return
        key = blob.encode()
        before = self._store.get(rows.BLOB, key)
        count = decode(before, int) if before is not None else 1
        if count > 1:
            self._store.put(rows.BLOB, key, encode(count - 1))
            return
        self._store.delete(rows.BLOB, key)
        self._store.put(rows.GARBAGE, key, encode(self._offset))

    def sweep(self, blobs: Iterable[str]) -> tuple[str, ...]:
        """Take those that are garbage off the list and return them."""
        asked = list(dict.fromkeys(blobs))
        garbage = self._store.get_many(rows.GARBAGE, [blob.encode() for blob in asked])
        taken = tuple(blob for blob in asked if blob.encode() in garbage)
        for blob in taken:
            self._store.delete(rows.GARBAGE, blob.encode())
        return taken

    # -- runs ------------------------------------------------------------------------------------------------

    def name_run(self, spec: RunSpec) -> None:
        """Name the blobs of a new run."""
        for blob in (spec.plan, *spec.inputs, spec.explain):
            self.name_blob(blob)

    def retire_others(self, name: str, table: TableState) -> None:
        """The head of the table is done: give up the tasks and results of all its earlier runs.

        What the head's predecessor was made of (``explain``) stays, to tell why something was computed again.
        """
        others = [run for run in table.live if run != table.head]
        if not others:
            return
        before = decode(self._store.get(rows.SPEC, name_key(table.head)) or b"", RunSpec).previous
        self._release_explained(table)
        for run in others:
            self._retire(name, table, run, keep_explain=run == before)
        table.explained = before if before in others else None

    def retire_oldest(self, name: str, table: TableState) -> None:
        """Bound the kept runs of a table that never completes: give up the oldest one that was not done."""
        for run in table.live[:-1]:
            if run != table.done:
                self._retire(name, table, run, keep_explain=False)
                return

    def drop_table(self, name: str, table: TableState) -> None:
        """Forget all runs of a table."""
        for run in list(table.live):
            self._retire(name, table, run, keep_explain=False)
        self._release_explained(table)
        for run in table.past:
            self._erase(table, run)
        known = name_key(name)
        self._store.delete_range(rows.KNOWN, known, prefix_stop(known))

    def _retire(self, name: str, table: TableState, run: str, *, keep_explain: bool) -> None:
        table.live.remove(run)
        table.past.append(run)
        if len(table.past) > config.RUNS_PER_TABLE_KEPT:
            self._erase(table, table.past.pop(0))
        key = name_key(run)
        stop = prefix_stop(key)
        state = decode(self._store.get(rows.RUN, key) or b"", RunState)
        spec = decode(self._store.get(rows.SPEC, key) or b"", RunSpec)
        for task_key, data in self._store.scan(rows.TASK, key, stop):
            task = decode(data, TaskState)
            if task.result:
                stage, _ = rows.task_of(task_key)
                self.drop_result(name, task, rows.known_as(task.identity, state.stages[stage].upstream))
        for run_table in _RUN_TABLES:
            self._store.delete_range(run_table, key, stop)
        for blob in (spec.plan, *spec.inputs, *(() if keep_explain else (spec.explain,))):
            self.unname_blob(blob)
        state.kept = False
        self._store.put(rows.RUN, key, encode(state))

    def _release_explained(self, table: TableState) -> None:
        if table.explained is None:
            return
        stored = self._store.get(rows.SPEC, name_key(table.explained))
        if stored is not None:
            self.unname_blob(decode(stored, RunSpec).explain)
        table.explained = None

    def _erase(self, table: TableState, run: str) -> None:
        if table.explained == run:
            self._release_explained(table)
        key = name_key(run)
        self._store.delete(rows.RUN, key)
        self._store.delete(rows.SPEC, key)
        self._store.delete_range(rows.ERROR, key, prefix_stop(key))
