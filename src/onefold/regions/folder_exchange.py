"""The exchange between the regions of a folder: a thread that has all of them pull from each other.

Every process that has a region open for writing has one, where there are several regions. For each region it pulls for, it
has the lock of ``exchange.lock`` in that region's folder, so only one process does. The others look from time to time whether
the lock is free: the kernel frees it when its holder dies. So all regions converge while any program runs, of any region.

A commit in any region wakes the thread by a FIFO in the ``wake`` folder of its shard, as it wakes others who wait there. In
between it sleeps, and looks about once a second: for locks, decisions on regions, and a writer that was killed before it woke
anybody.
"""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from onefold.errors import OnefoldError
from onefold.fold.nodes.regions import Decision, Region, living
from onefold.ids import new_id
from onefold.machine.turn import Turn
from onefold.machine.wake import Listener, Notifier
from onefold.regions.decisions import apply_decisions
from onefold.regions.making import decisions_of
from onefold.regions.neighbours import FolderTransport, Neighbours, OpenedRegion
from onefold.regions.pulling import RETRY_S
from onefold.regions.runner import APPEND_S, Beating, Runner

LOOK_S: Final = 1.0
"""How often the exchange looks when nothing wakes it."""
WAKE_FOLDER: Final = "wake"
"""Of a shard ..."""
WAKE_ALL_FOLDER: Final = ".wake"
"""... and of all regions: it lies next to their folders, and no region can have this name."""


class _Pair:
    """One shard of a region that pulls from another region."""

    def __init__(self, runner: Runner, there: OpenedRegion, index: int) -> None:
        self.runner = runner
        self.there = there
        self.index = index
        self.seen = -1
        """The offset there at which it was looked at."""
        self.again_s: float | None = 0.0


class _Puller:
    """What this process does for one region while it has its lock."""

    def __init__(self, region: OpenedRegion, turn: Turn) -> None:
        self.region = region
        self.turn = turn
        self.pairs: dict[tuple[int, int], _Pair] = {}
        """By the other region's number and the shard."""
        self.beating = [Beating(shard) for shard in region.shards]
        self.beats_s: list[float | None] = [0.0] * len(region.shards)
        self.beats_seen = [-1] * len(region.shards)
        self.decided = -1
        """How many decisions are in its logs."""


