"""One log, applied in transactions of any size: the same outcomes and the same state, as if every write were done by itself."""

import random

import apsw
import msgspec
import pytest

from onefold import config
from onefold.codec import Op, Record, encode_record
from onefold.errors import InvalidArgument, SpaceError, TooOld
from onefold.fold.system import ExpireClients, Register, Trim, system_op
from onefold.log.api import Entry
from onefold.state.encoding.values import encode_value
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Clear, Delete, Increment, Put
from onefold.state.fold.ops import Commit, Read, Span, state_op
from onefold.state.fold.queues.ops import Ack, Enqueue, Message, Take
from onefold.store import exactly_once, pending
from onefold.store import writer as sql_store
from onefold.store.exactly_once import Verdict
from onefold.store.replica import Replica
from onefold.store.snapshot import create_store, state_digest
from onefold.store.tables import Tables, oldest_readable, read_head
from onefold.store.writer import SqlStore

KEPT, PLAIN = "prog/kept", "prog/plain"
HISTORY = frozenset({KEPT, *StateFold.history})
SEEDS = range(60)


class Program:
    """A fold whose operations are calls of the store; the outcome is what they returned."""

    name = "prog"
    version = 1
    history = frozenset({KEPT})

    def apply(self, store, context, body, fold_version):
        said = []
        for call, table, *args in msgspec.msgpack.decode(body):
            try:
                found = getattr(store, call)(table, *args)
            except (TooOld, InvalidArgument) as error:
                found = type(error).__name__
            if call == "scan":
                found = list(found)
            said.append(sorted(found.items()) if call == "get_many" else found)
        return msgspec.msgpack.encode(said)


class OneByOne(SqlStore):
    """A store in which no write waits."""

    def put(self, table, key, value):
        super().put(table, key, value)
        self.flush()

    def put_many(self, table, items):
        for key, value in items:
            self.put(table, key, value)

    def delete(self, table, key):
        super().delete(table, key)
        self.flush()


class Remembering(exactly_once.Memory):
    """The same for clients and requests."""

    def save(self, client, known):
        super().save(client, known)
        self._con.execute(
            "UPDATE head SET client = ?, number = ?, client_offset = ?, outcomes = ?", self.flush()
        )

    def keep_request(self, request_id, now_ms, outcome):
        super().keep_request(request_id, now_ms, outcome)
        self._flush_requests()


# -- random logs


def program_op(rng, offset):
    def key():
        return b"k%d" % rng.randrange(20)

    def call():
        table, value = rng.choice((KEPT, PLAIN)), b"%d" % rng.randrange(1000)
        start, stop = key(), rng.choice((None, key()))
        match rng.choices(range(9), (6, 4, 4, 3, 2, 1, 1, 1, 1))[0]:
            case 0:
                return ("put", table, key(), value)
            case 1:
                return ("put_many", table, [(key(), value) for _ in range(rng.choice((0, 1, 3, 15)))])
            case 2:
                return ("delete", table, key())
            case 3:
                return ("get", table, key())
            case 4:
                return ("get_many", table, [key() for _ in range(5)])
            case 5:
                return ("delete_range", table, start, stop)
            case 6:
                return ("scan", table, start, stop)
            case 7:
                return ("count", table, start, stop)
            case 8:
                return ("changed_since", table, start, stop, max(0, offset - rng.randrange(40)))

    return Op(
        "prog",
        msgspec.msgpack.encode([call() for _ in range(rng.randint(1, 5))]),
        rng.choice((None, f"p{offset}")),
    )


