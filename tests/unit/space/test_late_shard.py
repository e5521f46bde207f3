"""A shard that could not be opened with its space: Unavailable in the caller's time, until its log answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

import onefold as of
from kit.ledger import entry
from onefold.env import SYSTEM
from onefold.errors import OnefoldError, SpaceError, Unavailable
from onefold.log.memory import MemoryLog
from onefold.shard.api import Shard
from onefold.shard.replica.shard import LocalReplica
from onefold.shard.requirements import ReadRequirement
from onefold.space.late_shard import LateShard
from support.replicas import fill, open_replicas, until

__all__ = ["open_replicas"]

PROBLEM = Unavailable("nobody answers")


class Door:
    """Opens a replica once it is told to."""

    def __init__(self, opened: Callable[..., LocalReplica]) -> None:
        self.log = MemoryLog()
        fill(self.log, 3)
        self.problem: OnefoldError | None = PROBLEM
        self.tries = 0
        self.held = threading.Event()
        self.held.set()
        self._opened = opened

    def __call__(self) -> LocalReplica:
        self.held.wait(60)
        self.tries += 1
        if self.problem is not None:
            raise self.problem
        found = self._opened(self.log)
        assert found.reach(3, 60)
        return found


@pytest.fixture
def door(opened: Callable[..., LocalReplica]) -> Door:
    return Door(opened)


@pytest.fixture
def late(door: Door, tmp_path: Any) -> Iterator[LateShard]:
    found = LateShard(
        door.log.hold(0),
        SYSTEM,
        door,
        url="nats://here/space",
        directory=tmp_path / "replica",
        read_only=False,
        problem=PROBLEM,
    )
    with closing(found):
        yield found


STRONG = ReadRequirement(barrier=True, timeout=0.2)
USES: dict[str, Callable[[LateShard], object]] = {
    "view": lambda shard: shard.view(need=ReadRequirement()),
    "strong view": lambda shard: shard.view(need=STRONG),
    "bounded view": lambda shard: shard.view(need=ReadRequirement(fresh_s=5, timeout=0.2)),
    "session view": lambda shard: shard.view(need=ReadRequirement(after=1, timeout=0.2)),
    "peek": lambda shard: shard.peek("ledger/lines", b"k"),
    "outcome": lambda shard: shard.outcome("r", STRONG),
    "applied": lambda shard: shard.applied,
    "barrier": lambda shard: shard.barrier(0.2),
    "fresh": lambda shard: shard.fresh(5, 0.2),
    "wait": lambda shard: shard.wait(0, 0.2),
    "submit": lambda shard: shard.submit([entry(b"late")], SYSTEM.boot_s() + 0.2),
    "replica": lambda shard: shard.replica,
    "state_digest": lambda shard: shard.state_digest(),
}


def test_it_has_all_that_a_shard_has(late: LateShard) -> None:
    wanted = {name for name in dir(Shard) if not name.startswith("_")}
    assert wanted <= {name for name in dir(late) if not name.startswith("_")}


@pytest.mark.parametrize("use", USES)
def test_uses_are_unavailable_in_their_time(late: LateShard, door: Door, use: str) -> None:
    until(lambda: door.tries)
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="has not answered since it was opened: nobody answers") as caught:
        USES[use](late)
    assert caught.value.definite and time.monotonic() - begun < 30


@pytest.mark.parametrize("use", USES)
def test_a_use_waits_for_it_or_finds_it(late: LateShard, door: Door, use: str) -> None:
    door.problem = None
    until(lambda: late.reads_here)
    result = USES[use](late)
    if "view" in use:
        with result as view:  # type: ignore[attr-defined]
            assert view.offset >= 3
    if use == "submit":
        assert late.applied >= 4


def test_what_is_known_before_it_is_open(late: LateShard, door: Door) -> None:
    until(lambda: door.tries)
    late.check_usable()
    assert (late.reads_here, late.strong_reads, late.gives_receipts, late.read_only) == (False,) * 4
    assert late.incarnation == door.log.incarnation and late.directory and late.url and late.env is SYSTEM
    assert late.reach(1, 0.1) is False and late.member_alive("m") is None
    late.pause(0.0)
    with pytest.raises(AttributeError):
        late.raise_here  # noqa: B018 - what a replica has not either
    assert getattr(late, "raise_here", None) is None


def test_a_read_that_may_be_old_waits_for_the_first_try(late: LateShard, door: Door, opened: Any) -> None:
    """A space has several: those that are not tried when it is opened are mostly well."""
    door.held.clear()
    other = LateShard(
        door.log.hold(0), SYSTEM, door, url="u", directory=late.directory, read_only=False, problem=PROBLEM
    )
    with closing(other):
        door.problem = None
        opening = threading.Timer(0.3, door.held.set)
        opening.start()
        with other.view(need=ReadRequirement(timeout=60)) as view:
            assert view.offset == 3
        opening.join()


def test_it_is_tried_until_it_opens(late: LateShard, door: Door) -> None:
    until(lambda: door.tries >= 3)
    door.problem = SpaceError("its folder is full")
    until(lambda: "full" in str(late._problem))
    door.problem = None
    until(lambda: late.reads_here)
    assert late.member.startswith("m_") and late.member_alive(late.member)
    assert late.log is late.replica.log and late.halted is None
    assert late.submit([entry(b"x")]) and late.reach(4, 60)
    tries = door.tries
    time.sleep(0.6)
    assert door.tries == tries


def test_closing_ends_it_whatever_it_is_doing(late: LateShard, door: Door) -> None:
    until(lambda: door.tries)
    door.held.clear()
    waiting = threading.Thread(target=lambda: _refused(lambda: late.barrier(60)))
    waiting.start()
    closing_it = threading.Thread(target=late.close)
    closing_it.start()
    waiting.join(60)
    assert not waiting.is_alive()
    door.problem = None
    door.held.set()  # what is opened now is closed at once
    closing_it.join(60)
    assert not closing_it.is_alive() and not late._thread.is_alive() and not late.reads_here
    late.close()
    with pytest.raises(SpaceError, match="is closed"):
        late.view()


def _refused(use: Callable[[], object]) -> None:
    with pytest.raises(OnefoldError):
        use()


def test_a_forked_process_has_to_open_it_again(late: LateShard) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            late.close()
            late.applied  # noqa: B018
        except SpaceError as error:
            os._exit(0 if "before this process was forked" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_backup_needs_it(late: LateShard, door: Door, tmp_path: Any) -> None:
    from onefold.backup.backup import backup

    until(lambda: door.tries)
    with pytest.raises(of.Unavailable, match="has not answered"):
        backup([late], tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
