"""Queues whose values have a type: what goes in, what comes out, and what becomes of a message that does not fit."""

import asyncio
import datetime
from dataclasses import dataclass

import msgspec
import pytest

import onefold as of
from onefold.errors import InvalidArgument, InvalidValue, TransactionError
from onefold.state.fold.queues import ops as queue_ops
from onefold.testing.clock import FakeClock

SOON_S = 60


class Mail(msgspec.Struct):
    to: str
    at: datetime.datetime | None = None
    copies: int = 1


@dataclass
class Order:
    number: int


NOON = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
def db():
    with FakeClock().connect() as database:
        yield database


@pytest.fixture(params=["fake", "real", "shards"])
def any_db(request, tmp_path):
    """Real: messages are taken in another thread than the test's."""
    if request.param == "fake":
        opened = FakeClock().connect()
    else:
        opened = of.connect(tmp_path / "space", shards=3 if request.param == "shards" else 1)
    with opened as database:
        yield database


def put_bytes(db, name, data):
    """Bytes that no handle would put."""
    state = db.queue(name).client
    write = queue_ops.Enqueue(name, (queue_ops.Message(data),))
    return state.commit(db.queue(name).shard, (write,)).results[0]


def run(main):
    return asyncio.run(asyncio.wait_for(main(), SOON_S))


def test_values_of_the_type_come_back_as_such(any_db):
    q = any_db.queue("mail", type=Mail)
    q.put(Mail("ann", NOON))
    q.put_many([Mail("bob"), Mail("cy", copies=3)])
    with any_db.transaction() as tx:
        tx.queue(q).put(Mail("dan"))
        tx.queue(q).put_many([Mail("eve")])
    found = []
    for _ in range(4):
        with q.get(timeout=0) as msg:
            found.append(msg.value)
    taken = q.take(timeout=0)
    found.append(taken.value)
    taken.ack()
    assert found == [Mail("ann", NOON), Mail("bob"), Mail("cy", copies=3), Mail("dan"), Mail("eve")]


@pytest.mark.parametrize(("type_", "value"), [(Order, Order(4)), (list[int], [1, 2]), (set[str], {"a"})])
def test_types_of_every_kind(db, type_, value):
    q = db.queue("q", type=type_)
    q.put(value)
    with q.get(timeout=0) as msg:
        assert msg.value == value and type(msg.value) is type(value)


def test_an_untyped_handle_reads_what_a_typed_one_put_and_the_reverse(db):
    db.queue("mail", type=Mail).put(Mail("ann"))
    db.queue("mail").put({"to": "bob"})
    with db.queue("mail").get(timeout=0) as msg:
        assert msg.value == {"to": "ann", "at": None, "copies": 1}
    with db.queue("mail", type=Mail).get(timeout=0) as msg:
        assert msg.value == Mail("bob")


def test_a_value_of_another_type_is_not_put(db):
    q = db.queue("mail", type=Mail)
    for value in ({"to": "ann"}, Mail(7), Order(1), None):
        with pytest.raises(InvalidValue):
            q.put(value)
        with pytest.raises(InvalidValue):
            q.put_many([Mail("ann"), value])
        with pytest.raises(InvalidValue), db.transaction() as tx:
            tx.queue(q).put(value)
    assert len(q) == 0


def test_a_type_that_cannot_be_stored_is_refused_at_once(db):
    with pytest.raises(InvalidArgument):
        db.queue("mail", type=object())


def take_one(q, way):
    if way == "take":
        return q.take(timeout=0)
    with q.get(timeout=0) as msg:
        raise AssertionError(f"the block was entered with {msg}")


@pytest.mark.parametrize("way", ["get", "take"])
def test_a_message_that_does_not_fit_is_given_back_as_it_was(any_db, way):
    q = any_db.queue("mail", type=Mail, max_attempts=2)
    number = any_db.queue("mail").put({"to": 7}, key="k")
    for _ in range(5):  # more often than max_attempts
        with pytest.raises(InvalidValue, match=rf"queue 'mail', message {number}: ") as caught:
            take_one(q, way)
        assert (caught.value.queue, caught.value.id, caught.value.definite) == ("mail", number, True)
        assert q.counts() == (1, 0, 0, 0, 0)
    with any_db.queue("mail").get(timeout=0) as msg:
        assert (msg.value, msg.attempt, msg.errors, msg.id) == ({"to": 7}, 1, (), number)
    assert len(q) == 0


def test_any_error_of_the_type_gives_the_message_back(db):
    class Loud(msgspec.Struct):
        to: str

        def __post_init__(self):
            if self.to == "bob":
                raise RuntimeError("no bob")

    db.queue("mail").put({"to": "bob"})
    with pytest.raises(RuntimeError, match="no bob"), db.queue("mail", type=Loud).get(timeout=0):
        pass
    assert db.queue("mail").counts() == (1, 0, 0, 0, 0)


