"""Maps hold what was put, over threads, shards and both engines; conditional and named writes; bulk writes."""

import threading

import msgspec
import pytest

import onefold as of
from onefold import config
from onefold.errors import Conflict, InvalidArgument, InvalidValue, TooLarge, TransactionError
from onefold.state.core import guard
from onefold.state.core.client import StateClient
from onefold.state.encoding.items import Version
from onefold.state.encoding.keys import encode_key
from onefold.state.maps.map import Map
from support.sharded_clients import client_of

SOON_S = 60


@pytest.fixture(params=["memory", "sqlite"])
def db(request, tmp_path):
    with of.connect("memory://" if request.param == "memory" else tmp_path / "space") as opened:
        yield opened


class Account(msgspec.Struct):
    owner: str
    balance: int = 0


# -- as a dict


def test_a_map_equals_a_dict_and_another_map(db):
    m = db.map("m")
    m.update({"a": 1}, b=2)
    assert m == {"a": 1, "b": 2}
    assert m != {"a": 1}
    other = db.map("other")
    other.update(m)
    assert m == other
    assert ("a", 1) in m.items() and ("a", 2) not in m.items()
    assert 2 in m.values() and 3 not in m.values()
    assert m.keys() & {"a", "z"} == {"a"}


def test_a_bare_key_is_the_tuple_of_one_element(db):
    m = db.map("m")
    m[("a",)] = 1
    assert m["a"] == 1
    assert m.get_item(("a",)).key == "a"
    assert m.get_many([("a",), "a"]) == {("a",): 1, "a": 1}


def test_what_was_read_is_a_private_copy(db):
    m = db.map("m", consistency="session")
    m["k"] = {"list": [1]}
    for _ in range(3):
        m["k"]["list"].append(2)
        m.get("k", consistency="strong")["list"].append(2)
    assert m["k"] == {"list": [1]}
    default = []
    assert m.modify("new", lambda value: [*value, value.append(1)], default) == [None]
    assert default == []


def test_a_typed_map_gives_its_type_and_refuses_others(db):
    m = db.map("accounts", type=Account)
    m["a"] = Account("ann", 5)
    assert m["a"] == Account("ann", 5)
    assert m.modify("a", lambda account: Account(account.owner, account.balance + 1)) == Account("ann", 6)
    assert list(m.values()) == [Account("ann", 6)]
    for wrong in ({"owner": "ann"}, Account(5, 5), None):
        with pytest.raises(InvalidValue):
            m["a"] = wrong
        with pytest.raises(InvalidValue):
            m.put_many({"a": wrong})
    assert db.map("accounts")["a"] == {"owner": "ann", "balance": 6}
    db.map("accounts")["bad"] = [1]
    with pytest.raises(InvalidValue):
        m["bad"]


def test_maps_of_different_names_are_apart(db):
    db.map("m")["k"] = 1
    db.map("m/x")["k"] = 2
    db.map("m").clear()
    assert dict(db.map("m/x")) == {"k": 2} and not db.map("m")


def test_inside_a_transactions_block_plain_handles_refuse(db):
    m = db.map("m")
    held = set()  # stands for the transaction
    token = guard.enter(m.client, held)
    try:
        for operation in (
            lambda: m["a"], lambda: m.get("a"), lambda: "a" in m, lambda: len(m), m.scan, m.watch,
            lambda: m.put("a", 1), lambda: m.put_many({}), lambda: m.delete("a"), m.clear, m.popitem, lambda: m.pop("a"),
            lambda: m.setdefault("a", 1), lambda: m.increment("a"), lambda: m.modify("a", len), lambda: m.get_many([]),
            lambda: m.get_item("a"), lambda: list(m), lambda: m.__setitem__("a", 1), lambda: m.__delitem__("a"),
            lambda: list(m.items()), lambda: m.update({}), lambda: m.get("a", consistency="session"),
        ):  # fmt: skip
            with pytest.raises(TransactionError, match="map"):
                operation()
    finally:
        guard.leave(token)


# -- conditions and names


def test_a_version_is_what_put_returned_and_works_as_text(db):
    m = db.map("m")
    first = m.put("k", 1)
    assert m.get_item("k").version == first
    assert Version.of(f'"{first}"') == first
    second = m.put("k", 2, if_version=str(first))
    assert second != first
    with pytest.raises(Conflict) as caught:
        m.put("k", 3, if_version=first)
    assert caught.value.definite and "'k'" in str(caught.value)
    with pytest.raises(Conflict):
        m.delete("k", if_version=first)
    assert m["k"] == 2
    assert m.delete("k", if_version=second) is True
    with pytest.raises(Conflict):
        m.put("k", 3, if_version=second)
    assert "k" not in m


def test_the_version_of_an_expiry_has_a_text_too():
    version = Version(((0, 7, -1),))
    assert Version.of(str(version)) == version