def state_op_of(rng, offset):
    def key():
        return b"\x02k%d\x00" % rng.randrange(12)

    def write():
        match rng.randrange(6):
            case 0:
                return Put("m", tuple((key(), encode_value(rng.randrange(9))) for _ in range(3)))
            case 1:
                return Put("m", ((key(), encode_value("short")),), rng.randrange(1, 200))
            case 2:
                return Delete("m", (key(), key()))
            case 3:
                return Increment("n", key(), encode_value(1), rng.choice((None, 50)))
            case 4:
                return Clear("m", *sorted((key(), key())))
            case 5:
                return Enqueue("q", (Message(encode_value(offset), None, rng.choice((0, 30))),))

    chance = rng.random()
    if chance < 0.1:
        return state_op(Take("q", "m_1", 1000, 3))
    if chance < 0.2:
        return state_op(Ack("q", rng.randrange(30), rng.randrange(1, 3)))
    reads = (Read("m", key(), rng.randrange(offset), 0),) if chance < 0.4 else ()
    spans = (Span("m", *sorted((key(), key())), max(0, offset - rng.randrange(40))),) if chance < 0.3 else ()
    writes = tuple(write() for _ in range(rng.randint(1, 3)))
    return state_op(
        Commit(reads, spans, writes, rng.random() < 0.5), rng.choice((None, None, f"r{rng.randrange(60)}"))
    )


def a_log(seed, records=90):
    """Records of a few clients: some twice, some with a number too high, some garbage."""
    rng = random.Random(seed)
    numbers = dict.fromkeys(("c0-a", "c0-b", "c1-c"), 0)
    entries, now_ms = [], 1000
    for offset in range(1, records + 1):
        now_ms += rng.choice((0, 0, 10, 100))
        client = rng.choice(list(numbers))
        ops = [rng.choice((program_op, state_op_of))(rng, offset) for _ in range(rng.choice((1, 1, 2, 12)))]
        if offset < 4:
            client, ops = "c0-a", [system_op(Register(("prog", "state"))), *ops]
        elif rng.random() < 0.05:
            ops.append(system_op(rng.choice((ExpireClients(offset - 3), Trim(offset - 5)))))
        number = numbers[client] + rng.choices((1, 0, 2), (20, 2, 1))[0]
        if number == numbers[client] + 1:
            numbers[client] = number
        data = encode_record(Record(client, number, now_ms, tuple(ops)))
        entries.append(Entry(offset, b"garbage" if rng.random() < 0.03 else data, now_ms))
    return entries


# -- applying them


def fold(entries, sizes, *, one_by_one=False):
    """The outcomes, the digest of the state, and the history that can be read, after transactions of these sizes."""
    con = apsw.Connection(":memory:")
    create_store(con)
    tables = Tables()
    applier = Replica(con, tables, [Program(), StateFold()], keep_all=True)
    if one_by_one:
        applier._store = OneByOne(con, tables, applier.history, keep_all=True)
        applier._memory = Remembering(con)
    applied, at = [], 0
    while at < len(entries):
        size = next(sizes)
        con.execute("BEGIN")
        applier.load()
        applied += [applier.apply(entry) for entry in entries[at : at + size]]
        applier.flush()
        con.execute("COMMIT")
        applier.commit()
        at += size
    oldest = oldest_readable(len(entries))
    history = con.execute(
        "SELECT name, k, offset, idx, v FROM history JOIN tables ON t = id WHERE offset > ? ORDER BY 1, 2, 3, 4",
        (oldest,),
    ).fetchall()
    return applied, state_digest(con, HISTORY), history


def in_twos_and_more(seed):
    rng = random.Random(seed)
    while True:
        yield rng.choice((1, 2, 5, 30))


def all_at_once():
    yield 1 << 30


@pytest.fixture
def short_history(monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 20)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 8)
    monkeypatch.setattr(config, "REQUEST_ID_RETENTION_S", 0.3)


