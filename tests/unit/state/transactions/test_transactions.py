"""Transactions are serializable: what would break that is refused, and nothing else is."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

import random
import threading

import pytest

import onefold as of
from onefold.state.encoding.keys import encode_key
from onefold.state.fold import machine as state_fold
from support.transacted import contents, elsewhere
from support.transaction_places import db_in_memory, db_of_one_shard, opened, transaction_db  # noqa: F401


def put(db, name="m", **items):
    with db.transaction() as tx:
        tx.map(name).update(items)


# -- what must be refused: each scenario runs a transaction that is overtaken by another one


def lost_update(db):
    put(db, x=1)
    with db.transaction() as tx:
        seen = tx.map("m")["x"]
        elsewhere(lambda: put(db, x=10))
        tx.map("m")["x"] = seen + 1


def write_skew(db):
    put(db, ann="on call", bob="on call")
    with db.transaction() as tx:
        m = tx.map("m")
        if m["ann"] == m["bob"] == "on call":
            elsewhere(lambda: put(db, ann="off"))
            m["bob"] = "off"


def miss_filled(db):
    with db.transaction() as tx:
        m = tx.map("m")
        if "x" not in m:
            elsewhere(lambda: put(db, x=1))
            m["y"] = "there is no x"


def read_key_deleted(db):
    put(db, x=1)
    with db.transaction() as tx:
        m = tx.map("m")
        m["y"] = m["x"]
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").delete("x")))


def deleted_and_made_again(db):
    put(db, x=1)
    with db.transaction() as tx:
        m = tx.map("m")
        m["y"] = m["x"]
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").delete("x")))
        elsewhere(lambda: put(db, x=1))


def phantom_inserted(db):
    put(db, a=1, c=3)
    with db.transaction() as tx:
        m = tx.map("m")
        m["sum"] = sum(m.values())
        elsewhere(lambda: put(db, b=2))


def scanned_key_deleted(db):
    put(db, a=1, b=2, c=3)
    with db.transaction() as tx:
        m = tx.map("m")
        m["z"] = [key for key, _ in m.scan(start="a", stop="c")]
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").delete("b")))


def scanned_key_changed(db):
    put(db, a=1, b=2, c=3)
    with db.transaction() as tx:
        m = tx.map("m")
        m["z"] = [value for _, value in m.scan(limit=2)]
        elsewhere(lambda: put(db, b=20))


def phantom_behind_a_reverse_scan(db):
    put(db, a=1, c=3, e=5)
    with db.transaction() as tx:
        m = tx.map("m")
        m["last"] = [key for key, _ in m.scan(reverse=True, limit=2)]
        elsewhere(lambda: put(db, d=4))


def phantom_in_an_empty_range(db):
    with db.transaction() as tx:
        m = tx.map("m")
        m["empty"] = not list(m.scan(prefix="eu"))
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").put(("eu", 1), 1)))


def incremented_under_a_read(db):
    put(db, x=1)
    with db.transaction() as tx:
        m = tx.map("m")
        m.increment("x")
        m["seen"] = m["x"]  # reading one's own increment reads what is below it
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").increment("x")))


SCENARIOS = [
    lost_update,
    write_skew,
    miss_filled,
    read_key_deleted,
    deleted_and_made_again,
    phantom_inserted,
    scanned_key_deleted,
    scanned_key_changed,
    phantom_behind_a_reverse_scan,
    phantom_in_an_empty_range,
    incremented_under_a_read,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_what_would_not_be_serializable_is_refused(db, scenario):
    with pytest.raises(of.Conflict) as caught:
        scenario(db)
    assert caught.value.definite


VALIDATE = state_fold.validate
BUGS = {
    "nothing is validated": (lambda store, reads, spans: None, SCENARIOS),
    "misses are not validated": (
        lambda store, reads, spans: VALIDATE(store, tuple(read for read in reads if read.offset), spans),
        [miss_filled],
    ),
    "only misses are validated": (
        lambda store, reads, spans: VALIDATE(store, tuple(read for read in reads if not read.offset), spans),
        [lost_update, write_skew, read_key_deleted, deleted_and_made_again, incremented_under_a_read],
    ),
    "ranges are not validated": (
        lambda store, reads, spans: VALIDATE(store, reads, ()),
        [scenario for scenario in SCENARIOS if "phantom" in scenario.__name__ or "scan" in scenario.__name__],
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_fold_that_validates_less_lets_them_through(bug, monkeypatch):
    broken, caught_by = BUGS[bug]
    monkeypatch.setattr("onefold.state.fold.machine.validate", broken)
    for scenario in caught_by:
        with of.connect("memory://") as fresh:
            scenario(fresh)  # so the test above would fail


# -- what must not be refused


def test_blind_writes_never_conflict(db):
    put(db, a=1, n=1)
    with db.transaction() as tx:
        m = tx.map("m")
        m["a"] = "mine"
        m.put_many({"b": 1, "c": 2})
        m.increment("n", 10)
        elsewhere(lambda: put(db, a="theirs", b="theirs"))
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").increment("n", 100)))
    assert contents(db) == {"a": "mine", "b": 1, "c": 2, "n": 111}
    assert tx.increments == {("m", "n"): 111}


def test_a_change_beside_what_was_read_does_not_conflict(db):
    put(db, a=1, c=3, e=5, g=7)
    with db.transaction() as tx:
        m = tx.map("m")
        first = next(iter(m.scan()))  # one step: only what is up to "a" was told
        m["first"] = list(first)
        m["middle"] = [key for key, _ in m.scan(start="c", stop="e")]
        m["last"] = [key for key, _ in m.scan(start="f", stop="gg", limit=1, reverse=True)]
        elsewhere(lambda: put(db, b=2, e=50, h=8))
        elsewhere(lambda: put(db, "other", a=1))
    seen = contents(db)
    assert (seen["first"], seen["middle"], seen["last"]) == (["a", 1], ["c"], ["g"])


def test_a_scan_that_was_made_and_not_begun_depends_on_nothing(db):
    put(db, a=1)
    with db.transaction() as tx:
        m = tx.map("m")
        m.scan()
        m["x"] = 1
        elsewhere(lambda: put(db, a=2))
    assert contents(db) == {"a": 2, "x": 1}


def test_a_lazy_scan_depends_on_everything_it_gave_out_and_on_nothing_else(memory):
    names = [f"k{number:04}" for number in range(700)]
    put(memory, **dict.fromkeys(names, 0))

    def run(taken, changed):
        with memory.transaction() as tx:
            pairs = tx.map("m").scan()
            for _ in range(taken):
                next(pairs)
            tx.map("log")["x"] = taken
            elsewhere(lambda: put(memory, **{names[changed]: 1}))

    for taken in (1, 31, 32, 33, 543, 544, 545, 600):
        run(taken, taken)  # the first one that was not given out
        with pytest.raises(of.Conflict):
            run(taken, taken - 1)


def test_a_transaction_that_writes_nothing_appends_nothing_and_never_conflicts(db):
    put(db, a=1)
    before = db._state.present()
    with db.transaction() as tx:
        assert tx.map("m")["a"] == 1
        assert tx.map("m").delete("not there") is False
    assert (db._state.present(), tx.version) == (before, None)
    with db.transaction() as tx:
        assert tx.map("m")["a"] == 1
        elsewhere(lambda: put(db, a=2))
        assert tx.map("m")["a"] == 1


# -- snapshots


@pytest.mark.parametrize("read_only", [False, True])
def test_the_snapshot_stays_while_others_write(one_shard, read_only):
    db = one_shard  # with several each has a moment of its own
    put(db, a=1, b=2, c=3)
    with db.transaction(read_only=read_only) as tx:
        m = tx.map("m")
        assert m["a"] == 1
        elsewhere(lambda: put(db, a=10, b=20, d=4))
        elsewhere(lambda: db.run_transaction(lambda other: other.map("m").delete("c")))
        assert (m["a"], m["b"], m["c"], m.get("d")) == (1, 2, 3, None)
        assert dict(m) == {"a": 1, "b": 2, "c": 3}
        assert m.get_many(["d", "c", "b"]) == {"c": 3, "b": 2}
        assert list(m.scan(reverse=True)) == [("c", 3), ("b", 2), ("a", 1)]
        assert len(m) == 3
    assert contents(db) == {"a": 10, "b": 20, "d": 4}


def test_a_scan_goes_on_in_its_snapshot_when_others_write_between_its_pages(one_shard):
    db = one_shard  # with several each has a moment of its own
    with db.transaction() as tx:
        tx.map("m").put_many({number: number for number in range(1500)})
    with db.transaction(read_only=True) as tx:
        pairs = tx.map("m").scan()
        seen = [next(pairs) for _ in range(10)]

        def change(other):
            other.map("m").put_many(dict.fromkeys(range(0, 3000, 7), -1))
            for number in range(1, 1500, 5):
                other.map("m").delete(number)

        elsewhere(lambda: db.run_transaction(change))
        seen += pairs
    assert seen == [(number, number) for number in range(1500)]


def test_a_snapshot_that_has_left_the_history_is_too_old(memory, monkeypatch):
    monkeypatch.setattr("onefold.config.HISTORY_WINDOW_OFFSETS", 0)
    monkeypatch.setattr("onefold.config.HISTORY_PRUNE_EVERY_OFFSETS", 8)
    put(memory, a=1)
    with memory.transaction() as tx:
        assert tx.map("m")["a"] == 1
        for number in range(20):
            elsewhere(lambda number=number: put(memory, b=number))
        with pytest.raises(of.TooOld, match="Run it again, shorter") as caught:
            tx.map("m").get("b")
    assert caught.value.definite
    with pytest.raises(of.TooOld), memory.transaction() as tx:
        tx.map("m")["n"] = len(tx.map("m"))
        for number in range(20):
            elsewhere(lambda number=number: put(memory, "other", b=number))


def test_shards_read_at_different_moments_do_not_pass_as_a_snapshot(tmp_path):
    with opened("shards", tmp_path) as db:
        shards = {number: db._state.shard_of(encode_key(number)) for number in range(20)}
        first, second = 0, next(number for number in shards if shards[number] != shards[0])
        db.run_transaction(lambda tx: tx.map("m").put_many({first: 1, second: 1}))
        with pytest.raises(of.Conflict), db.transaction() as tx:
            assert tx.map("m")[first] == 1
            elsewhere(lambda: db.run_transaction(lambda tx: tx.map("m").put_many({first: 2, second: 2})))
            assert tx.map("m")[second] == 2
        with db.transaction(read_only=True) as tx:
            assert tx.map("m")[first] == 2
            elsewhere(lambda: db.run_transaction(lambda tx: tx.map("m").put_many({first: 1, second: 1})))
            assert tx.map("m")[second] == 2, "it is one moment of all shards"
        with db.transaction(read_only=True) as tx:
            assert tx.map("m")[first] == 1
            elsewhere(lambda: db.run_transaction(lambda tx: tx.map("m").put(first, 3)))


def test_a_scan_of_several_shards_depends_on_each_of_them(tmp_path):
    with opened("shards", tmp_path) as db:
        put(db, b=1)
        of_shard = {db._state.shard_of(encode_key(key)): key for key in "acdefghijk"}
        assert len(of_shard) == 3

        def scan_all(m):
            return list(m)

        def scan_one(m):
            return next(iter(m.scan(start="Z", stop="zz")))

        for scan in (scan_all, scan_one):
            for key in of_shard.values():
                phantom = key if scan is scan_all else f"Z{key}"
                while db._state.shard_of(encode_key(phantom)) != db._state.shard_of(encode_key(key)):
                    phantom += "Z"
                with pytest.raises(of.Conflict), db.transaction() as tx:
                    tx.map("log")["seen"] = str(scan(tx.map("m")))
                    elsewhere(lambda phantom=phantom: put(db, **{phantom: 1}))
                db.run_transaction(lambda tx, phantom=phantom: tx.map("m").delete(phantom))


# -- many at once


def replayed(history):
    """Check committed transactions (version, what each read, what each wrote) by doing them one after another in the order of
    their versions: each must read then what it had read. Returns what is left."""
    state = {}
    for version, reads, writes in sorted(history, key=lambda entry: entry[0]._parts):
        for what, seen in reads:
            if isinstance(what, str):
                assert state.get(what) == seen, f"{version} read {what}"
            else:
                low, high = what
                now = [[key, state[key]] for key in sorted(state) if low <= key < high]
                assert now == seen, f"{version} scanned {what}"
        for key, value in writes:
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return state


def random_transactions(db, seed, count, history):
    rng = random.Random(seed)
    for number in range(count):
        reads, writes = [], []
        try:
            with db.transaction() as tx:
                m = tx.map("m")
                for _ in range(rng.randrange(1, 4)):
                    if rng.random() < 0.7:
                        key = rng.choice("abcdef")
                        reads.append((key, m.get(key)))
                    else:
                        low, high = sorted(rng.sample("abcdefg", 2))
                        reads.append(((low, high), [list(pair) for pair in m.scan(start=low, stop=high)]))
                for key in rng.sample("abcdef", rng.randrange(1, 3)):
                    value = None if rng.random() < 0.3 else f"{seed}/{number}/{key}"
                    if value is not None:
                        m[key] = value
                    else:
                        tx._core.buffer.delete("m", [b"\x02%b\x00" % key.encode()])  # blind, unlike `del`
                    writes.append((key, value))
        except of.Conflict:
            continue
        history.append((tx.version, reads, writes))


@pytest.mark.parametrize("seed", range(3))
def test_concurrent_transactions_equal_a_serial_order_of_them(one_shard, seed):
    db = one_shard  # with several each has a moment of its own
    history = []
    threads = [
        threading.Thread(target=random_transactions, args=(db, 100 * seed + number, 40, history))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(history) > 20
    assert replayed(history) == contents(db)


def test_the_serial_order_check_sees_a_fold_that_does_not_validate(memory, monkeypatch):
    monkeypatch.setattr("onefold.state.fold.machine.validate", lambda store, reads, spans: None)
    history = []
    with memory.transaction() as tx:
        value = tx.map("m").get("a")
        elsewhere(lambda: random_transactions(memory, 1, 30, history))
        tx.map("m")["a"] = "overtaken"
    history.append((tx.version, [("a", value), (("a", "g"), [])], [("a", "overtaken")]))
    with pytest.raises(AssertionError):
        replayed(history)
