"""Programs without a replica: what calls cost, what becomes of writes, and what is said when nodes or the log do not answer."""

import threading
from contextlib import closing, suppress

import polars as pl
import pytest

import onefold as of
from kit.remote_world import Delivered, RemoteWorld, Way
from onefold import agg, config
from onefold.codec import Op, decode_record
from onefold.fold import system
from onefold.log.memory import Faults
from onefold.shard.remote import protocol
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.requirements import Behind, ReadRequirement
from onefold.state.fold.machine import StateFold
from support.remote_programs import (
    SOON_S,
    TABLE,
    _hedge_soon,  # noqa: F401
    other_program,  # noqa: F401
    remote_program,  # noqa: F401
    remote_world,  # noqa: F401
    stop_nodes,
)


def costs(world, do):
    """What the call asked for, and how many records were appended."""
    world.asked.clear()
    before = world.logs[0].last
    do()
    return dict(world.asked), world.logs[0].last - before


# -- what it costs


def test_a_read_is_one_question_and_a_write_one_append_and_one_question(world, db):
    m = db.map("m")
    assert costs(world, lambda: m.put("k", 1)) == (
        {"Applied": 1, "Known": 1},
        1,
    )  # the first asks where the log is
    assert costs(world, lambda: m.put("k", 2)) == ({"Known": 1}, 1)
    for level in ("session", "prefix", "eventual", "bounded:1h"):
        assert costs(world, lambda level=level: m.get("k", consistency=level)) == ({"Get": 1}, 0)
    assert costs(world, lambda: m.get("k")) == ({"Get": 1}, 1)  # with the node's barrier
    assert costs(world, lambda: m.get_many(["k", "l"], consistency="session")) == ({"Get": 1}, 0)
    assert costs(world, lambda: m.get("k", consistency="bounded:0s")) == ({"Get": 1}, 1)


def test_a_bounded_read_needs_no_barrier_after_ones_own_write_or_strong_read(world, db, other):
    m = db.map("m")
    other.map("m").put("k", 1)
    assert costs(world, lambda: m.get("k", consistency="bounded:1h"))[1] <= 1  # the node may know
    m.get("k")
    for _ in range(5):
        assert costs(world, lambda: m.get("k", consistency="bounded:1h")) == ({"Get": 1}, 0)


def test_in_several_shards_a_strong_read_is_two_questions():
    with closing(RemoteWorld(shards=3)) as world, world.connect() as db:
        m = db.map("m")
        m.put("k", 1)
        assert costs(world, lambda: m.get("k"))[0] == {"Get": 2}


def test_a_transaction_costs_a_question_for_each_read(world, db):
    m = db.map("m")
    m.update({"a": 1, "b": 1})

    def move(tx):
        tx.map("m")["a"] = tx.map("m")["b"]

    asked, records = costs(world, lambda: db.run_transaction(move))
    assert asked == {
        "Scan": 1,
        "Applied": 1,
        "Get": 1,
        "Known": 1,
    }  # what is due, the snapshot, b, the outcome
    assert records == 2  # the barrier and the commit


def test_parts_for_several_shards_are_on_their_way_together(monkeypatch):
    shards = 3
    with closing(RemoteWorld(shards=shards)) as world, world.connect() as db:
        m = db.map("m")
        m.put_many(dict.fromkeys(range(100), 0), atomic=False)  # registers the fold in each shard
        meeting = threading.Barrier(shards, timeout=SOON_S)
        for log in world.logs:

            def append(data, deadline=None, own=log.append):
                meeting.wait()  # breaks when one shard waits for another
                return own(data, deadline)

            monkeypatch.setattr(log, "append", append)
        m.put_many(dict.fromkeys(range(100), 1), atomic=False)
        monkeypatch.undo()
        assert set(m.values()) == {1} and len(m) == 100


def test_many_threads_share_appends(world, db):
    m = db.map("m")
    m.put("k", 0)

    def write(at):
        for _ in range(20):
            m.increment("k")

    threads = [threading.Thread(target=write, args=(at,)) for at in range(8)]
    before = world.logs[0].last
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert m["k"] == 160
    assert world.logs[0].last - before < 161


# -- writing


