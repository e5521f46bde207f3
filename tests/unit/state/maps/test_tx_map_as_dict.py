"""A map inside a transaction is a dict laid over the snapshot, and commits what it showed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onefold as of
from onefold.state.encoding.keys import encode_key, encode_prefix
from onefold.state.encoding.values import encode_value
from onefold.state.fold.maps.ops import Delete, Increment, Put
from onefold.state.transactions.buffer import Buffer, Meter, overlay, value_over
from support.transacted import contents


@pytest.fixture(scope="module")
def shared():
    with of.connect("memory://") as opened:
        yield opened


def put(db, items, name="m", ttl=None):
    with db.transaction() as tx:
        tx.map(name).put_many(items, ttl=ttl)


def in_order(mapping):
    return sorted(mapping.items(), key=lambda pair: encode_key(pair[0]))


KEYS = st.sampled_from([None, b"b", "a", "b", "c", ("a", 1), ("a", 2), ("b", "x"), ((1, 2),), -1, 0, 7, True])
NUMBERS = st.integers(-5, 5)
OPS = st.one_of(
    st.tuples(st.just("set"), KEYS, NUMBERS),
    st.tuples(st.just("del"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("increment"), KEYS, NUMBERS),
    st.tuples(st.just("pop"), KEYS, NUMBERS),
    st.tuples(st.just("setdefault"), KEYS, NUMBERS),
    st.tuples(st.just("modify"), KEYS),
    st.tuples(st.just("update"), st.dictionaries(KEYS, NUMBERS, max_size=4)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("in"), KEYS),
    st.tuples(st.just("get_many"), st.lists(KEYS, max_size=4)),
    st.tuples(st.just("len")),
    st.tuples(
        st.just("scan"),
        st.none() | KEYS,
        st.none() | KEYS,
        st.none() | KEYS,
        st.none() | st.integers(0, 5),
        st.booleans(),
    ),
)


def scanned(model, prefix, start, stop, limit, reverse):
    low, high = encode_prefix(() if prefix is None else prefix)
    pairs = [
        pair
        for pair in in_order(model)
        if low <= encode_key(pair[0]) < high
        and (start is None or encode_key(start) <= encode_key(pair[0]))
        and (stop is None or encode_key(pair[0]) < encode_key(stop))
    ]
    return (pairs[::-1] if reverse else pairs)[:limit]


def step(m, model, op):
    """One operation on both; they must answer alike."""
    match op:
        case "set", key, value:
            m[key] = model[key] = value
        case "del", key:
            if key in model:
                del model[key], m[key]
            else:
                with pytest.raises(KeyError):
                    del m[key]
        case "delete", key:
            assert m.delete(key) == (model.pop(key, None) is not None)
        case "increment", key, by:
            model[key] = model.get(key, 0) + by
            assert m.increment(key, by) is None
        case "pop", key, default:
            assert m.pop(key, default) == model.pop(key, default)
        case "setdefault", key, default:
            assert m.setdefault(key, default) == model.setdefault(key, default)
        case "modify", key:
            model[key] = model.get(key, 10) * 2
            assert m.modify(key, lambda value: value * 2, 10) == model[key]
        case "update", items:
            model.update(items)
            m.update(items)
        case ("clear",):
            model.clear()
            m.clear()
        case "get", key:
            assert m.get(key, "none") == model.get(key, "none")
            item = m.get_item(key)
            assert (None if item is None else item.value) == model.get(key)
        case "in", key:
            assert (key in m) == (key in model)
        case "get_many", keys:
            assert m.get_many(keys) == {key: model[key] for key in keys if key in model}
        case ("len",):
            assert (len(m), bool(m)) == (len(model), bool(model))
        case "scan", prefix, start, stop, limit, reverse:
            seen = m.scan(prefix=prefix, start=start, stop=stop, limit=limit, reverse=reverse)
            assert list(seen) == scanned(model, prefix, start, stop, limit, reverse)


# 0 == False and 1 == True are one key of a dict and two of a map: so of these only True is among KEYS, and no 1.
names = iter(range(1 << 30))


@settings(max_examples=200, deadline=None)
@given(base=st.dictionaries(KEYS, NUMBERS), ops=st.lists(OPS, max_size=25), read_back=st.booleans())
def test_a_map_in_a_transaction_behaves_as_a_dict_and_commits_what_it_showed(shared, base, ops, read_back):
    name = f"m{next(names)}"
    put(shared, base, name)
    model = dict(base)
    with shared.transaction() as tx:
        m = tx.map(name)
        for op in ops:
            step(m, model, op)
        if read_back:
            assert list(m.items()) == in_order(model)
            assert list(m) == list(m.keys()) == [key for key, _ in in_order(model)]
            assert list(reversed(m)) == list(m)[::-1]
            assert list(m.values()) == [value for _, value in in_order(model)]
            assert m == model
    assert contents(shared, name) == model
    for (_, key), value in tx.increments.items():
        assert model[key] == value


ENTRIES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.binary(max_size=1), NUMBERS),
        st.tuples(st.just("delete"), st.binary(max_size=1)),
        st.tuples(st.just("increment"), st.binary(max_size=1), NUMBERS),
    ),
    max_size=30,
)


@given(base=st.dictionaries(st.binary(max_size=1), NUMBERS), ops=ENTRIES, reverse=st.booleans())
def test_the_writes_of_a_buffer_do_what_its_overlay_shows(base, ops, reverse):
    number = encode_value
    below = {key: number(value) for key, value in base.items()}
    model, buffer = dict(base), Buffer(Meter())
    for op in ops:
        match op:
            case "put", key, value:
                buffer.put_many("m", [(key, number(value))])
                model[key] = value
            case "delete", key:
                buffer.delete("m", [key])
                model.pop(key, None)
            case "increment", key, by:
                buffer.increment("m", key, by)
                model[key] = model.get(key, 0) + by
    expected = sorted(((key, number(value)) for key, value in model.items()), reverse=reverse)
    own = buffer.range("m", b"", b"\xff\xff", reverse=reverse)
    assert list(overlay(iter(sorted(below.items(), reverse=reverse)), own, reverse=reverse)) == expected

    applied, touched = dict(below), []
    for write in buffer.writes(lambda key: 0, 0).get(0, []):
        match write:
            case Put():
                applied.update(write.items)
                touched += [key for key, _ in write.items]
            case Delete():
                for key in write.keys:
                    applied.pop(key, None)
                touched += write.keys
            case Increment():
                entry = buffer.get("m", write.key)
                applied[write.key] = value_over(entry, below.get(write.key))
                touched.append(write.key)
    assert sorted(applied.items(), reverse=reverse) == expected
    assert len(touched) == len(set(touched)), "a key is written once"