def test_a_request_id_makes_a_write_happen_once(db):
    m = db.map("m")
    assert m.increment("hits", 5, request_id="r1") == 5
    assert m.increment("hits", 5, request_id="r1") == 5
    assert m["hits"] == 5
    version = m.put("k", 1, request_id="r2")
    m["k"] = 2
    assert m.put("k", 1, request_id="r2") == version
    assert m["k"] == 2
    m["gone"] = 1
    assert m.delete("gone", request_id="r3") is True
    assert m.delete("gone", request_id="r3") is True
    assert m.put_many({"x": 1}, request_id="r4") == m.put_many({"x": 2}, request_id="r4")
    assert m["x"] == 1
    with pytest.raises(Conflict):
        m.put("k", 3, if_absent=True, request_id="r5")
    del m["k"]
    with pytest.raises(Conflict):
        m.put("k", 3, if_absent=True, request_id="r5")
    with pytest.raises(InvalidArgument, match="r2"):
        m.increment("hits", request_id="r2")


def test_increments_of_ints_and_floats_and_refusals(db):
    m = db.map("m")
    assert m.increment("n") == 1
    assert m.increment("n", by=-3) == -2
    assert m.increment("n", by=0.5) == -1.5
    assert m.increment("big", 2**80) == 2**80
    m["text"] = "x"
    with pytest.raises(InvalidValue) as caught:
        m.increment("text")
    assert caught.value.definite and m["text"] == "x"


# -- many at once


def run_all(count, work):
    """``work(number)`` in that many threads; their results."""
    results, errors = [None] * count, []

    def one(number):
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S * 3)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


def test_modify_loses_nothing_among_threads(db):
    m = db.map("m")

    def work(_):
        for _ in range(25):
            m.modify("n", lambda n: n + 1, default=0)

    run_all(6, work)
    assert m["n"] == 150


def test_pop_popitem_and_setdefault_have_one_winner(db):
    m = db.map("m")
    for round_ in range(10):
        assert len(set(run_all(5, lambda number: m.setdefault("lead", number)))) == 1
        assert sorted(run_all(5, lambda _: m.pop("lead", -1)))[:4] == [-1] * 4
        m.put_many(dict.fromkeys(range(5), round_))
        assert sorted(run_all(5, lambda _: m.popitem()[0])) == list(range(5))
        assert not m


def test_what_always_loses_raises_conflict_at_the_end(db, monkeypatch):
    monkeypatch.setattr(config, "MAP_ATTEMPTS", 4)
    monkeypatch.setattr(config, "MAP_RETRY_PAUSE_S", 0.0)
    m = db.map("m")
    runs = []

    def meddle(value):
        runs.append(value)
        m["k"] = len(runs)
        return "mine"

    with pytest.raises(Conflict) as caught:
        m.modify("k", meddle)
    assert runs == [None, 1, 2, 3] and m["k"] == 4 and caught.value.definite
    assert m.modify("k", lambda value: value + 1) == 5


def test_an_error_of_the_function_leaves_everything_as_it_was(db):
    m = db.map("m")
    m["k"] = 1
    with pytest.raises(ZeroDivisionError):
        m.modify("k", lambda value: value / 0)
    assert m["k"] == 1


# -- in bulk


def test_put_many_takes_mappings_and_pairs_and_the_later_wins(db):
    m = db.map("m")
    version = m.put_many([("a", 1), ("b", 2), ("a", 3)])
    assert dict(m) == {"a": 3, "b": 2}
    assert m.get_item("a").version == m.get_item("b").version == version
    m.put_many((number, number) for number in range(2500))
    assert m.count() == 2502 and m[2499] == 2499
    assert m.put_many({}) == Version(())


def test_put_many_is_all_or_nothing(db, monkeypatch):
    m = db.map("m")
    for wrong in ([("a", 1), (1.5, 2)], [("a", 1), ("b", object())], [("a", 1), ("b",)], [("a", 1), 5], 7):
        with pytest.raises((InvalidArgument, of.InvalidKey, InvalidValue)):
            m.put_many(wrong)
    monkeypatch.setattr(config, "PUT_MANY_RECORD_BYTES", 5000)
    with pytest.raises(TooLarge, match="atomic=False"):
        m.put_many(dict.fromkeys(range(100), "x" * 100))
    assert not m


def test_put_many_tells_errors_of_the_pairs_source_as_they_are(db):
    def source():
        yield "a", 1
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        db.map("m").put_many(source())
    assert not db.map("m")


def test_put_many_in_parts_writes_everything_in_bounded_records(db, monkeypatch):
    monkeypatch.setattr(config, "PUT_MANY_PART_BYTES", 2000)
    monkeypatch.setattr(config, "PUT_MANY_PART_KEYS", 40)
    m = db.map("m")
    before = m.client.present()[0]
    data = {number: "x" * (number % 90) for number in range(500)}
    version = m.put_many(data.items(), atomic=False, request_id="bulk")
    assert dict(m) == data
    records = m.client.present()[0] - before
    assert 12 < records < 60
    assert m.get_item(499).version == version
    assert m.put_many([(0, "again")], atomic=False, request_id="bulk") == version
    assert m[0] == ""


