"""A scripted source: what comes from outside, when, as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from onefold.db import Database
from onefold.durations import Duration, seconds
from onefold.errors import InvalidArgument, OnefoldError
from onefold.state.streams.layout import check_partitions
from onefold.testing.clock import FakeClock

if TYPE_CHECKING:
    from onefold.testing.sim import Simulation

_RETRY_S = 0.5
"""How long a source in a simulation waits before it sends again what was not acknowledged."""


class Event(NamedTuple):
    """One record of a script."""

    at_s: float
    """Seconds after the source began."""
    value: Any
    key: Any = None


class ScriptedSource:
    """Appends records to a stream at the times of a script, in its order, each exactly once.

    With a fake clock the script makes the time pass::

        source = ScriptedSource("clicks", [(0, {"page": "/"}, "u1"), ("5s", {"page": "/buy"}, "u1"), ("1h", {"page": "/"}, "u2")])
        source.play(onefold_db, onefold_clock, until="10s")     # two records; it is ten seconds later now
        source.play(onefold_db, onefold_clock)                  # the rest

    In a simulation it is one more client, next to the program that reads the stream. Its process may die like any other and
    resumes where it was, as a device does that keeps what was not acknowledged::

        onefold_sim.client(source.program(onefold_sim))
    """

    def __init__(
        self,
        stream: str,
        script: Iterable[tuple[Any, ...]],
        *,
        partitions: int | None = None,
        name: str = "source",
    ) -> None:
        """``script``: (when, value) or (when, value, key), with ``when`` from the beginning on: seconds, a timedelta or text
        (``"5s"``), never less than the one before. ``partitions``: of the stream, if this makes it. ``name``: tells several
        sources of one stream apart. Raises InvalidArgument."""
        check_partitions(partitions)
        self.stream = stream
        self.name = name
        self.events = _events(script)
        self._partitions = partitions
        self._done = 0
        self._now_s = 0.0

    @property
    def sent(self) -> int:
        """How many records were acknowledged."""
        return self._done

    @property
    def ended(self) -> bool:
        """Whether all were."""
        return self._done == len(self.events)

    def play(self, db: Database, clock: FakeClock, until: Duration | None = None) -> int:
        """Append what is due up to ``until`` (from the beginning on; default: all), moving the clock to the time of each record
        and at last to ``until``; how many there were. Raises what ``Stream.append`` raises."""
        end_s = None if until is None else seconds(until, "until")
        before = self._done
        while not self.ended and (end_s is None or self.events[self._done].at_s <= end_s):
            self._pass(clock, self.events[self._done].at_s)
            self._send(db)
        if end_s is not None:
            self._pass(clock, end_s)
        return self._done - before

    def program(self, simulation: Simulation) -> Callable[[Database], None]:
        """The program of a simulated client that plays the whole script, in simulated time, whatever goes wrong."""
        start_s: float | None = None

        def run(db: Database) -> None:
            nonlocal start_s
            start_s = simulation.now if start_s is None else start_s
            while not self.ended:
                wait_s = start_s + self.events[self._done].at_s - simulation.now
                if wait_s > 0:
                    simulation.sleep(wait_s)
                try:
                    self._send(db)
                except OnefoldError as error:
                    if not _may_pass(error):
                        raise
                    simulation.sleep(_RETRY_S)

        return run

    def _send(self, db: Database) -> None:
        event = self.events[self._done]
        stream = db.stream(self.stream, partitions=self._partitions)
        # Sent again when the answer was lost, also by the next life of its process: the name makes it one record.
        stream.append(event.value, key=event.key, request_id=f"{self.name} of {self.stream}: {self._done}")
        self._done += 1

    def _pass(self, clock: FakeClock, to_s: float) -> None:
        if to_s > self._now_s:
            clock.advance(to_s - self._now_s)
            self._now_s = to_s

    def __repr__(self) -> str:
        return f"<ScriptedSource {self.name!r} of {self.stream!r}, {self._done} of {len(self.events)} sent>"


def _may_pass(error: OnefoldError) -> bool:
    from onefold.testing.sim.process import is_of_faults

    return is_of_faults(error)


def _events(script: Iterable[tuple[Any, ...]]) -> tuple[Event, ...]:
    events: list[Event] = []
    for number, entry in enumerate(script):
        if not isinstance(entry, tuple) or len(entry) not in (2, 3):
            raise InvalidArgument(
                f"entry {number} of the script must be (when, value) or (when, value, key); got {entry!r:.100}"
            )
        event = Event(seconds(entry[0], f"the time of entry {number} of the script"), *entry[1:])
        if events and event.at_s < events[-1].at_s:
            raise InvalidArgument(
                f"entry {number} of the script comes at {event.at_s:g} s, before the one ahead of it ({events[-1].at_s:g} s). "
                "Put the entries in the order in which they arrive"
            )
        events.append(event)
    return tuple(events)
