"""The store against a model: tables, scans, and every past offset in the window."""

import random

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold import config
from onefold.errors import InvalidArgument, SpaceError, TooOld
from onefold.fold.api import prefix_stop
from onefold.store.pending import SPAN
from onefold.store.snapshot import create_store
from onefold.store.tables import PastView, SqlView, Tables, oldest_readable
from onefold.store.writer import SqlStore

KEPT, PLAIN = "f/kept", "f/plain"
KEY = st.binary(max_size=2)
WRITE = st.one_of(
    st.tuples(st.just("put"), KEY, st.binary(max_size=3)),
    st.tuples(st.just("put_many"), st.lists(st.tuples(KEY, st.binary(max_size=3)), max_size=5), st.none()),
    st.tuples(st.just("delete"), KEY, st.none()),
    st.tuples(st.just("delete_range"), KEY, st.one_of(st.none(), KEY)),
)


def new_store(history=frozenset({KEPT}), **options):
    con = apsw.Connection(":memory:")
    create_store(con)
    return con, Tables(), SqlStore(con, Tables(), history, **options)


def at_offset(con, store, offset, index=0):
    store.start(offset)
    store.turn("f", index)
    con.execute("UPDATE head SET applied = ?", (offset,))


def write(store, table, model, what):
    match what:
        case ("put", key, value):
            store.put(table, key, value)
            model[key] = value
        case ("put_many", items, _):
            store.put_many(table, items)
            model.update(items)
        case ("delete", key, _):
            store.delete(table, key)
            model.pop(key, None)
        case ("delete_range", start, stop):
            store.delete_range(table, start, stop)
            for key in [key for key in model if key >= start and (stop is None or key < stop)]:
                del model[key]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(WRITE, max_size=4), max_size=8),
    KEY,
    st.one_of(st.none(), KEY),
    st.one_of(st.none(), st.integers(0, 4)),
    st.integers(1, 3),
)
def test_every_offset_reads_as_it_was(batches, start, stop, limit, flush_every):
    con, tables, store = new_store()
    model, past = {}, [{}]
    for offset, writes in enumerate(batches, 1):
        for index, what in enumerate(writes):
            at_offset(con, store, offset, index)
            write(store, KEPT, model, what)
            write(store, PLAIN, dict(model), what)
            assert {key: store.get(KEPT, key) for key in [*model, b"none"]} == {**model, b"none": None}
            assert store.get_many(PLAIN, [*model, b"none"]) == model
        at_offset(con, store, offset)
        if offset % flush_every == 0:
            store.flush()
        past.append(dict(model))
    assert list(store.scan(KEPT)) == sorted(model.items())
    assert store.count(PLAIN) == len(model)
    store.flush()
    views = [(SqlView(con, tables), model), (store, model)]
    views += [(PastView(con, tables, offset), then) for offset, then in enumerate(past)]
    for view, then in views:
        wanted = sorted(
            pair for pair in then.items() if pair[0] >= start and (stop is None or pair[0] < stop)
        )
        assert list(view.scan(KEPT, start, stop, limit=limit)) == wanted[:limit]
        assert list(view.scan(KEPT, start, stop, limit=limit, reverse=True)) == wanted[::-1][:limit]
        assert {key: view.get(KEPT, key) for key in [*then, b"none"]} == {**then, b"none": None}
        assert view.get_many(KEPT, [*then, b"none", *then]) == then
    view = SqlView(con, tables)
    for offset in range(len(past)):
        replayed = dict(past[offset])
        for change in view.changes(KEPT, offset):
            replayed[change.key] = change.value
        assert {key: value for key, value in replayed.items() if value is not None} == model
        if not view.changed_since(KEPT, start, stop, offset):
            unchanged = [
                pair for pair in past[offset].items() if pair[0] >= start and (stop is None or pair[0] < stop)
            ]
            assert all(model[key] == value for key, value in unchanged)


