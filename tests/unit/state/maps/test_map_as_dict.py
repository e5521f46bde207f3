"""Maps behave as dicts in key order, in memory, in a file and over shards."""

from contextlib import contextmanager
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import onefold as of
from onefold.errors import Conflict, InvalidValue
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.maps.map import Map
from support.sharded_clients import client_of

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
