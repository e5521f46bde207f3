"""Workers of a live job killed with -9, and stopped for longer than the lease: each number is in the output once."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import onefold as of
from onefold.errors import OnefoldError
from onefold.state.fold.live import rows
from support.live_counting import begun, output

pytestmark = pytest.mark.faults
WORKER = Path(__file__).with_name("live_bundle_worker.py")
UPTO, LEASE_S, SEED, SOON_S = 240, 0.4, 3, 120.0


class Stand:
    """A job in a folder, and processes that work on it."""

    def __init__(self, directory, stack):
        self.directory, self.stack = directory, stack
        self.db = stack.enter_context(of.connect(directory))
        self.job = begun(self.db._state)

    def worker(self):
        program = [sys.executable, WORKER, self.directory, str(UPTO), str(LEASE_S)]
        process = subprocess.Popen(program)
        self.stack.callback(lambda: (process.kill(), process.wait()))
        return process

    def bundles(self):
        with self.job.view() as view:
            return [one.row for one in rows.bundles(view, rows.part_key("job", 1, "count"))]

    def done(self):
        return (
            sum(bin(int.from_bytes(row.lanes)).count("1") * row.positions[0].next for row in self.bundles())
            // 4
        )

    def stop(self, process):
        """Stop it, and not in the middle of a commit: in a folder that would stop everybody."""
        for number in range(50):
            process.send_signal(signal.SIGSTOP)
            patience_s = 0.3 + number / 20  # a slow machine may need longer, though nobody is in its way
            with contextlib.suppress(OnefoldError), of.connect(self.directory, timeout=patience_s) as other:
                other._state.tick(0)
                return process
            process.send_signal(signal.SIGCONT)
        raise AssertionError("it is always in a commit")

    def wait(self, condition):
        deadline = time.monotonic() + SOON_S
        while not condition():
            assert time.monotonic() < deadline, [
                (r.owner, r.lanes, r.seq, r.positions[0].next) for r in self.bundles()
            ]
            time.sleep(0.01)


def test_killed_and_stopped_workers_lose_and_double_nothing(tmp_path):
    chance = random.Random(SEED)
    with ExitStack() as stack:
        stand = Stand(tmp_path / "space", stack)
        workers = [stand.worker(), stand.worker()]
        for share in (0.15, 0.35, 0.55):
            stand.wait(lambda share=share: stand.done() > share * UPTO)
            killed = workers.pop(chance.randrange(len(workers)))
            killed.kill()
            workers.append(stand.worker())
        stand.wait(lambda: stand.done() > 0.7 * UPTO)
        stopped = stand.stop(workers.pop(0))
        workers.append(stand.worker())
        stand.wait(lambda: stand.done() >= UPTO)
        stopped.send_signal(signal.SIGCONT)
        assert all(process.wait(SOON_S) == 0 for process in (stopped, *workers))
        assert sorted(output(stand.db._state)) == [*range(UPTO)]
        assert sum(row.seq for row in stand.bundles()) > 10
