"""Maps behave as dicts in key order, over threads, processes and both engines; conditional and named writes; bulk writes."""

import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import onefold as of
from onefold import config
from onefold.env import SYSTEM
from onefold.errors import Conflict, InvalidArgument, InvalidValue, SpaceError, TooLarge, TransactionError
from onefold.fold.log_space import LogSpace
from onefold.log.memory import MemoryLog
from onefold.state import guard
from onefold.state.client import StateClient
from onefold.state.fold import StateFold
from onefold.state.items import Version
from onefold.state.keys import decode_key, encode_key
from onefold.state.maps import Map

SOON_S = 20


@pytest.fixture(params=["memory", "sqlite"])
def db(request, tmp_path):
    with of.connect("memory://" if request.param == "memory" else tmp_path / "space") as opened:
        yield opened


@contextmanager
def client_of(shards):
    """A client over several shards in memory."""
    spaces = [LogSpace(MemoryLog(env=SYSTEM), [StateFold(shards)], SYSTEM) for _ in range(shards)]
    with closing(StateClient(spaces)) as client:
        yield client


class Account(msgspec.Struct):
    owner: str
    balance: int = 0


# -- as a dict

KEYS = [
    "a",
    "b",
    "",
    "ä\0",
    0,
    1,
    -5,
    2**70,
    True,
    False,
    None,
    b"a",
    b"",
    ("a", 1),
    ("a", None),
    ((),),
    (("x",),),
    ("a",),
]
keys = st.sampled_from(KEYS)
values = st.one_of(
    st.integers(-5, 5), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=2), st.none()
)


class AsDict(RuleBasedStateMachine):
    """The model is a dict from encoded keys to values, so that 1 and True are two keys."""

    def __init__(self):
        super().__init__()
        self.opened = self.open()
        self.m = self.opened.__enter__()
        self.model = {}

    def teardown(self):
        self.opened.__exit__(None, None, None)

    @rule(key=keys, value=values)
    def set(self, key, value):
        self.m[key] = value
        self.model[encode_key(key)] = value

    @rule(key=keys)
    def get(self, key):
        expected = self.model.get(encode_key(key), "absent")
        assert self.m.get(key, "absent") == expected
        assert self.m.get(key, "absent", consistency="session") == expected
        assert (key in self.m) == (expected != "absent")
        if expected == "absent":
            with pytest.raises(KeyError):
                self.m[key]
        else:
            assert self.m[key] == expected

    @rule(key=keys)
    def delete(self, key):
        if encode_key(key) in self.model:
            del self.m[key]
            del self.model[encode_key(key)]
        else:
            with pytest.raises(KeyError):
                del self.m[key]
            assert self.m.delete(key) is False

    @rule(key=keys)
    def pop(self, key):
        assert self.m.pop(key, "absent") == self.model.pop(encode_key(key), "absent")
        with pytest.raises(KeyError):
            self.m.pop(key)

    @rule(key=keys, value=values)
    def setdefault(self, key, value):
        assert self.m.setdefault(key, value) == self.model.setdefault(encode_key(key), value)

    @rule(pairs=st.lists(st.tuples(keys, values), max_size=4))
    def update(self, pairs):
        self.m.update(pairs)
        self.model.update((encode_key(key), value) for key, value in pairs)

    @rule()
    def popitem(self):
        if not self.model:
            with pytest.raises(KeyError):
                self.m.popitem()
        else:
            first = min(self.model)
            assert self.m.popitem() == (decode_key(first), self.model.pop(first))

    @rule()
    def clear(self):
        self.m.clear()
        self.model.clear()

    @rule(key=keys, value=values)
    def put_if_absent(self, key, value):
        if encode_key(key) in self.model:
            with pytest.raises(Conflict):
                self.m.put(key, value, if_absent=True)
        else:
            self.m.put(key, value, if_absent=True)
            self.model[encode_key(key)] = value

    @rule(key=keys, value=values)
    def put_if_version(self, key, value):
        item = self.m.get_item(key)
        if item is not None:
            self.m.put(key, value, if_version=item.version)
            self.model[encode_key(key)] = value

    @rule(key=keys, by=st.integers(-3, 3))
    def increment(self, key, by):
        old = self.model.get(encode_key(key), 0)
        if isinstance(old, int):
            assert self.m.increment(key, by) == old + by
            self.model[encode_key(key)] = old + by
        else:
            with pytest.raises(InvalidValue):
                self.m.increment(key, by)

    @rule(key=keys)
    def modify(self, key):
        new = [self.model.get(encode_key(key), "new"), 1][:1]
        assert self.m.modify(key, lambda old: [old], default="new") == new
        self.model[encode_key(key)] = new

    @rule(some=st.lists(keys, max_size=6))
    def get_many(self, some):
        found = self.m.get_many(some)
        assert found == {key: self.model[encode_key(key)] for key in some if encode_key(key) in self.model}

    @invariant()
    def is_the_model(self):
        pairs = [(decode_key(key), value) for key, value in sorted(self.model.items())]
        assert list(self.m.items()) == pairs
        assert len(self.m) == len(pairs)
        assert bool(self.m) == bool(pairs)
        assert list(self.m) == list(self.m.keys()) == [key for key, _ in pairs]
        assert list(reversed(self.m.values())) == [value for _, value in reversed(pairs)]