def test_bytes_that_nobody_can_read_are_given_back_and_become_a_dead_letter(db):
    number = put_bytes(db, "mail", b"\xc1")
    db.queue("mail").put("next")
    typed, untyped = db.queue("mail", type=Mail), db.queue("mail", max_attempts=2)
    for q, counts in [
        (typed, (2, 0, 0, 0, 0)),
        (untyped, (2, 0, 0, 0, 0)),
        (typed, (2, 0, 0, 0, 0)),
        (untyped, (1, 0, 0, 0, 1)),
    ]:
        with pytest.raises(InvalidValue) as caught, q.get(timeout=0):
            pass
        assert (caught.value.queue, caught.value.id) == ("mail", number)
        assert q.counts() == counts
    with untyped.get(timeout=0) as msg:
        assert msg.value == "next"
    (letter,) = untyped.dead()
    assert (letter.problem.queue, letter.problem.id) == ("mail", number)
    with pytest.raises(InvalidValue):
        _ = letter.value
    assert untyped.drop_dead() == 1


@pytest.mark.parametrize("dead_letter", [None, "lost"])
def test_dead_letters_have_the_type(db, dead_letter):
    q = db.queue("mail", type=Mail, max_attempts=1, dead_letter=dead_letter)
    q.put(Mail("ann"))
    with pytest.raises(ZeroDivisionError), q.get(timeout=0):
        _ = 1 / 0
    assert [letter.value for letter in q.dead()] == [Mail("ann")]
    untyped = db.queue("mail", max_attempts=1, dead_letter=dead_letter)
    number = untyped.put("no mail")
    with pytest.raises(ZeroDivisionError), untyped.get(timeout=0):
        _ = 1 / 0
    q.put(Mail("cy"))
    with pytest.raises(ZeroDivisionError), q.get(timeout=0):
        _ = 1 / 0
    first, bad, last = q.dead()
    assert [letter.problem for letter in (first, last)] == [None, None]
    assert [letter.value for letter in (first, last)] == [Mail("ann"), Mail("cy")]
    assert (bad.id, bad.key, bad.attempts, bad.error) == (
        number,
        None,
        1,
        "ZeroDivisionError: division by zero",
    )
    for _ in range(2):
        with pytest.raises(InvalidValue, match=rf"queue 'mail', message {number}: ") as caught:
            _ = bad.value
        assert (caught.value.queue, caught.value.id) == ("mail", number)
    assert bad.problem is caught.value and f"message {number}" in repr(bad)
    assert bad == q.dead()[1] != first and hash(bad) == hash(q.dead()[1])
    assert [letter.value for letter in untyped.dead()] == [
        {"to": "ann", "at": None, "copies": 1},
        "no mail",
        {"to": "cy", "at": None, "copies": 1},
    ]


def test_async_queues_have_types_too(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            q = db.queue("mail", type=Mail)
            await q.put(Mail("ann", NOON))
            await q.put_many([Mail("bob")])
            async with db.transaction() as tx:
                await tx.queue(q).put(Mail("cy"))
            for value in ({"to": "ann"}, Order(1)):
                with pytest.raises(InvalidValue):
                    await q.put(value)
                with pytest.raises(InvalidValue):
                    async with db.transaction() as tx:
                        await tx.queue(q).put(value)
            for value in (Mail("ann", NOON), Mail("bob"), Mail("cy")):
                async with q.get(timeout=0) as msg:
                    assert msg.value == value
            number = await db.queue("mail").put({"to": 7})
            for _ in range(2):
                with pytest.raises(InvalidValue) as caught:
                    async with q.get(timeout=0):
                        raise AssertionError("the block was entered")
                assert (caught.value.queue, caught.value.id) == ("mail", number)
                assert await q.counts() == (1, 0, 0, 0, 0)
            async with db.queue("mail", max_attempts=1).get(timeout=0) as msg:
                assert (msg.value, msg.attempt) == ({"to": 7}, 1)
                await msg.nack()
            (letter,) = await q.dead()
            assert (letter.problem.queue, letter.problem.id) == ("mail", number)
            assert [letter.value for letter in await db.queue("mail").dead()] == [{"to": 7}]

    run(main)


def test_a_handle_of_another_connection_is_refused_in_a_transaction(tmp_path):
    async def main():
        async with of.aio.connect("memory://") as db, of.aio.connect(tmp_path / "other") as other:
            with pytest.raises(TransactionError, match="another connection"):
                async with db.transaction() as tx:
                    await tx.queue(other.queue("mail")).put("a")

    run(main)
