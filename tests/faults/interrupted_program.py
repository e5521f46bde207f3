"""A program whose main thread is interrupted by real signals at random moments, with the accounts of what it did.

Arguments: the space's URL, a seed, how many interrupts. It prints one JSON object, or what went wrong. Half of the interrupts are
KeyboardInterrupt, half an ordinary Exception, like a worker's soft time limit. Half of the time the handler uninstalls itself.
"""

import json
import os
import random
import signal
import sys
import threading
import time

import onefold as of

WAIT_S = 240


class SoftLimit(Exception):
    """What a handler raises."""


class Refused(of.Unavailable):
    """What a handler raises that uses the library's own errors: it says nothing of what it interrupts."""

    def __init__(self):
        super().__init__("the time is up")


INTERRUPTS = (KeyboardInterrupt, SoftLimit, Refused)


class Program:
    def __init__(self, url, seed, wanted):
        self.db = of.connect(url)
        self.rng = random.Random(seed)
        self.wanted = wanted
        self.hits = 0
        self.step = 0
        self.map = self.db.map("m")
        self.queue = self.db.queue("q", lease="1s", max_attempts=1 << 40)
        self.map["k"] = 0
        self.possible = {0}
        self.transfers = {(0, 0)}
        self.db.map("pair").update({"a": 0, "b": 0})
        self.put, self.maybe_put = set(), set()
        self.done, self.maybe_done = set(), set()

    def raise_one(self, *_):
        if self.rng.random() < 0.5:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as one does that is for one time only
        raise self.rng.choice(INTERRUPTS)

    def write(self):
        self.possible.add(self.step)
        self.map["k"] = self.step
        self.possible = {self.step} | (set() if self.db.url.startswith(("/", ".")) else self.possible)

    def read(self):
        seen = self.map["k"]
        assert seen in self.possible, f"read {seen}, possible are {sorted(self.possible)[-5:]}"

    def transfer(self):
        self.transfers.add((self.step, -self.step))
        with self.db.transaction() as tx:
            pair = tx.map("pair")
            pair["a"] = self.step
            pair["b"] = -self.step

    def look(self):
        with self.db.transaction(read_only=True) as tx:
            pair = tx.map("pair")
            seen = (pair["a"], pair["b"])
        assert seen in self.transfers, f"half of a transaction: {seen}"

    def enqueue(self):
        self.maybe_put.add(self.step)
        self.queue.put(self.step)
        self.put.add(self.step)

    def dequeue(self):
        with self.queue.get(timeout=0) as message:
            if message is None:
                return
            number = message.value
            assert number not in self.done, f"message {number} was acknowledged, and came again"
            self.maybe_done.add(number)
        self.done.add(number)

    def storm(self):
        actions = [self.write, self.read, self.transfer, self.look, self.enqueue, self.dequeue]
        end = time.monotonic() + WAIT_S
        while self.hits < self.wanted and time.monotonic() < end:
            self.step += 1
            action = self.rng.choice(actions)
            signal.signal(signal.SIGALRM, self.raise_one)
            try:
                signal.setitimer(
                    signal.ITIMER_REAL, self.rng.uniform(0.00002, self.rng.choice((0.0005, 0.002, 0.006)))
                )
                action()
                while True:
                    pass  # it comes now, at the latest
            except INTERRUPTS:
                self.hits += 1
            except of.Conflict:
                signal.setitimer(
                    signal.ITIMER_REAL, 0
                )  # the lease was over, or another try of its own was faster
        signal.setitimer(signal.ITIMER_REAL, 0)

    def account(self):
        """No message is lost, and none that was acknowledged comes again."""
        drained = set()
        while self.queue.counts().ready or self.queue.counts().in_flight:
            with self.queue.get(timeout=5) as message:
                if message is not None:
                    assert message.value not in self.done, f"message {message.value} came again"
                    drained.add(message.value)
        lost = self.put - self.done - self.maybe_done - drained
        assert not lost, f"lost messages {sorted(lost)[:5]}"
        assert drained | self.done <= self.maybe_put

    def finish(self):
        """It works as before, in this thread and in others."""
        self.read()
        self.look()
        self.account()
        self.map["k"] = -1
        failed = []
        thread = threading.Thread(target=lambda: failed.append(self.map.put("t", 1)))
        thread.start()
        thread.join(WAIT_S)
        assert failed, "another thread of the process cannot write"


def main(url, seed, wanted):
    program = Program(url, int(seed), int(wanted))
    program.storm()
    program.finish()
    print(json.dumps({"hits": program.hits, "messages": len(program.done)}), flush=True)
    before = time.monotonic()
    os.read(0, 1)  # until another process has written
    assert program.map["other"] == 1
    program.db.close()
    assert time.monotonic() >= before


if __name__ == "__main__":
    main(*sys.argv[1:])