@contextmanager
def _in_memory():
    with of.connect("memory://") as db:
        yield db.map("m")


@contextmanager
def _in_file():
    with TemporaryDirectory() as folder, of.connect(folder + "/space", shards=1) as db:
        yield db.map("m")


@contextmanager
def _in_shards():
    with client_of(3) as client:
        yield Map(client, "m")


class InShards(AsDict):
    open = staticmethod(_in_shards)


class InMemory(AsDict):
    open = staticmethod(_in_memory)


class InFile(AsDict):
    open = staticmethod(_in_file)


RULES = settings(max_examples=25, stateful_step_count=25, deadline=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
TestInMemory = InMemory.TestCase
TestInFile = InFile.TestCase
TestInShards = InShards.TestCase
TestInMemory.settings = TestInFile.settings = TestInShards.settings = RULES


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
    assert m.modify("new", lambda value: [*value, value.append(1)], default) == [1, None] or default == []
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
    token = guard.enter(m.client)
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


# -- processes

CHILD = """
import sys, onefold as of
with of.connect(sys.argv[1]) as db:
    m = db.map("m")
    for line in sys.stdin:
        name, key, value = line.split()
        if name == "put":
            m[key] = int(value)
        elif name == "session":
            print(m.get(key, consistency="session"), flush=True)
            continue
        elif name == "add":
            for _ in range(int(value)):
                m.increment(key)
                m.modify(key + "'", lambda n: n + 1, default=0)
        print(m.get(key), flush=True)
"""


@contextmanager
def child(folder):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(SOON_S)


def tell(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process):
    return process.stdout.readline().strip()


def test_another_processs_writes_are_seen_at_once(tmp_path):
    with of.connect(tmp_path / "s") as db, child(tmp_path / "s") as other:
        m = db.map("m")
        for number in range(50):
            tell(other, f"put k {number}")
            assert answer(other) == str(number)
            assert m["k"] == number and m.get_many(["k"]) == dict(m.items()) == {"k": number}
            assert m.get("k", consistency="session") == number  # as a strong read has seen it
            m["k"] = -number
            tell(other, "get k 0")
            assert answer(other) == str(-number)


def test_session_reads_follow_another_process_within_the_caches_time(tmp_path):
    with of.connect(tmp_path / "s", consistency="session") as db, child(tmp_path / "s") as other:
        m = db.map("m")
        m["k"] = -1
        for number in range(10):
            assert m["k"] == number - 1
            tell(other, f"put k {number}")
            assert answer(other) == str(number)
            end_s = SYSTEM.boot_s() + config.SESSION_CACHE_FRESH_S
            while (seen := m["k"]) != number:
                assert seen == number - 1 and SYSTEM.boot_s() < end_s + 0.2


def test_processes_and_threads_lose_no_update(tmp_path):
    with of.connect(tmp_path / "s") as db, child(tmp_path / "s") as one, child(tmp_path / "s") as two:
        for process in (one, two):
            tell(process, "add n 60")
        m = db.map("m")
        for _ in range(60):
            m.increment("n")
            m.modify("n'", lambda n: n + 1, default=0)
        assert answer(one) and answer(two)
        assert dict(m) == {"n": 180, "n'": 180}


def test_a_closed_space_and_a_read_only_one_say_so(tmp_path):
    with of.connect(tmp_path / "s") as db:
        m = db.map("m", consistency="session")
        m["k"] = 1
        assert m["k"] == 1
        with of.connect(tmp_path / "s", read_only=True) as reader:
            r = reader.map("m")
            assert dict(r) == {"k": 1} and r.get("k", consistency="session") == 1
            for write in (lambda: r.put("k", 2), lambda: r.pop("k"), r.clear, lambda: r.put_many({"a": 1})):
                with pytest.raises(SpaceError, match="read-only"):
                    write()
    for use in (lambda: m["k"], lambda: m.get("k", consistency="strong"), lambda: list(m.scan()), lambda: len(m),
                lambda: m.put("k", 1), m.watch, lambda: m.get_many(["k"])):  # fmt: skip
        with pytest.raises(SpaceError, match="closed"):
            use()


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


def test_a_transactions_map_is_the_same_map(db):
    m = db.map("accounts", type=Account)
    m["a"] = Account("ann", 5)
    with db.transaction() as tx:
        mine = tx.map(m)
        mine["a"] = Account("ann", mine["a"].balance - 1)
        with pytest.raises(TransactionError):
            m["a"]
    assert m["a"].balance == 4 and m.get("a", consistency="session").balance == 4