@pytest.mark.moving(4)
@pytest.mark.parametrize("start", range(0, len(SEEDS), 15))
def test_any_batches_give_the_same_state(start, short_history, monkeypatch):
    verdicts = set()
    for seed in SEEDS[start : start + 15]:
        entries = a_log(seed)
        wanted = fold(entries, iter(lambda: 1, 0), one_by_one=True)
        verdicts.update(one.verdict for one in wanted[0])
        for few, rows in ((8, 200_000), (0, 200_000), (8, 10)):
            monkeypatch.setattr(pending, "_FEW", few)
            monkeypatch.setattr(sql_store, "_PENDING_ROWS_MAX", rows)
            for name, sizes in (
                ("one by one", iter(lambda: 1, 0)),
                ("in batches", in_twos_and_more(seed)),
                ("at once", all_at_once()),
            ):
                assert fold(entries, sizes) == wanted, f"seed {seed}, {name}, {few} few, {rows} rows"
    assert verdicts >= {Verdict.APPLY, Verdict.DUPLICATE, Verdict.GAP, Verdict.MALFORMED}


def forget_what_was_before(self, key, value, place):
    self._first.setdefault(key, place)
    self.values[key] = value


def keep_what_is_newest(self, con, keys, _oldest, write=pending.Pending._flush_few):
    write(self, con, keys, _oldest)
    for key in self._first:
        con.execute(
            "INSERT OR REPLACE INTO history VALUES(?, ?, ?, ?, ?, ?)",
            (self.tid, self._first[key][0] // pending.SPAN, key, *self._first[key], self.values[key]),
        )


@pytest.mark.parametrize(
    ("name", "planted"), [("put", forget_what_was_before), ("_flush_few", keep_what_is_newest)]
)
def test_planted_bugs_are_caught(name, planted, short_history, monkeypatch):
    logs = [a_log(seed) for seed in SEEDS[:10]]
    wanted = [fold(entries, all_at_once()) for entries in logs]
    monkeypatch.setattr(pending.Pending, name, planted)
    assert [fold(entries, all_at_once()) for entries in logs] != wanted


# -- transactions that end otherwise


def registered():
    con = apsw.Connection(":memory:")
    create_store(con)
    applier = Replica(con, Tables(), [Program(), StateFold()])
    entries = a_log(7)
    con.execute("BEGIN")
    applier.load()
    for entry in entries[:10]:
        applier.apply(entry)
    applier.flush()
    con.execute("COMMIT")
    applier.commit()
    return con, applier, entries


def test_a_transaction_that_is_rolled_back_leaves_nothing_behind():
    con, applier, entries = registered()
    before = state_digest(con, HISTORY)
    for flushed in (False, True):
        con.execute("BEGIN")
        applier.load()
        first = [applier.apply(entry) for entry in entries[10:]]
        if flushed:
            applier.flush()
        con.execute("ROLLBACK")
        applier.rollback()
        assert state_digest(con, HISTORY) == before
        con.execute("BEGIN")
        assert applier.load().applied == 10
        assert [applier.apply(entry) for entry in entries[10:]] == first
        con.execute("ROLLBACK")
        applier.rollback()


def test_a_commit_without_a_flush_is_noticed():
    con, applier, entries = registered()
    con.execute("BEGIN")
    applier.load()
    applier.apply(entries[10])
    con.execute("COMMIT")
    with pytest.raises(SpaceError, match="flush"):
        applier.commit()
    assert read_head(con).applied == 10


def test_a_batch_is_a_handful_of_statements():
    """2,000 operations of one key each, in 10 records, are written by fewer than 200 statements."""
    con, applier, _ = registered()
    statements = []
    ops = [
        [state_op(Commit((), (), (Put("m", ((b"%d" % (200 * n + i), b"\x01"),)),))) for i in range(200)]
        for n in range(10)
    ]
    records = [
        Entry(11 + n, encode_record(Record("c0-new", 1 + n, 10_000 + n, tuple(some))), 10_000 + n)
        for n, some in enumerate(ops)
    ]
    con.execute("BEGIN")
    applier.load()
    con.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
    applied = [applier.apply(record) for record in records]
    applier.flush()
    con.trace_v2(0, None)
    con.execute("COMMIT")
    applier.commit()
    assert all(one.verdict is Verdict.APPLY for one in applied)
    assert len(statements) < 200
