"""Windows of event time, for ``dataset.window(...)``: ``of.window.tumbling("1m")``.

A windowed table has the columns ``window_start, window_end, *keys, *aggregates``. A window holds the events with
``window_start <= time < window_end``; starts are counted from 1970-01-01T00:00:00 UTC. Durations are seconds, a ``timedelta``, or
text such as ``"90s"`` and ``"1h30m"``.

>>> import onefold as of
>>> str(of.window.sliding("1h", every="5m"))
'sliding(1h, every=5m)'
"""

from __future__ import annotations

from onefold.compute.plan import windows
from onefold.compute.plan.windows import WindowSpec
from onefold.durations import Duration, micros
from onefold.errors import InvalidArgument

__all__ = ["WindowSpec", "session", "sliding", "tumbling"]


def tumbling(
    length: Duration, allowed_lateness: Duration = 0, offset: Duration | None = None, on: str | None = None
) -> WindowSpec:
    """Windows of one length that follow each other.

    ``allowed_lateness``: how long after its end a window still takes events. ``offset``: shifts all starts. ``on``: the column
    that is the time of bounded data; a stream has its event time.

    Raises:
        InvalidPlan: definite; a length of zero.
        InvalidArgument: definite; not durations, or ``on`` is not a column's name.
    """
    return _made("tumbling", length, None, allowed_lateness, offset, on)


def sliding(
    length: Duration,
    *,
    every: Duration,
    allowed_lateness: Duration = 0,
    offset: Duration | None = None,
    on: str | None = None,
) -> WindowSpec:
    """Windows of one length, of which one begins every so often; an event is in several. Arguments as ``tumbling``.

    Raises:
        InvalidPlan: definite; a length or ``every`` of zero, ``every`` longer than the length, or windows of more
            than 1,000 slices (the length of a slice is the greatest common divisor of both).
        InvalidArgument: definite; not durations, or ``on`` is not a column's name.
    """
    return _made("sliding", length, every, allowed_lateness, offset, on)


def session(gap: Duration, allowed_lateness: Duration = 0, on: str | None = None) -> WindowSpec:
    """Events of one key that are at most ``gap`` apart. ``window_end`` is the last event's time plus the gap.

    Raises:
        InvalidPlan: definite; a gap of zero.
        InvalidArgument: definite; not durations, or ``on`` is not a column's name.
    """
    return _made("session", gap, None, allowed_lateness, None, on)


def _made(
    kind: str,
    length: Duration,
    every: Duration | None,
    lateness: Duration,
    offset: Duration | None,
    on: str | None,
) -> WindowSpec:
    if on is not None and (not isinstance(on, str) or not on):
        raise InvalidArgument(f"on must be the name of a column; got {on!r:.60}")
    spec = WindowSpec(  # ``check`` says how long each may be
        kind,  # type: ignore[arg-type]
        micros(length, "gap" if kind == "session" else "length", None),
        0 if every is None else micros(every, "every", None),
        0 if offset is None else micros(offset, "offset", None),
        micros(lateness, "allowed_lateness", None),
        on,
    )
    windows.check(spec)
    return spec
