"""What must hold in every world of the jobs fold, whatever happened to it.

``before`` and ``after`` look at each operation; ``check_all`` looks at the whole state (it is called now and then);
``check_end`` compares the healed world with a batch computation and with a second replica. A violation is an
AssertionError that says what was seen.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from onefold import config
from onefold.compute.jobs import ops, rows, state
from onefold.compute.jobs.read_rows import RunRow, TaskRow
from onefold.compute.jobs.rows import RunSpec, TableState, TaskState, decode
from onefold.compute.plan.stages import Result

if TYPE_CHECKING:
    from kit.jobs.world import World

_decoder: msgspec.msgpack.Decoder[ops.Operation] = msgspec.msgpack.Decoder(ops.Operation)

Place = tuple[str, int, int]


class Checker:
    """Follows one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.epochs: dict[Place, int] = {}
        self.failures: Counter[Place] = Counter()
        self.accepted: set[tuple[str, int, int, int]] = set()
        self.named: set[str] = set()
        self.swept: set[str] = set()
        self.seen: dict[str, tuple[int, dict[tuple[int, int], Result | None]]] = {}
        self._digest = b""
        self._task: TaskRow | None = None
        self._open: set[tuple[int, int]] = set()
        self._head_done: set[bytes] = set()

    def decode(self, body: bytes) -> ops.Operation | None:
        """The operation in these bytes, or None."""
        try:
            return _decoder.decode(body)
        except (msgspec.MsgspecError, ValueError):
            return None

    # -- one operation -----------------------------------------------------------------------------------------

    def before(self, operation: ops.Operation | None) -> None:
        """Remember what the operation may change."""
        store = self.world.store
        self._task = None
        match operation:
            case ops.Done() | ops.Failed() | ops.Expire() | ops.Release() | ops.Lost():
                self._task = self._read(operation.run, operation.stage, operation.index)
            case ops.Claim():
                self._open = {
                    (task.stage, task.index)
                    for stage in range(len(self.world.shape))
                    for task in state.read_tasks(store, operation.run, stage)
                    if task.state != "done"
                }
            case ops.Submit():
                self._head_done = set()
                table = state.read_table(store, operation.table)
                if state.read_run(store, operation.run) is not None:
                    table = None  # a repeated submission takes nothing over again
                for stage in range(len(self.world.shape)) if table is not None else ():
                    if not self.world.shape[stage][1]:
                        tasks = state.read_tasks(store, table.head, stage)  # type: ignore[union-attr]
                        self._head_done |= {task.identity for task in tasks if task.state == "done"}

    def after(self, operation: ops.Operation | None, outcome: ops.Outcome) -> None:
        """Check what the operation did."""
        if operation is None:
            assert isinstance(outcome, ops.Refused), f"garbage was accepted: {outcome}"
        if isinstance(outcome, ops.Refused):
            return
        match operation:
            case ops.Claim():
                for assignment in outcome.assignments:
                    self._check_assignment(operation, assignment)
            case ops.Done():
                self._check_done(operation)
            case ops.Failed():
                self.failures[operation.run, operation.stage, operation.index] += 1
            case ops.Resume():
                for place in [place for place in self.failures if place[0] == operation.run]:
                    if outcome.state == "running" and not state.tries(self.world.store, operation.run):
                        del self.failures[place]
            case ops.Submit():
                self._check_submitted(operation, outcome)
            case ops.Swept():
                self.swept |= set(outcome.blobs)

    def _check_assignment(self, operation: ops.Claim, assignment: ops.Assignment) -> None:
        place = (operation.run, assignment.stage, assignment.index)
        assert place[1:] in self._open, f"a finished task was handed out: {place}"
        assert assignment.epoch > self.epochs.get(place, 0), f"epoch went back: {place} {assignment}"
        self.epochs[place] = assignment.epoch
        attempt = self.failures[place] + 1
        assert assignment.attempt == attempt, f"{place} failed {attempt - 1} times, but: {assignment}"
        run = state.read_run(self.world.store, operation.run)
        assert run is not None
        bound = 2 * run.max_attempts + config.PROCESS_DEATHS_MAX + 3
        assert attempt <= bound, f"{place} was tried {attempt} times"
        for need in self.world.shape[assignment.stage][1]:
            assert run.stages[need].state == "done", (
                f"{place} was handed out before stage {need} was complete"
            )

    def _check_done(self, operation: ops.Done) -> None:
        assert self._task is not None
        place = (operation.run, operation.stage, operation.index)
        assert operation.epoch <= self.epochs.get(place, 0), f"{place}: nobody has epoch {operation.epoch}"
        key = (*place, self._task.fence)
        assert key not in self.accepted, f"two results were accepted for {place} at one fence"
        self.accepted.add(key)
        if operation.result.blob is not None:
            self.named.add(operation.result.blob)
            self.swept.discard(operation.result.blob)

    def _check_submitted(self, operation: ops.Submit, outcome: ops.Accepted) -> None:
        run = state.read_run(self.world.store, operation.run)
        if outcome.run != operation.run or run is None or not run.kept or operation.mode == "replace":
            return
        for stage, spec in enumerate(operation.stages):
            finished = state.results(self.world.store, operation.run, stage)
            for index, identity in enumerate(spec.tasks):
                if identity in self._head_done:
                    assert index in finished, (
                        f"a finished task of the head was not taken over: {stage}/{index}"
                    )

    def _read(self, run: str, stage: int, index: int) -> TaskRow | None:
        if not (0 <= stage < 64 and 0 <= index < 1000):
            return None
        tasks = state.read_tasks(self.world.store, run, stage, index, index + 1)
        return tasks[0] if tasks else None

    # -- the whole state ---------------------------------------------------------------------------------------

    def check_all(self) -> None:
        """Counters, queues, sequences, names of blobs, and that results fit to the inputs in force."""
        for run in state.list_runs(self.world.store):
            if run.kept:
                self._check_counters(run)
                self._check_changes(run)
        self._check_blobs()
        table = state.read_table(self.world.store, "table")
        if table is not None:
            self._check_contents(table.head)

    def _check_counters(self, run: RunRow) -> None:
        store = self.world.store
        claims = Counter((claim.stage, claim.index) for claim in state.claims(store, run.id))
        queued = Counter(rows.task_of(key) for key, _ in store.scan(rows.OPEN, *_range(run.id)))
        assert not [place for place, count in (*claims.items(), *queued.items()) if count > 2]
        assert run.state == "running" or not claims, f"{run.id} is {run.state} and has claims"
        dead = 0
        for stage in run.stages:
            tasks = state.read_tasks(store, run.id, stage.index)
            finished = state.results(store, run.id, stage.index)
            own = [task.result for task in finished.values() if not task.reused]
            seen = (stage.count, stage.done, stage.reused, stage.rows, stage.bytes, stage.cost_done)
            counted = (
                len(tasks), len(finished), len(finished) - len(own), sum(result.rows_in for result in own),
                sum(result.bytes_in for result in own), 7 * len(finished),
            )  # fmt: skip
            assert seen == counted, f"{run.id} stage {stage.index} counts {seen}, there are {counted}"
            dead += sum(task.dead for task in tasks)
            for task in tasks:
                place = (task.stage, task.index)
                expected = {"open": (1, 0), "claimed": (0, len(task.claims)), "done": (0, 0)}[task.state]
                assert (queued[place], claims[place]) == expected, (
                    f"{run.id}: {task} is queued or claimed wrongly"
                )
        letters = [error for error in state.errors(store, run.id, 1000) if error.kind == "dead"]
        assert run.dead == dead == len(letters)

    def _check_changes(self, run: RunRow) -> None:
        """Every task stands in the change sequence at most once, and following it gives the results."""
        store = self.world.store
        places = [decode(data, tuple) for _, data in store.scan(rows.CHANGE, *_range(run.id))]
        assert len(places) == len(set(places)), f"{run.id}: a task is listed twice: {places}"
        after, known = self.seen.get(run.id, (0, {}))
        for change in state.changes(store, run.id, after):
            assert change.sequence > after
            after = change.sequence
            known[change.stage, change.index] = change.result
        assert after == run.changes
        self.seen[run.id] = (after, known)
        results = {
            (stage.index, index): task.result
            for stage in run.stages
            for index, task in state.results(store, run.id, stage.index).items()
        }
        followed = {place: result for place, result in known.items() if result is not None}
        assert followed == results, f"{run.id}: following the changes gives other results"

    def _check_blobs(self) -> None:
        store = self.world.store
        named: Counter[str] = Counter()
        result_ids = set()
        for key, data in store.scan(rows.TABLE):
            table = decode(data, TableState)
            for run in (*table.live, *([table.explained] if table.explained else ())):
                spec = decode(store.get(rows.SPEC, rows.name_key(run)) or b"", RunSpec)
                named[spec.explain] += 1
                if run in table.live:
                    named.update((spec.plan, *spec.inputs))
            assert rows.name_of(key)
        for _, data in store.scan(rows.TASK):
            task = decode(data, TaskState)
            if task.result:
                result_ids.add(task.result)
        stored = {key for key, _ in store.scan(rows.RESULT)}
        assert stored == result_ids, "results are kept that nobody names, or named that are not kept"
        for _, data in store.scan(rows.RESULT):
            blob = decode(data, Result).blob
            if blob is not None:
                named[blob] += 1
        counted = {key.decode(): decode(data, int) for key, data in store.scan(rows.BLOB)}
        assert counted == dict(named), f"names of blobs are counted wrongly: {counted} {dict(named)}"
        garbage = set(state.garbage(store))
        assert not garbage & set(named), f"garbage is named: {garbage & set(named)}"
        leaked = self.named - set(named) - garbage - self.swept
        assert not leaked, f"blobs that nobody names are not garbage: {leaked}"

    def _check_contents(self, run: str) -> None:
        """Each finished task's content is what its inputs in force give."""
        submission = self.world.runs[run]
        every = [self.world.contents(run, stage) for stage in range(len(submission.shape))]
        for stage, (partitions, needs) in enumerate(submission.shape):
            contents = every[stage]
            upstream = {need: every[need] for need in needs}
            whole = all(
                part is not None and len(part) == len(submission.tasks[need])
                for need, part in upstream.items()
            )
            if contents is None or not whole:
                continue
            inputs = {
                need: [part[i] for i in sorted(part)] for need, part in upstream.items() if part is not None
            }
            for index, content in contents.items():
                fresh = submission.compute(stage, index, inputs, content.salt)
                records = fresh.records
                if partitions is None and self.world.skip:
                    records = tuple(record for record in records if not record.endswith("!"))
                same = (content.records, content.read) == (records, fresh.read)
                assert same, (
                    f"{run} stage {stage} task {index} was computed from other inputs than those in force"
                )

    # -- the end -----------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """The healed world's result is the batch result, and a second replica has the same state."""
        world = self.world
        submission = world.runs[world.run]
        for stage in submission.last_stages():
            contents = world.contents(world.run, stage)
            assert contents is not None
            found = sorted(record for content in contents.values() for record in content.records)
            expected = submission.expected(stage, world.skip)
            assert found == expected, (
                f"stage {stage}: {Counter(found) - Counter(expected)} too many, missing: "
                + str(Counter(expected) - Counter(found))
            )
        assert world.replayed_digest() == world.store.digest(), "a second replica has another state"


def _range(run: str) -> tuple[bytes, bytes]:
    return rows.name_key(run), run.encode() + b"\1"