def test_writes_count_once_whatever_is_lost(world):
    world.logs[0].faults = Faults(refused=0.1, lost_answer=0.2, late=0.1, vanished=0.1)
    world.way = Way(lost=0.2, lost_reply=0.2, twice=0.2, nobody=0.1)
    done = 0
    with world.connect() as db:
        m = db.map("m")
        for _ in range(60):
            with suppress(of.Unavailable):  # definite: the log refused it
                m.increment("n")
                done += 1
        world.logs[0].faults, world.way = Faults(), Way()
        world.logs[0].surface_all()
        assert m.get("n") == done >= 40


def test_a_write_whose_outcome_no_node_tells_may_have_happened(world, monkeypatch):
    monkeypatch.setattr(config, "APPEND_RETRY_S", 0.2)
    with world.connect(timeout=1.5) as db:
        m = db.map("m")
        m.put("k", 1)
        servers = list(world.servers)
        stop_nodes(world)
        with pytest.raises(
            of.Timeout, match=r"in the log .* at offset 2, and no node has told its outcome"
        ) as caught:
            m.put("k", 2, request_id="mine")
        assert not caught.value.definite
        world.servers += servers
        assert db.outcome("mine") == "committed"
        assert m["k"] == 2
        m.put("k", 3)
        assert m["k"] == 3


def test_a_write_that_cannot_begin_is_definite(world, monkeypatch):
    stop_nodes(world)
    monkeypatch.setattr(config, "APPEND_RETRY_S", 0.1)
    with world.connect() as db, pytest.raises(of.Unavailable) as caught:
        db.map("m").put("k", 1)
    assert caught.value.definite
    assert world.logs[0].last == 0


def test_a_record_that_is_not_where_it_was_acknowledged_stops_the_program(world, db):
    m = db.map("m")
    m.put("k", 1)
    space = db._shards[0]
    log, append = space.log, space.log.append

    def forgetful(data, deadline=None):
        """Acknowledges, and loses what it has acknowledged; another record takes its place."""
        offset = append(world.logs[0].read(1)[0].data)
        assert offset
        return offset

    log.append = forgetful
    with pytest.raises(
        of.LogCorrupt, match="acknowledged at offset 2 of memory://remote is not there"
    ) as caught:
        m.put("k", 2)
    assert not caught.value.definite
    log.append = append
    for use in (
        lambda: m.put("k", 3),
        lambda: m.get("k"),
        lambda: space.wait(0, 0),
        lambda: space.view().__enter__(),
    ):
        with pytest.raises(of.LogCorrupt, match="halted"):
            use()


def test_a_copy_that_an_earlier_try_left_is_no_corruption(world, db):
    m = db.map("m")
    m.put("k", 1)
    log = db._shards[0].log
    append = log.append

    def twice(data, deadline=None):
        append(data)
        return append(data)

    log.append = twice
    assert m.increment("n") == 1
    log.append = append
    assert (m["n"], m.increment("n")) == (1, 2)


def test_a_client_that_was_forgotten_begins_anew(world, db, other):
    m = db.map("m")
    m.put("k", 1)
    for number in range(5):
        other.map("m").put("x", number)
    expire = system.ExpireClients(world.logs[0].last)
    assert other._shards[0].submit([system.system_op(expire)]) == [system.ACCEPTED]
    m.put("k", 2)
    assert m["k"] == 2


def test_folds_are_registered_with_the_first_record_of_each_program(world, db, other):
    for opened in (db, other):
        opened.map("m").put("k", 1)
        opened.map("m").put("k", 2)
    ops = [[op.fold for op in decode_record(entry.data).ops] for entry in world.logs[0].read(1)]
    assert ops == [["onefold", "state"], ["state"]] * 2
    with pytest.raises(of.InvalidArgument, match="no fold 'other'"):
        db._shards[0].submit([Op("other", b"")])


def test_a_space_that_was_opened_read_only_writes_nothing(world):
    (space,) = world.open_shards(read_only=True)
    with closing(space), pytest.raises(of.SpaceError, match="read-only"):
        space.submit([system.system_op(system.Tick())])


# -- what is not as it should be


def test_a_space_that_was_restored_is_told(world, db):
    db.map("m").put("k", 1)
    with closing(RemoteWorld()) as restored:
        db._shards[0]._asking = restored.asking(0)
        for use in (lambda: db.map("m").get("k"), lambda: db._shards[0].wait(10, 1.0)):
            with pytest.raises(of.SpaceError, match=r"recreated or restored .*Open it again"):
                use()
        with pytest.raises(of.AppendUnknown, match="recreated or restored"):
            db.map("m").put("k", 2)


