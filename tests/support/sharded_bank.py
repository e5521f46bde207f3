"""A bank over several shards: its accounts, transfers that may be killed at a step, and what must hold in the end.

Coordinators run in threads of which one at a time goes on, from one append, view or pause to the next; a seed says which.
"""

import pytest

from kit.sharded_world import ShardedWorld
from onefold.errors import OnefoldError
from onefold.space import cuts
from onefold.state.core import recovery
from onefold.state.core.consistency import STRONG
from onefold.state.encoding import values
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold import lock_table, rows
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Read, Span
from onefold.state.fold.outcomes import Committed
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.transactions import coordinator, moments
from onefold.state.transactions.over_shards import ShardPart, commit_over_shards, snapshot_read

SHARDS = 3
BALANCE = 100
MAP, MARKS = "accounts", "marks"


def keys_of(shard, many):
    found = (encode_key(f"a{number}") for number in range(1000))
    return [key for key in found if shard_of(key, SHARDS) == shard][:many]


ACCOUNTS = {shard: keys_of(shard, 2) for shard in range(SHARDS)}
ALL = [key for keys in ACCOUNTS.values() for key in keys]


class World(ShardedWorld):
    """A bank."""

    def __init__(self, seed, **options):
        super().__init__(seed, SHARDS, **options)
        self.acked, self.refused, self.marks = [], [], 0

    def open_accounts(self):
        client = self.client()
        for shard, keys in ACCOUNTS.items():
            items = tuple((key, values.encode_value(BALANCE)) for key in keys)
            client.commit(shard, (Put(MAP, items),))

    # -- what programs do

    def transfer(self, client, source, target, amount, request_id=None):
        """One try, which also marks every shard that it writes."""
        self.marks += 1
        mark = f"mark{self.marks}"
        taken, given = read_account(client, source), read_account(client, target)
        parts = {}
        for (key, (number, read)), change in ((((source, taken)), -amount), (((target, given)), amount)):
            shard = client.shard_of(key)
            put = Put(MAP, ((key, values.encode_value(number + change)),))
            one = ShardPart((read,), (), (put, Put(MARKS, ((encode_key(mark), b"\xc3"),))))
            parts[shard] = one
        try:
            done = commit_over_shards(client, parts, request_id)
        except OnefoldError as error:
            if error.definite:
                self.refused.append(mark)
            raise
        assert set(done) >= set(parts)
        assert all(isinstance(one, Committed) for one in done.values())
        self.acked.append((mark, tuple(parts)))

    # -- what must hold

    def check(self):
        """Everything ends, atomically; what was acknowledged is there, what was refused is not; replays agree."""
        client = self.end()
        found = {}
        for shard, space in enumerate(client.shards):
            with space.view() as view:
                for key, _ in view.scan(rows.map_table(MARKS)):
                    found.setdefault(key, set()).add(shard)
        assert sum(read_account(client, key)[0] for key in ALL) == BALANCE * len(ALL)
        for mark, shards in self.acked:
            assert found.get(encode_key(mark)) == set(shards), f"{mark} was acknowledged"
        for mark in self.refused:
            assert encode_key(mark) not in found, f"{mark} was refused for certain"
        for key, shards in found.items():
            assert len(shards) == 2, f"{key} was done in a part of its shards: {shards}"
        return found


def read_account(client, key):
    """The balance, and the read of it."""
    with client.view(client.shard_of(key), STRONG) as view:
        row = rows.read_row(view.get(rows.map_table(MAP), key))
    return values.decode_value(row.value), Read(MAP, key, row.offset, row.index)


def balances_at(client, offsets):
    """All balances as of these offsets of the shards."""
    state = {}
    for shard, offset in offsets.items():
        with client.shards[shard].view(at=offset) as view:
            pairs = list(view.scan(rows.map_table(MAP)))
        state |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
    return state


def read_all(client):
    """All balances in one moment's state."""

    def read():
        found, parts = {}, {}
        for shard in range(SHARDS):
            with client.view(shard, STRONG) as view:
                pairs = list(view.scan(rows.map_table(MAP)))
                parts[shard] = ShardPart(spans=(Span(MAP, b"", b"\xff", view.offset),))
            found |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
        return found, parts

    return snapshot_read(client, read, lambda offsets: balances_at(client, offsets))


SOURCE, TARGET = ACCOUNTS[0][0], ACCOUNTS[2][0]


@pytest.fixture(name="world")
def open_bank():
    made = World(1)
    made.open_accounts()
    return made


def steps_of_a_transfer():
    world = World(0)
    world.open_accounts()
    client = world.client()
    worker = world.stepper.start(lambda: world.transfer(client, SOURCE, TARGET, 30))
    world.stepper.run()
    return worker.steps


STEPS = steps_of_a_transfer()


def killed_at(step, **options):
    """A world in which a coordinator was killed at that step of a transfer."""
    world = World(step, **options)
    world.open_accounts()
    client = world.client()
    worker = world.stepper.start(lambda: world.transfer(client, SOURCE, TARGET, 30), kill_at=step)
    world.stepper.run()
    assert worker.killed
    return world, client


def locked(client):
    found = False
    for space in client.shards:
        with space.view() as view:
            found = found or lock_table.is_any_held(view)
    return found


def planted(monkeypatch, bug):
    if bug == "a Prepare without locks":
        monkeypatch.setattr(lock_table, "take", lambda *_: None)
    elif bug == "the last Decide wins":
        first = shard_fold.decide

        def last(store, context, op):
            store.delete("state/x/decided", op.transaction.encode())
            return first(store, context, op)

        monkeypatch.setattr(shard_fold, "decide", last)
    elif bug == "a reader that does not ask the home shard":
        monkeypatch.setattr(recovery, "_decided_in", lambda *_: ())
        monkeypatch.setattr(moments, "_undone", lambda _: [])
    elif bug == "a no taken for a yes":
        ask = coordinator.Coordinator.prepare
        monkeypatch.setattr(coordinator.Coordinator, "prepare", lambda self: ask(self) and None)
    elif bug == "a cut that is not validated":

        def whatever(spaces, pin, offset_of, stack, *, locked, until_s=None):
            return [stack.enter_context(pin(space)) for space in spaces]

        monkeypatch.setattr(cuts, "unmoved", whatever)