class FolderExchange:
    """See above."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._env = neighbours.env
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._pullers: dict[int, _Puller] = {}
        self._failed_s: dict[int, float] = {}
        """By region: when to try again to open it."""
        self._listeners: dict[Path, Listener] = {}
        self._poll = select.poll()
        self._decisions_s = 0.0
        self._regions: list[Region] = []
        self._wake: Listener | None = None

    @property
    def runs(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread, unless it runs or was ended."""
        with self._starting:
            if self._thread is None and not self._ended.is_set():
                self._wake = self._listen(self._neighbours.folder / WAKE_ALL_FOLDER)
                self._thread = threading.Thread(target=self._run, name="onefold-exchange", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End it, after the append that is under way."""
        with self._starting:
            self._ended.set()
            thread, wake = self._thread, self._wake
        if thread is not None:
            if wake is not None:
                wake.poke()
            thread.join()

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                try:
                    self._sleep(self._round())
                except OnefoldError:  # shard 0 cannot be read now, or what tests wrote of links
                    self._ended.wait(LOOK_S)
        finally:
            for puller in self._pullers.values():
                puller.turn.close()
            for listener in self._listeners.values():
                listener.close()
            wake_others(self._neighbours.folder)

    def _sleep(self, until_s: float) -> None:
        left_s = min(max(0.0, until_s - self._env.boot_s()), LOOK_S)
        if self._ended.is_set():
            return
        woken = {fd for fd, _ in self._poll.poll(left_s * 1000)}
        for listener in self._listeners.values():
            if listener.fileno() in woken:
                listener.drain()
                if listener is self._wake:
                    self._all_at_once()

    def _all_at_once(self) -> None:
        """Links have healed, or a region came: nothing waits for a pause to end."""
        self._neighbours.links_file.read(now=True)
        self._decisions_s = 0.0
        self._failed_s.clear()
        for puller in self._pullers.values():
            for pair in puller.pairs.values():
                pair.again_s = 0.0

    def _round(self) -> float:
        """Do what is due. When something will be, in seconds of the boot clock."""
        now_s = self._env.boot_s()
        due_s = now_s + LOOK_S
        if now_s >= self._decisions_s:
            self._read_decisions()
            self._decisions_s = now_s + LOOK_S
        for region in self._regions:
            if self._ended.is_set():
                break
            puller = self._puller(region)
            if puller is not None:
                for moment_s in self._pull(puller):
                    due_s = min(due_s, moment_s)
        return due_s

    def _read_decisions(self) -> None:
        """Learn of regions that came or went, and have every log that can be written hear of it."""
        decisions = decisions_of(self._neighbours.first)
        self._regions = living(decisions)
        numbers = [region.number for region in self._regions]
        for number in [number for number in self._pullers if number not in numbers]:
            puller = self._pullers.pop(number)
            with contextlib.suppress(OnefoldError):
                _decide(
                    puller, decisions, self._env.boot_s() + APPEND_S
                )  # its own logs are the last to hear of it
            puller.turn.close()
            self._forget(puller.region)
        self._neighbours.keep(numbers)
        for puller in self._pullers.values():
            for at in [at for at in puller.pairs if at[0] not in numbers]:
                del puller.pairs[at]
        for region in self._regions:
            found = self._puller(region)
            if found is not None and found.decided != len(decisions):
                try:
                    _decide(found, decisions, self._env.boot_s() + APPEND_S)
                except OnefoldError:
                    self._decisions_s = 0.0

    def _puller(self, region: Region) -> _Puller | None:
        """What pulls for a region, if that is for this process to do."""
        found = self._pullers.get(region.number)
        if found is not None:
            return found
        now_s = self._env.boot_s()
        if now_s < self._failed_s.get(region.number, 0.0):
            return None
        self._failed_s[region.number] = now_s + LOOK_S
        try:
            path = self._neighbours.folder / region.name / "exchange.lock"
            turn = Turn(path)
        except OSError:
            return None
        try:
            if turn.take():
                opened = self._neighbours.opened(region)
                if opened.writable:
                    found = self._pullers[region.number] = _Puller(opened, turn)
                    self._decisions_s = 0.0
        except OnefoldError:
            pass  # it is being made, or damaged: looked at again
        finally:
            if found is None:
                turn.close()
        return found

    def _pull(self, puller: _Puller) -> Iterator[float]:
        """One step of whatever is due for a region. When something will be."""
        here = puller.region
        for region in self._regions:
            if region.number == here.number or self._ended.is_set():
                continue
            for index in range(len(here.shards)):
                pair = self._pair(puller, region, index)
                if pair is not None:
                    moment_s = self._look(pair)
                    if moment_s is not None:
                        yield moment_s
        for index in range(len(here.shards)):
            moment_s = self._beat(puller, index)
            if moment_s is not None:
                yield moment_s

    def _pair(self, puller: _Puller, region: Region, index: int) -> _Pair | None:
        found = puller.pairs.get((region.number, index))
        if found is None:
            here, now_s = puller.region, self._env.boot_s()
            at = -region.number  # as a source, apart from pulling for it
            if now_s < self._failed_s.get(at, 0.0):
                return None
            try:
                there = self._neighbours.opened(region)
            except OnefoldError:
                self._failed_s[at] = now_s + RETRY_S[1]
                return None
            transport = FolderTransport(self._neighbours, there, here)
            runner = Runner(here.shards[index], index, region.number, transport, stops=self._ended.is_set)
            found = puller.pairs[region.number, index] = _Pair(runner, there, index)
            for opened in (here, there):
                self._listen_to(opened)
        return found

    def _look(self, pair: _Pair) -> float | None:
        try:
            applied = pair.there.shards[pair.index].applied
            if applied != pair.seen or (pair.again_s is not None and pair.again_s <= self._env.boot_s()):
                pair.seen = applied
                pair.again_s = pair.runner.step()
        except OnefoldError:
            again_s = pair.runner.pull.again_s
            pair.again_s = self._env.boot_s() + RETRY_S[1] if again_s is None else again_s
        return pair.again_s

    def _beat(self, puller: _Puller, index: int) -> float | None:
        due_s = puller.beats_s[index]
        try:
            applied = puller.region.shards[index].applied
            if applied != puller.beats_seen[index] or (due_s is not None and due_s <= self._env.boot_s()):
                puller.beats_seen[index] = applied
                due_s = puller.beats_s[index] = puller.beating[index].step()
        except OnefoldError:
            due_s = puller.beats_s[index] = self._env.boot_s() + RETRY_S[1]
        return due_s

    # -- being woken

    def _listen(self, folder: Path) -> Listener:
        found = self._listeners.get(folder)
        if found is None:
            found = self._listeners[folder] = Listener(folder, new_id("x", self._env))
            self._poll.register(found.fileno(), select.POLLIN)
        return found

    def _listen_to(self, region: OpenedRegion) -> None:
        for shard in region.shards:
            if shard.directory is not None:
                self._listen(shard.directory / WAKE_FOLDER)

    def _forget(self, region: OpenedRegion) -> None:
        for shard in region.shards:
            listener = self._listeners.pop(shard.directory / WAKE_FOLDER, None) if shard.directory else None
            if listener is not None:
                self._poll.unregister(listener.fileno())
                listener.close()


def _decide(puller: _Puller, decisions: list[Decision], deadline_s: float) -> None:
    for shard in puller.region.shards:
        apply_decisions(shard, decisions, deadline=deadline_s)
    puller.decided = len(decisions)


def wake_others(regions: Path) -> None:
    """Wake the exchange of all processes: a region came or went, links have changed, or a lock is free. Never raises."""
    notifier = Notifier(regions / WAKE_ALL_FOLDER)
    notifier.notify()
    notifier.close()