def test_replies_that_are_none_are_as_no_reply(world, db):
    db._shards[0]._asking = lambda request, timeout, *, hedge_s: b"\x93garbage"
    with pytest.raises(of.Unavailable, match="garbled"):
        db.map("m").get("k")


def test_a_result_that_does_not_fit_the_question_is_told(world, db):
    def confused(request, timeout, *, hedge_s):
        body = protocol.encode_body("what?")
        return protocol.encode(protocol.Answer(world.logs[0].incarnation, 0, 1, body, len(body)))

    db._shards[0]._asking = confused
    with pytest.raises(of.SpaceError, match="does not understand"):
        db.map("m").get("k")


def test_a_newer_space_is_refused(world, db):
    def newer(request, timeout, *, hedge_s):
        body = protocol.encode_body([None])
        return protocol.encode(protocol.Answer(world.logs[0].incarnation, 0, 99, body, len(body)))

    db._shards[0]._asking = newer
    with pytest.raises(of.SpaceError, match=r"fold version 99.*pip install -U onefold"):
        db.map("m").get("k")


def test_a_replica_that_cannot_serve_is_left_for_another(world, db):
    m = db.map("m")
    m.put("k", 1)
    world.replicas[0][0].close()
    assert {m.get("k") for _ in range(20)} == {1}


def test_a_replica_with_less_history_is_left_for_another(world, db, monkeypatch):
    m = db.map("m")
    m.put("k", 1)
    offset = db._shards[0].applied
    young = world.servers[0][0].shard
    original = young.view

    def view(at=None, need=None):
        if at is not None:
            raise of.TooOld("it started from a snapshot")
        return original(at, need)

    monkeypatch.setattr(young, "view", view)
    found = 0
    for _ in range(20):
        with db._shards[0].view(offset) as view:
            try:
                found += view.count(TABLE)
            except of.TooOld:
                pass
    assert found >= 10


def test_needs_that_no_replica_meets_are_told_apart(world):
    (space,) = world.open_shards()
    with closing(space):
        with pytest.raises(Behind) as caught:
            space.peek(TABLE, b"k", ReadRequirement(after=7, timeout=0.05))
        assert (caught.value.applied, caught.value.definite) == (0, True)
        stop_nodes(world)
        with pytest.raises(of.Unavailable) as lost:
            space.peek(TABLE, b"k", ReadRequirement(after=7, timeout=0.05))
        assert not isinstance(lost.value, Behind)


def test_a_closed_space_says_so(world):
    (space,) = world.open_shards()
    space.close()
    for use in (
        lambda: space.peek(TABLE, b"k"),
        lambda: space.submit([system.system_op(system.Tick())]),
        lambda: space.view().__enter__(),
        space.barrier,
        lambda: space.fresh(1.0),
        lambda: space.reach(1, 0.0),
        lambda: space.member_alive("m_x"),
    ):
        with pytest.raises(of.SpaceError, match="is closed"):
            use()


def test_what_is_known_of_members(world, db):
    space = db._shards[0]
    assert space.member_alive(space.member) is True
    assert space.member_alive("m_somewhere") is None


# -- everything else on it


def test_the_past_is_read_from_the_history_of_nodes(world, db):
    m = db.map("m")
    m.put("k", "old")
    token = db.session.token
    m.put("k", "new")
    with db.at(token) as past:
        assert past.map("m")["k"] == "old"
    assert m["k"] == "new"


def test_a_job_runs_over_it(world, db, tmp_path):
    (tmp_path / "a.csv").write_text("k,v\n" + "".join(f"{number % 3},{number}\n" for number in range(300)))
    db.read_csv(str(tmp_path / "a.csv")).group_by("k").agg(n=agg.count(), s=agg.sum("v")).into("t").run()
    frame = db.table("t").to_polars().sort("k")
    assert frame["n"].to_list() == [100, 100, 100]
    assert frame["s"].to_list() == [sum(range(at, 300, 3)) for at in range(3)]
    assert isinstance(frame, pl.DataFrame)


def test_the_space_asks_nobody_before_it_is_used(world):
    (space,) = world.open_shards()
    assert isinstance(space, RemoteShard)
    assert not world.asked
    with closing(
        RemoteShard(Delivered(world.logs[0]), world.asking(0), [StateFold()], world.env, url="u://x")
    ) as one:
        assert (one.url, one.directory, one.strong_reads) == ("u://x", None, False)