def test_put_many_in_parts_of_what_the_log_takes(db, monkeypatch):
    m = db.map("m")
    m["k"] = 0
    monkeypatch.setattr(config, "RECORD_BYTES_MAX", 4000)
    data = {number: "x" * (number % 90) for number in range(500)}
    version = m.put_many(data, atomic=False, request_id="bulk")
    assert dict(m) == data | {"k": 0} and m.get_item(499).version == version
    m.update({7: "later", 400: "later"})
    assert m.put_many(data, atomic=False, request_id="bulk") == version
    assert m[7] == m[400] == "later", "what was done is not done again"
    with pytest.raises(TooLarge):
        m.put_many({"a": "small", "b": "x" * 4000}, atomic=False)
    assert "b" not in m


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.moving(2)
def test_put_many_in_pieces_that_ends_at_any_of_them_goes_on(db, monkeypatch, after):
    """The program dies before or after the commit of each piece, another one has written meanwhile, and it is repeated."""

    class Died(BaseException):
        pass

    monkeypatch.setattr(config, "RECORD_BYTES_MAX", 4000)
    data = {number: "x" * (number % 90) for number in range(300)}
    commit, pieces = StateClient.commit, 0

    def dying(at):
        done = 0

        def one(self, shard, writes, **options):
            nonlocal done, pieces
            if done == at and not after:
                raise Died
            result = commit(self, shard, writes, **options)  # TooLarge: not done
            done += 1
            pieces = max(pieces, done)
            if done == at + 1 and after:
                raise Died
            return result

        return one

    at = 0
    while True:
        m = db.map(f"m{at}")
        monkeypatch.setattr(StateClient, "commit", dying(at))
        try:
            m.put_many(data, atomic=False, request_id=f"bulk-{at}")
            break
        except Died:
            monkeypatch.setattr(StateClient, "commit", commit)
        there = dict(m)
        assert (there == {key: data[key] for key in there} and len(there) < len(data)) or after
        m.put_many(dict.fromkeys(there, "later"), atomic=False)
        m.put_many(data, atomic=False, request_id=f"bulk-{at}")
        assert dict(m) == data | dict.fromkeys(there, "later"), "nothing is lost, and nothing done twice"
        at += 1
    assert at == pieces > 4


def test_put_many_in_parts_over_shards_keeps_the_order_of_a_key(monkeypatch):
    monkeypatch.setattr(config, "PUT_MANY_PART_KEYS", 7)
    monkeypatch.setattr(config, "PUT_MANY_PART_BYTES", 300)
    with client_of(3) as client:
        m = Map(client, "m")
        m.put_many(((number % 50, number) for number in range(1000)), atomic=False)
        assert dict(m) == {number: 950 + number for number in range(50)}
        assert len({client.shard_of(encode_key(number)) for number in range(50)}) == 3
        assert m.get_many([3, 4, 5, "no"]) == {3: 953, 4: 954, 5: 955}
        item = m.get_item(7)
        m.put(7, "new", if_version=item.version)
        foreign = next(
            n for n in range(50) if client.shard_of(encode_key(n)) != client.shard_of(encode_key(7))
        )
        with pytest.raises(Conflict):
            m.put(foreign, 1, if_version=item.version)
        m.clear()
        assert not m


def test_an_atomic_put_many_over_shards_is_one_transaction(tmp_path):
    with of.connect(tmp_path / "s", shards=3) as db:
        m = db.map("m")
        version = m.put_many({number: number for number in range(30)}, request_id="r")
        assert dict(m) == {number: number for number in range(30)}
        for number in range(30):
            shard = m.client.shard_of(encode_key(number))
            assert m.get_item(number).version.in_shard(shard) == version.in_shard(shard)
            m.put(number, -number, if_version=str(version))
        m.put_many(dict.fromkeys(range(30), "again"), request_id="r")
        assert m[7] == -7
        with pytest.raises(InvalidValue):
            m.put_many({0: "a", 1: "b", 2: object()})
        assert m[0] == 0 and m[1] == -1
        with m.watch(timeout=0) as changes:
            m.update({1: "x", 2: "y", 3: "z"})
            assert {change.key: change.value for change in changes} == {1: "x", 2: "y", 3: "z"}
    with of.connect(tmp_path / "s") as db:
        assert len(db.map("m")) == 30 and list(db.map("m").scan(start=1, limit=2)) == [(1, "x"), (2, "y")]


# -- in a transaction


def test_a_transactions_map_is_the_same_map(db):
    m = db.map("accounts", type=Account)
    m["a"] = Account("ann", 5)
    with db.transaction() as tx:
        mine = tx.map(m)
        mine["a"] = Account("ann", mine["a"].balance - 1)
        with pytest.raises(TransactionError):
            m["a"]
    assert m["a"].balance == 4 and m.get("a", consistency="session").balance == 4
