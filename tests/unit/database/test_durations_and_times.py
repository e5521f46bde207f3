"""Every public argument that is a duration or a time: what no number can hold is refused by an error that names it, and what is
only longer than anyone lives is taken as for ever."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

import onefold as of
import onefold.testing
from onefold.durations import SECONDS_MAX, WAIT_S_MAX, micros, seconds, wait_seconds
from support.public_arguments import Argument, public_arguments
from support.public_calls import Things, refusals

IS_DURATION = re.compile(r"Duration|timedelta")
IS_TIME = re.compile(r"datetime|^Start$")
NO_DURATIONS = (
    10**400,
    -(10**400),
    10**5000,
    "9" * 400 + "s",
    math.nan,
    math.inf,
    -math.inf,
    -1,
    timedelta(-1),
    True,
    "x",
    "-5s",
    b"5s",
    2j,
    Decimal("NaN"),
)
HUGE = (1e308, 1e14, 10**30, timedelta.max, "9" * 300 + "s")
FOR_EVER = {
    "acquire",
    "acquisition",
    "catch_up",
    "caught_up",
    "consumer",
    "get",
    "read",
    "stop",
    "take",
    "wait",
    "watch",
}
"""Functions that wait for so long."""
NOT_USED = {("Dataset", "join", "within"), ("LiveDataset", "join", "within")}
"""Refused whatever it is."""
TEXT_TOO = {("Database", "at", "when"), ("AsyncDatabase", "at", "when")}
ENDS = (
    datetime.min,
    datetime.max,
    *(at.replace(tzinfo=UTC) for at in (datetime.min, datetime.max)),
    *(at.replace(tzinfo=timezone(timedelta(hours=14))) for at in (datetime.min, datetime.max)),
    *(at.replace(tzinfo=timezone(timedelta(hours=-12))) for at in (datetime.min, datetime.max)),
)


def durations() -> dict[Argument, str]:
    found = public_arguments(lambda annotation: bool(IS_DURATION.search(annotation)))
    return {one: kind for one, kind in found.items() if one not in NOT_USED}


def refused(argument: Argument, value: object, error: BaseException | None) -> str | None:
    if error is None:
        return "taken"
    if not isinstance(error, of.InvalidArgument):
        return f"{type(error).__name__}: {error}"
    text = str(error)
    named = argument[2] in text or (argument[2] == "seconds" and "the bound" in text)
    return None if named and len(text) < 300 else f"not named, or long: {text}"


def own_error(argument: Argument, value: object, error: BaseException | None) -> str | None:
    if error is None or isinstance(error, of.OnefoldError):
        return None if error is None or len(str(error)) < 300 else f"{len(str(error))} characters"
    return f"{type(error).__name__}: {error}"


def tried(folder: Path, wanted: dict[Argument, tuple[object, ...]], problem: object) -> list[str]:
    async def calls() -> list[str]:
        async with of.aio.connect(folder / "space") as adb:
            return await refusals(Things(adb.sync, adb, folder), wanted, problem)  # type: ignore[arg-type]

    return asyncio.run(calls())


def test_durations_that_cannot_be_are_refused(tmp_path: Path) -> None:
    arguments = durations()
    assert len(arguments) >= 70, sorted(arguments)
    wrong = tried(tmp_path, dict.fromkeys(arguments, NO_DURATIONS), refused)
    assert not wrong, "\n".join(wrong)
    assert not (tmp_path / "new").exists()


def test_durations_of_ages_raise_nothing_of_python(tmp_path: Path) -> None:
    arguments = {one: HUGE for one in durations() if one[1] not in FOR_EVER}
    wrong = tried(tmp_path, arguments, own_error)
    assert not wrong, "\n".join(wrong)


def test_times_at_the_ends_of_the_calendar_raise_nothing_of_python(tmp_path: Path) -> None:
    arguments = public_arguments(lambda annotation: bool(IS_TIME.search(annotation)))
    assert len(arguments) >= 9, sorted(arguments)
    wrong = tried(tmp_path, dict.fromkeys(arguments, ENDS), own_error)
    assert not wrong, "\n".join(wrong)
    no_times = (5, 10**5000, math.nan, None.__class__, b"2024-01-01")
    wrong = tried(tmp_path, dict.fromkeys(arguments, no_times), refused)
    assert not wrong, "\n".join(wrong)


def test_a_bounded_stream_starts_at_the_ends_of_the_calendar() -> None:
    with of.connect("memory://") as db:
        db.stream("s").append({"k": 1})
        for at in ENDS:
            assert "start" in db.read_stream("s", start=at).explain()


@pytest.mark.parametrize("value", HUGE)
def test_an_age_is_as_long_as_durations_get(value) -> None:
    assert seconds(value, "ttl") <= SECONDS_MAX
    assert wait_seconds(value) == WAIT_S_MAX < threading.TIMEOUT_MAX
    with pytest.raises(of.InvalidArgument, match=r"^keep must be at most 4,611,686,018,427 seconds; got "):
        micros(value, "keep")


def test_waits_of_ages_wait(tmp_path: Path) -> None:
    """No lock of Python waits so long by itself."""
    errors: list[BaseException] = []
    ended = threading.Event()

    def waiting(timeout: object) -> None:
        try:
            with of.connect(tmp_path / "space", timeout=timeout) as db:
                for _ in range(20):
                    db.map("m").increment("n")
                with db.lock("l", timeout=timeout, ttl=timeout):
                    db.map("m").increment("n")
                with db.queue("q").get(timeout=timeout, renew=True) as message:
                    assert message is not None
        except BaseException as error:
            errors.append(error)

    with of.connect(tmp_path / "space") as db:
        threads = [threading.Thread(target=waiting, args=(value,)) for value in (*HUGE, 10**11)]
        with db.lock("l"):
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 60
            while db.map("m").get("n", 0) < 20 * len(threads) and not errors and time.monotonic() < deadline:
                ended.wait(0.05)
        db.queue("q").put_many(["message"] * len(threads))
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert errors == [] and db.map("m")["n"] == 21 * len(threads)


def test_a_clock_ends_with_the_calendar() -> None:
    clock = onefold.testing.FakeClock()
    with pytest.raises(of.InvalidArgument, match="beyond the year 9999"):
        clock.advance("9000000d")
    clock.advance("2900000d")
    assert clock.now.year > 9000
