"""Every public argument that is a whole number has a bound, and its error says which."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import onefold as of
from onefold.arguments import WHOLE_MAX, check_whole, shown
from support.public_arguments import Argument, public_arguments
from support.public_calls import Things, refusals

IS_WHOLE = re.compile(r"(^|\| )(int|Sequence\[int\]|Collection\[int\])( \||$)")
NOT_GIVEN = {
    "Aggregate",
    "Connection",
    "Hold",
    "LiveContents",
    "Session",
    "RegionVersion",
    "StreamRecord",
    "Version",
}
"""Classes whose methods with numbers only Onefold calls."""
NOT_COUNTS = {
    ("FakeClock", "token", "nbytes"),  # what a database asks of its clock
    ("History", "invoke", "process"),  # numbers that the caller chose, which name something
    ("History", "ok", "token"),
    ("History", "fail", "token"),
    ("History", "info", "token"),
    ("TxCounters", "get", "default"),  # given back as it is
    ("AsyncTxCounters", "get", "default"),
    ("Position", "of", "partitions"),  # of a stream that is there
    ("Position", "of", "tag"),
    ("onefold.testing.workload_checks", "check_bank", "total"),  # values of the history
    ("onefold.testing.workload_checks", "check_counter", "initial"),
}
TOO_LARGE = (10**19, 10**400, 10**5000)
NO_NUMBERS = (1.5, "2", True, b"2", [2.5])
MAY_BE_TEXT = {("onefold.db", "connect", "log_keep")}


def whole_numbers() -> dict[Argument, str]:
    found = public_arguments(lambda annotation: bool(IS_WHOLE.search(annotation)))
    return {one: kind for one, kind in found.items() if one[0] not in NOT_GIVEN and one not in NOT_COUNTS}


def problem_of(argument: Argument, value: object, error: BaseException | None) -> str | None:
    if error is None:
        return "taken"
    if not isinstance(error, of.InvalidArgument):
        return f"{type(error).__name__}: {error}"
    text = str(error)
    if argument[2] not in text and argument[2].removesuffix("s") not in text:
        return f"not named: {text}"
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and not re.search(r"at (most|least) [\d,]+", text)
    ):
        return f"without the bound: {text}"
    return None if len(text) < 400 else f"{len(text)} characters"


def test_every_whole_number_has_a_bound(tmp_path: Path) -> None:
    arguments = whole_numbers()
    assert len(arguments) >= 55, sorted(arguments)

    async def tried() -> list[str]:
        async with of.aio.connect(tmp_path / "space") as adb:
            things = Things(adb.sync, adb, tmp_path)
            before = [*things.db.collections()], things.db._shard.applied
            wrong = await refusals(things, dict.fromkeys(arguments, (*TOO_LARGE, *NO_NUMBERS)), problem_of)
            after = [*things.db.collections()], things.db._shard.applied
            return wrong if before == after else [*wrong, f"something was written: {before} {after}"]

    wrong = asyncio.run(tried())
    assert not wrong, "\n".join(wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("call", "bound"),
    [
        (lambda db: db.stream("s", partitions=1025), "1,024"),
        (lambda db: db.read_stream("s", partitions=1024), "1,023"),
        (lambda db: db.stream("s").read(partitions=[0, 1024]), "1,023"),
        (lambda db: db.read_stream("s", follow=True).into_stream("out", partitions=10**6), "1,024"),
        (lambda db: db.read_text("x").into("t").start(workers=10**9), "1,024"),
        (lambda db: db.read_text("x").into("t").start(max_attempts=1001), "1,000"),
        (lambda db: db.read_text("x").into("t").start(target_splits=10**9 + 1), "1,000,000,000"),
        (lambda db: db.read_text("x").map_batches(str, batch_rows=10**9 + 1), "1,000,000,000"),
        (lambda db: of.agg.most_frequent("c", 10**6 + 1), "1,000,000"),
        (lambda db: db.map("m").scan(limit=WHOLE_MAX + 1), "9,223,372,036,854,775,807"),
    ],
)
def test_the_bound_is_the_one_in_the_message(call, bound) -> None:
    with of.connect("memory://") as db, pytest.raises(of.InvalidArgument, match=f"at most {bound}"):
        call(db)


def test_the_number_of_workers_in_the_environment_is_bounded(tmp_path, monkeypatch) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    with of.connect("memory://") as db:
        for wrong in ("1025", "9" * 5000, "0"):
            monkeypatch.setenv("ONEFOLD_WORKERS", wrong)
            with pytest.raises(
                of.InvalidArgument, match="ONEFOLD_WORKERS must be a whole number from 1 to 1,024"
            ):
                db.read_text(tmp_path / "in.txt").into("t").start()
        assert db.runs() == []


def test_bounds_themselves_are_taken() -> None:
    check_whole("n", 1, least=1, most=5)
    check_whole("n", 5, least=1, most=5)
    check_whole("n", None, least=1, or_none=True)
    for wrong in (0, 6, None, 2.0, True):
        with pytest.raises(
            of.InvalidArgument, match=r"^n must be a whole number of at least 1 and at most 5; got"
        ):
            check_whole("n", wrong, least=1, most=5)


def test_a_flag_that_is_a_number_of_many_digits_is_refused() -> None:
    with pytest.raises(
        of.InvalidArgument, match=r"^read_only must be True or False; got a number of about 5,000 digits"
    ):
        of.connect("memory://", read_only=10**5000)  # type: ignore[arg-type]


def test_values_are_shown_however_large_they_are() -> None:
    assert shown(10**40) == "1" + 40 * "0"
    assert shown(-(10**5000)) == "a number of about 5,000 digits"
    assert shown([10**5000]) == "a list"
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