@pytest.mark.parametrize("seed", range(3))
def test_scans_are_paged(seed):
    rng = random.Random(seed)
    con, tables, store = new_store()
    at_offset(con, store, 1)
    pairs = {rng.randbytes(rng.randrange(1, 6)): b"v%d" % number for number in range(3000)}
    store.put_many(KEPT, pairs.items())
    at_offset(con, store, 2)
    store.delete_range(KEPT, b"\x40", b"\xc0")
    store.flush()
    wanted = sorted(pairs.items())
    left = [pair for pair in wanted if not b"\x40" <= pair[0] < b"\xc0"]
    assert list(SqlView(con, tables).scan(KEPT)) == left
    for limit in (None, 1, 511, 512, 513, 1500):
        past = PastView(con, tables, 1)
        assert list(past.scan(KEPT, limit=limit)) == wanted[:limit]
        assert list(past.scan(KEPT, limit=limit, reverse=True)) == wanted[::-1][:limit]
    assert SqlView(con, tables).get_many(KEPT, pairs) == dict(left)


def test_versions_beyond_the_window_are_too_old(monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 20)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 10)
    con, tables, store = new_store()
    for offset in range(1, 101):
        at_offset(con, store, offset)
        store.put(KEPT, b"k", b"%d" % offset)
        if offset % 10 == 0:
            store.prune()
            store.flush()
    assert oldest_readable(100) == 80
    assert PastView(con, tables, 80).get(KEPT, b"k") == b"80"
    with pytest.raises(TooOld, match="from offset 80"):
        PastView(con, tables, 79).get(KEPT, b"k")
    assert con.execute("SELECT min(offset) FROM history").get == 80 // SPAN * SPAN


def test_a_table_without_history_says_so():
    con, tables, store = new_store()
    at_offset(con, store, 1)
    store.put(PLAIN, b"k", b"v")
    with pytest.raises(InvalidArgument, match="keeps no history"):
        PastView(con, tables, 0).get(PLAIN, b"k")
    store.put(KEPT, b"k", b"v")
    with pytest.raises(InvalidArgument, match="beyond"):
        PastView(con, tables, 2).changes(KEPT, 2)


def test_history_begins_when_the_fold_begins_to_keep_it():
    con, tables, store = new_store(frozenset())
    at_offset(con, store, 1)
    store.put("f/late", b"k", b"1")
    store.flush()
    store = SqlStore(con, tables, frozenset({"f/"}))
    for offset in (5, 6):
        at_offset(con, store, offset)
        store.put("f/late", b"k", b"%d" % offset)
    store.flush()
    assert PastView(con, tables, 4).get("f/late", b"k") == b"1"
    assert PastView(con, tables, 5).get("f/late", b"k") == b"5"
    with pytest.raises(TooOld):
        PastView(con, tables, 3).get("f/late", b"k")


def test_what_was_rolled_back_is_forgotten():
    con, tables, store = new_store()
    at_offset(con, store, 1)
    store.put(KEPT, b"k", b"1")
    store.flush()
    store.settle()
    con.execute("BEGIN")
    at_offset(con, store, 2)
    store.put(KEPT, b"k", b"2")
    store.put("f/new", b"k", b"2")
    con.execute("ROLLBACK")
    store.forget()
    assert store.get(KEPT, b"k") == b"1"
    store.flush()
    assert list(SqlView(con, tables).scan(KEPT)) == [(b"k", b"1")]
    assert SqlView(con, tables).tables("f/") == [KEPT]


def test_a_fold_cannot_write_to_anothers_table():
    con, _, store = new_store()
    at_offset(con, store, 1)
    for table in ("g/x", "f", "fx/y"):
        with pytest.raises(SpaceError, match="not below f/"):
            store.put(table, b"k", b"v")


def test_a_view_that_ended_says_so():
    con, tables, _ = new_store()
    view = SqlView(con, tables)
    view.end()
    with pytest.raises(SpaceError, match="with"):
        view.get(KEPT, b"k")


def test_prefix_stop():
    assert prefix_stop(b"a") == b"b"
    assert prefix_stop(b"a\xff\xff") == b"b"
    assert prefix_stop(b"\xff") is None
    assert prefix_stop(b"") is None
