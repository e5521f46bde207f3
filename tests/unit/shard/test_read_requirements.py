"""Every kind of shard meets a requirement, or says that it did not: there is one way to read from all of them."""

from contextlib import ExitStack, closing

import pytest

import onefold as of
from kit.remote_world import RemoteWorld
from onefold.db import Database
from onefold.env import SYSTEM
from onefold.errors import Unavailable
from onefold.folds import folds as space_folds
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.shard.replica.shard import LocalReplica
from onefold.shard.requirements import Behind, ReadRequirement
from onefold.state.encoding.keys import encode_key
from onefold.state.fold import rows
from support.replicas import Tail

TABLE, KEY = rows.map_table("m"), encode_key("k")
KINDS = ("memory", "embedded", "replica", "remote")
SOON = 0.05


class Programs:
    """A program whose shard is of the kind, and another program of the same space."""

    def __init__(self, kind, tmp_path, stack):
        if kind == "memory":
            self.db = self.other = stack.enter_context(of.connect("memory://"))
        elif kind == "embedded":
            self.db, self.other = (stack.enter_context(of.connect(tmp_path / "space")) for _ in range(2))
        elif kind == "remote":
            world = stack.enter_context(closing(RemoteWorld()))
            self.db, self.other = (stack.enter_context(world.connect()) for _ in range(2))
        else:
            log = MemoryLog()
            self.other = stack.enter_context(
                Database([MemoryShard(log.hold(10**9), space_folds(0, 1), SYSTEM)])
            )
            replica = LocalReplica(
                Tail(log), space_folds(0, 1), SYSTEM, directory=tmp_path / "replica", url="nats://h/s"
            )
            self.db = stack.enter_context(Database([replica]))
        self.shard = self.db._shards[0]

    def reads(self):
        """The ways to read with a requirement; each gives whether it shows the key's row."""

        def view(need):
            with self.shard.view(need=need) as view:
                return view.get(TABLE, KEY) is not None

        return {
            "view": view,
            "peek": lambda need: self.shard.peek(TABLE, KEY, need)[0] is not None,
            "outcome": lambda need: self.shard.outcome("there", need) is not None,
        }


@pytest.fixture(name="programs")
def programs_of_a_kind(request, tmp_path):
    with ExitStack() as stack:
        yield Programs(request.param, tmp_path, stack)


every_kind = pytest.mark.parametrize("programs", KINDS, indirect=True)


@every_kind
@pytest.mark.parametrize("read", ["view", "peek", "outcome"])
def test_an_offset_that_does_not_come_is_an_error(programs, read):
    programs.db.map("m").put("k", 1)
    beyond = programs.shard.applied + 1
    with pytest.raises(Behind) as caught:
        programs.reads()[read](ReadRequirement(beyond, timeout=SOON))
    assert caught.value.definite
    assert isinstance(caught.value, Unavailable)


@every_kind
@pytest.mark.parametrize("need", ["after", "barrier", "fresh"])
@pytest.mark.parametrize("read", ["view", "peek", "outcome"])
def test_a_requirement_shows_what_another_program_wrote(programs, need, read):
    programs.other.map("m").put("k", 1, request_id="there")
    written = programs.other._shards[0].applied
    needs = {
        "after": ReadRequirement(written),
        "barrier": ReadRequirement(barrier=True),
        "fresh": ReadRequirement(fresh_s=0.0),
    }
    assert programs.reads()[read](needs[need])


@every_kind
def test_a_view_says_which_offset_it_shows(programs):
    programs.db.map("m").put("k", 1)
    seen = []
    with programs.shard.view(need=ReadRequirement(seen=seen.append)) as view:
        view.get(TABLE, KEY)
        assert seen[:1] == [view.offset]
    assert set(seen) == {programs.shard.applied}


@every_kind
def test_a_key_of_the_past_is_the_same_in_a_view(programs):
    offsets = []
    for number in range(3):
        programs.db.map("m").put("k", number)
        offsets.append(programs.shard.applied)
    values = []
    for offset in offsets:
        value, shown = programs.shard.peek(TABLE, KEY, at=offset)
        with programs.shard.view(at=offset) as view:
            assert (view.get(TABLE, KEY), view.offset) == (value, shown)
        assert shown == offset
        values.append(rows.read_row(value).value)
    assert len(set(values)) == 3
