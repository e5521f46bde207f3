"""A simulated world around the jobs fold: workers, observers, a user, a sweeper and a log, all driven by one seed.

First everything fails (``faults``): processes die before and after each append, replies are lost, appends arrive late or
twice, blobs vanish, runs are cancelled and superseded, garbage is appended. Then the world is healed and the last
submission has to finish (``heal``), with exactly the records of its splits. See ``jobs_checker`` for what must always hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from kit.jobs.checker import Checker
from kit.jobs.plans import SHAPES, Content, Submission, short_hash
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.fold import JobsFold
from onefold.compute.jobs.read_rows import RunRow
from onefold.compute.plan.stages import DeadLetter, Failure, Result
from onefold.fold.api import Context
from onefold.testing.memory_store import MemoryStore

TABLE = "table"
_decode_outcome = msgspec.msgpack.Decoder(ops.Outcome).decode


@dataclass
class Held:
    """A task that a worker has in progress."""

    run: str
    task: ops.Assignment
    result: Result | None = None


@dataclass
class Worker:
    """A process with one slot. A stalled one wakes up later and continues as if nothing had happened: a zombie."""

    name: str
    held: list[Held] = field(default_factory=list)
    alive: bool = True
    stalled: int = 0


class World:
    """Everything that happens under one seed. ``fold`` may be a planted one."""

    def __init__(self, seed: int, fold: JobsFold | None = None) -> None:
        self.random = random.Random(seed)
        self.fold = fold if fold is not None else JobsFold()
        self.store = MemoryStore()
        self.log: list[bytes] = []
        self.late: list[ops.Operation] = []
        self.blobs: dict[str, bytes] = {}
        self.runs: dict[str, Submission] = {}
        self.workers: list[Worker] = []
        self.shape = self.random.choice(SHAPES)
        self.skip = self.random.random() < 0.4
        self.salted = self.random.random() < 0.6
        self.max_attempts = self.random.randint(1, 3)
        self.careless = self.random.random() < 0.3
        self.fixed = False
        self.faulty = True
        self.splits: dict[str, int] = {}
        self.counter = 0
        self.run = ""
        self.checker = Checker(self)
        for _ in range(self.random.randint(2, 4)):
            self._start_worker()
        self._change_splits(first=True)

    # -- the log -----------------------------------------------------------------------------------------------

    def append(self, operation: ops.Operation) -> ops.Outcome:
        """Apply an operation, under the eyes of the checker."""
        return self.append_bytes(msgspec.msgpack.encode(operation), operation)

    def append_bytes(self, body: bytes, operation: ops.Operation | None = None) -> ops.Outcome:
        """Apply any bytes."""
        self.checker.before(operation)
        self.log.append(body)
        context = Context(len(self.log), 0, len(self.log) * 10, "client", None)
        outcome: ops.Outcome = _decode_outcome(self.fold.apply(self.store, context, body, 1))
        self.checker.after(operation, outcome)
        return outcome

    def send(self, operation: ops.Operation) -> ops.Outcome | None:
        """Append over a bad network: None when the reply is lost; the operation may have happened, or may happen later."""
        chance = self.random.random() if self.faulty else 1.0
        if chance < 0.04:
            return None
        if chance < 0.10:
            self.late.append(operation)
            return None
        outcome = self.append(operation)
        if chance < 0.16:
            return None
        if chance < 0.20:
            self.append(operation)
        return outcome

    def replayed_digest(self) -> bytes:
        """The state of another replica that applies the same log."""
        store = MemoryStore()
        for number, body in enumerate(self.log, 1):
            self.fold.apply(store, Context(number, 0, number * 10, "client", None), body, 1)
        return store.digest()

    # -- the two phases ----------------------------------------------------------------------------------------

    def faults(self, steps: int) -> None:
        """Let everything go wrong for a while."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (60, self._some_worker), (8, self._observe), (7, self._user), (4, self._lose_blob), (3, self._deliver_late),
            (2, self._kill_or_stall), (2, self._start_worker), (2, self._sweep), (2, self._garbage), (2, self._backup),
            (2, self._lose_after_the_end),
            (3, self.checker.check_all),
        ]  # fmt: skip
        chosen = self.random.choices([do for _, do in actions], [weight for weight, _ in actions], k=steps)
        self._submit()
        for do in chosen:
            do()

    def heal(self, steps: int) -> None:
        """Stop the faults; the last submission has to finish. Raises AssertionError when it does not."""
        self.faulty = False
        for operation in self.late:
            self.append(operation)
        self.late.clear()
        for worker in self.workers:
            worker.stalled = 0
        self._start_worker()
        for step in range(steps):
            if self._finished():
                break
            self._some_worker()
            if step % 5 == 0:
                self._observe()
                self.fixed = True
            if step % 20 == 0:
                self._drive()
            if step % 50 == 0:
                self.checker.check_all()
        else:
            raise AssertionError(f"no progress in {steps} steps: {state.read_run(self.store, self.run)}")
        self._sweep()
        self.checker.check_all()
        self.checker.check_end()

    def contents(self, run: str, stage: int) -> dict[int, Content] | None:
        """The finished tasks' contents, or None when a blob is missing."""
        found: dict[int, Content] = {}
        for index, task in state.results(self.store, run, stage).items():
            data = task.result.inline if task.result.blob is None else self.blobs.get(task.result.blob)
            if data is None:
                return None
            found[index] = msgspec.msgpack.decode(data, type=Content)
        return found

    def _finished(self) -> bool:
        run = state.read_run(self.store, self.run)
        table = state.read_table(self.store, TABLE)
        if run is None or table is None or run.state != "done" or table.head != self.run:
            return False
        return all(self._report_lost(self.run, stage) for stage in self.runs[self.run].last_stages())

    def _report_lost(self, run: str, stage: int) -> bool:
        whole = True
        for index, task in state.results(self.store, run, stage).items():
            if task.result.blob is not None and task.result.blob not in self.blobs:
                whole = False
                self.send(ops.Lost(run, stage, index, task.result.blob))
        return whole

    # -- workers -----------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        if sum(worker.alive for worker in self.workers) < 5:
            self.workers.append(Worker(f"m{len(self.workers)}/0"))

    def _some_worker(self) -> None:
        alive = [worker for worker in self.workers if worker.alive]
        if not alive:
            return
        worker = self.random.choice(alive)
        if worker.stalled:
            worker.stalled -= 1
        elif worker.held:
            self._work(worker, self.random.choice(worker.held))
        else:
            self._claim(worker, ops.Claim(self._any_run(), worker.name, self.random.choice((1, 1, 2, 4))))

    def _claim(self, worker: Worker, operation: ops.Claim) -> None:
        outcome = self.send(operation)
        if isinstance(outcome, ops.Accepted):
            worker.held.extend(Held(operation.run, task) for task in outcome.assignments)

    def _work(self, worker: Worker, held: Held) -> None:
        run, task = held.run, held.task
        place = (run, task.stage, task.index, task.epoch)
        if self.faulty and self.random.random() < 0.02:
            worker.held.remove(held)
            self.send(ops.Release(*place))
            return
        if held.result is None:
            self._execute(worker, held)
            return
        outcome = self.send(ops.Done(*place, held.result))
        if self.faulty and self.random.random() < 0.04:
            worker.alive = False
        elif outcome is not None and not (self.faulty and self.random.random() < 0.05):
            worker.held.remove(held)

    def _execute(self, worker: Worker, held: Held) -> None:
        run, task = held.run, held.task
        submission = self.runs[run]
        inputs: dict[int, list[Content]] = {}
        failure: Failure | None = None
        for need in submission.shape[task.stage][1]:
            contents = self.contents(run, need)
            if contents is None or (len(contents) < len(submission.tasks[need]) and not self.careless):
                self._report_lost(run, need)
                worker.held.remove(held)
                self.send(ops.Release(run, task.stage, task.index, task.epoch))
                return
            inputs[need] = [contents[index] for index in sorted(contents)]
        salt = self.random.randint(0, 1) if self.salted else 0
        content = submission.compute(task.stage, task.index, inputs, salt)
        dead: tuple[DeadLetter, ...] = ()
        if submission.shape[task.stage][0] is None:
            poison = [record for record in content.records if record.endswith("!")]
            if poison and (self.skip or not self.fixed):
                if task.skip_errors:
                    dead = tuple(DeadLetter("somewhere", record, "poison") for record in poison)
                    kept = tuple(record for record in content.records if record not in poison)
                    content = msgspec.structs.replace(content, records=kept)
                else:
                    failure = Failure("poison", record=poison[0], final=task.isolate and not self.skip)
            elif any(record.endswith("#") for record in content.records) and not task.isolate:
                failure = Failure("process died", died=True)
        if failure is None and self.faulty and self.random.random() < 0.03:
            failure = Failure("flaky")
        if failure is not None:
            worker.held.remove(held)
            self.send(ops.Failed(run, task.stage, task.index, task.epoch, failure))
            return
        held.result = self._store(submission, held, content, dead)

    def _store(
        self, submission: Submission, held: Held, content: Content, dead: tuple[DeadLetter, ...]
    ) -> Result:
        data = msgspec.msgpack.encode(content)
        task = held.task
        rows = (
            len(self.runs[held.run].records(submission.tasks[task.stage][task.index]))
            if self._source(task)
            else 0
        )
        if int(short_hash(submission.tasks[task.stage][task.index].encode()), 16) % 4 == 0:
            return Result(inline=data, rows_in=rows, bytes_in=rows * 3, dead=dead)
        blob = short_hash(data)
        self.blobs[blob] = data
        return Result(blob=blob, rows_in=rows, bytes_in=rows * 3, dead=dead)

    def _source(self, task: ops.Assignment) -> bool:
        return self.shape[task.stage][0] is None

    def _kill_or_stall(self) -> None:
        worker = self.random.choice(self.workers)
        if self.random.random() < 0.5:
            worker.alive = False
        else:
            worker.stalled = self.random.randint(3, 15)

    def _backup(self) -> None:
        claims = state.claims(self.store, self.run)
        alive = [worker for worker in self.workers if worker.alive and not worker.stalled]
        if claims and alive:
            claim = self.random.choice(claims)
            worker = self.random.choice(alive)
            backup = (claim.stage, claim.index, claim.epoch)
            self._claim(worker, ops.Claim(self.run, worker.name, 1, backup))

    # -- observers and the log's other users -------------------------------------------------------------------

    def _observe(self) -> None:
        """Expire claims of the dead and, while clocks are bad, of the living now and then."""
        working = {worker.name: worker for worker in self.workers if worker.alive}
        for run in (self.run, self._any_run()):
            for claim in state.claims(self.store, run):
                worker = working.get(claim.worker)
                mine = worker is not None and any(
                    held.run == run and (held.task.stage, held.task.index, held.task.epoch)
                    == (claim.stage, claim.index, claim.epoch)
                    for held in worker.held
                )  # fmt: skip
                suspect = worker is None or not mine or (self.faulty and worker.stalled > 0)
                if suspect or (self.faulty and self.random.random() < 0.03):
                    self.send(ops.Expire(run, claim.stage, claim.index, claim.epoch))
        self.send(ops.Renew(self.random.choice(self.workers).name))

    def _deliver_late(self) -> None:
        if self.late:
            self.append(self.late.pop(self.random.randrange(len(self.late))))

    def _lose_blob(self) -> None:
        """One blob, or all of a stage, as when a machine goes; often somebody notices."""
        run = state.read_run(self.store, self.run)
        if run is None:
            return
        self._lose(run, self.random.randrange(len(run.stages)), all_of_it=self.random.random() < 0.3)

    def _lose_after_the_end(self) -> None:
        """A finished run loses what nobody reads any more; the same job runs again and loses something else."""
        run = state.read_run(self.store, self.run)
        if run is None or run.state != "done" or len(run.stages) == 1:
            return
        self._lose(run, 0, all_of_it=True)
        self._submit()
        again = state.read_run(self.store, self.run)
        if again is not None and again.state == "done":
            self._lose(again, len(again.stages) - 1, all_of_it=False)

    def _lose(self, run: RunRow, stage: int, *, all_of_it: bool) -> None:
        named = [task.result.blob for task in state.results(self.store, run.id, stage).values()]
        there = sorted({blob for blob in named if blob in self.blobs and blob is not None})
        for blob in there if all_of_it else there[:1]:
            del self.blobs[blob]
        if self.random.random() < 0.7:
            self._report_lost(run.id, stage)

    def _sweep(self) -> None:
        garbage = sorted(state.garbage(self.store))
        if garbage:
            outcome = self.append(
                ops.Swept(tuple(self.random.sample(garbage, self.random.randint(1, len(garbage)))))
            )
            assert isinstance(outcome, ops.Accepted)
            for blob in outcome.blobs:
                self.blobs.pop(blob, None)

    def _garbage(self) -> None:
        """Append what nobody should: random bytes, damaged and old operations."""
        body = self.random.choice(self.log) if self.log else b"x"
        kind = self.random.randrange(3)
        if kind == 0:
            body = self.random.randbytes(self.random.randint(0, 30))
        elif kind == 1 and body:
            damaged = bytearray(body)
            damaged[self.random.randrange(len(damaged))] ^= 1 << self.random.randrange(8)
            body = bytes(damaged)
            if isinstance(self.checker.decode(body), ops.Done | ops.Submit):
                body = body[
                    :-1
                ]  # a result or plan that looks whole but is not: what the record's checksum is for
        self.append_bytes(body, self.checker.decode(body))

    # -- the user ----------------------------------------------------------------------------------------------

    def _any_run(self) -> str:
        return self.run if self.random.random() < 0.95 else self.random.choice(list(self.runs))

    def _user(self) -> None:
        run = state.read_run(self.store, self.run)
        action = self.random.random()
        if run is None or run.state == "done" or action < 0.15:
            if self.random.random() < 0.7:
                self._change_splits()
            self._submit()
        elif action < 0.3:
            self.send(ops.Cancel(self.run, "changed my mind"))
        elif run.state in ("failed", "cancelled"):
            self.send(ops.Resume(self.run, "m0"))

    def _drive(self) -> None:
        """After healing: see to it that the last submission is the table's head and runs."""
        run = state.read_run(self.store, self.run)
        table = state.read_table(self.store, TABLE)
        if run is None or table is None or table.head != self.run:
            self._submit(calm=True)
        elif run.state in ("failed", "cancelled"):
            self.append(ops.Resume(self.run, "m0"))

    def _change_splits(self, first: bool = False) -> None:
        """Add, change and remove files."""
        for stage, (partitions, _) in enumerate(self.shape):
            if partitions is not None:
                continue
            for number in range(self.random.randint(2, 5) if first else self.random.randint(0, 1)):
                self.splits[f"s{stage}-{self.counter}-{number}"] = 1
                self.counter += 1
        for split in sorted(self.splits):
            if not first and self.random.random() < 0.12:
                self.splits[split] += 1
            elif not first and self.random.random() < 0.12:
                del self.splits[split]

    def _submit(self, calm: bool = False) -> None:
        self.counter += 1
        name = f"run{self.counter}"
        order: list[tuple[str, ...]] = []
        for stage, (partitions, _) in enumerate(self.shape):
            if partitions is None:
                tasks = sorted(split for split in self.splits if split.startswith(f"s{stage}-"))
            else:
                tasks = [str(number) for number in range(partitions)]
            self.random.shuffle(tasks)
            order.append(tuple(tasks))
        submission = Submission(self.shape, dict(self.splits), tuple(order))
        identities: list[tuple[bytes, ...]] = []
        for stage, tasks_of_stage in enumerate(order):
            identities.append(tuple(self._identity(submission, stage, task) for task in tasks_of_stage))
        table = state.read_table(self.store, TABLE)
        mode: Literal["continue", "replace", "error"] = "continue"
        if not calm and self.random.random() < 0.1:
            mode = "replace"
        operation = ops.Submit(
            run=name,
            table=TABLE,
            sink="table",
            mode=mode,
            version="1",
            digest="digest",
            columns=("record",),
            plan="plan",
            seed=self.counter,
            on_error="skip" if self.skip else "fail",
            max_attempts=self.max_attempts,
            stages=tuple(
                ops.StageSpec(
                    identities[stage], needs, f"inputs-{name}-{stage}", tuple(7 for _ in identities[stage])
                )
                for stage, (_, needs) in enumerate(self.shape)
            ),
            member="m0",
            expect=table.head if table is not None else None,
            supersede=calm or self.random.random() < 0.6,
            explain=f"explain-{name}",
        )
        self.runs[name] = submission
        self.run = self.run or name
        outcome = self.append(operation) if calm else self.send(operation)
        if isinstance(outcome, ops.Accepted):
            self.run = outcome.run

    def _identity(self, submission: Submission, stage: int, task: str) -> bytes:
        """Eight bytes of which task it is, eight of what is in it."""
        content = str(submission.splits.get(task, ""))
        return bytes.fromhex(short_hash(f"{stage}/{task}".encode())[:16] + short_hash(content.encode())[:16])


def simulate(seed: int, fold: JobsFold | None = None, **options: Any) -> World:
    """One whole life of a world; raises AssertionError with what went wrong."""
    world = World(seed, fold)
    world.faults(options.get("steps", 400))
    world.heal(options.get("heal_steps", 4000))
    return world
