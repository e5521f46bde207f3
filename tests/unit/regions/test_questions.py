"""What nodes of regions ask each other, as bytes: it comes through whole, waits for news, and garbage does no harm."""

from __future__ import annotations

import random

import msgspec
import pytest

from onefold.available import exchange
from onefold.available.exchange import Reply
from onefold.available.ops import Admit, Do, Put, available_op
from onefold.errors import InvalidArgument, SpaceError
from onefold.folds import region_folds
from onefold.regions import questions
from onefold.regions.questions import Question
from onefold.shard.api import Shard
from onefold.space.open_space import open_shards


def region(number: int) -> Shard:
    (shard,) = open_shards("memory://", region_folds)
    shard.submit([available_op(Admit(n, f"dc{n}", here=n == number, founder=True)) for n in (1, 2)])
    return shard


def put(shard: Shard, key: str, value: bytes) -> None:
    shard.submit([available_op(Do((Put("r", "m", ((key.encode(), value),)),)))])


def asked(shard: Shard, **more: object) -> Question:
    with shard.view() as view:
        return msgspec.structs.replace(Question(exchange.ask(view)), **more)


def answer(shard: Shard, question: Question, *, late: bool = False) -> Reply | None:
    with shard.view() as view:
        found = questions.answer(view, questions.encode_question(question), 1234, late=late)
    return None if found is None else questions.decode_reply(found)


def test_effects_are_told_at_once_and_nothing_only_when_it_is_late() -> None:
    here, there = region(1), region(2)
    assert answer(there, asked(here)) is None
    late = answer(there, asked(here), late=True)
    assert late is not None and (late.state, late.now_ms) == ("same", 1234)
    assert answer(there, asked(here, waits=False)) == late
    put(there, "k", b"v" * 5000)
    found = answer(there, asked(here))
    assert found is not None and found.state == "effects"
    here.submit([available_op(found.as_import())])
    assert answer(there, asked(here)) is None and answer(here, asked(there), late=True) is not None


def test_long_answers_are_compressed() -> None:
    here, there = region(1), region(2)
    put(there, "k", b"v" * 100_000)
    with there.view() as view:
        data = questions.answer(view, questions.encode_question(asked(here)), 0, late=False)
    assert data is not None and len(data) < 5_000
    assert len(questions.decode_reply(data).effects[0]) > 100_000
    rng = random.Random(1)
    for size in (0, 1, 999, 1000, 1001, 70_000):
        body = rng.randbytes(size)
        assert questions.unpack(questions.pack(body)) == body


def test_as_much_is_told_as_was_asked_for() -> None:
    here, there = region(1), region(2)
    for number in range(5):
        put(there, f"k{number}", b"v" * 1000)
    first = answer(there, asked(here, bytes_max=2500))
    assert first is not None and len(first.effects) == 2


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_refused_and_nothing_else_happens(seed: int) -> None:
    rng = random.Random(seed)
    there = region(2)
    good = questions.encode_question(asked(region(1)))
    put(there, "k", b"v" * 3000)
    with there.view() as view:
        told = questions.answer(view, good, 0, late=False)
        assert told is not None
        for data in (rng.randbytes(rng.randrange(60)), good[: rng.randrange(len(good))]):
            with pytest.raises(InvalidArgument, match="does not understand"):
                questions.answer(view, data, 0, late=False)
    for data in (b"", rng.randbytes(40), told[: rng.randrange(len(told))], b"\x01" + rng.randbytes(30)):
        with pytest.raises(SpaceError, match="does not understand"):
            questions.decode_reply(data)
