"""A transaction with a request id happens at most once, whoever tries it again."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import onefold as of
from onefold import config
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.errors import AppendUnknown
from onefold.folds import folds as space_folds
from onefold.space.open_space import open_shards
from onefold.state.fold.outcomes import Answer, Blocked, Committed, Decided, Rejected, Voted, encode_outcome


@pytest.fixture(params=["memory", "sqlite", "shards"])
def db(request, tmp_path):
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    with of.connect(url, shards=3 if request.param == "shards" else None) as opened:
        yield opened


def elsewhere(fn):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def put(db, **items):
    with db.transaction() as tx:
        tx.map("m").update(items)


def contents(db):
    with db.transaction(read_only=True) as tx:
        return dict(tx.map("m"))


def add_once(db, request_id):
    with db.transaction(request_id) as tx:
        tx.map("m").increment("n")
    return tx


def overtaken(db, request_id):
    """A transaction that loses."""
    with db.transaction(request_id=request_id) as tx:
        seen = tx.map("m").get("x", 0)
        elsewhere(lambda: put(db, x=seen + 10))
        tx.map("m")["x"] = "mine"


def test_a_transaction_happens_once_under_its_request_id(db):
    assert db.outcome("r") is None
    first = add_once(db, "r")
    assert db.outcome("r") == "committed"
    second = add_once(db, "r")
    assert second.version == first.version
    assert (first.increments, second.increments) == ({("m", "n"): 1}, {})
    assert add_once(db, "other").version != first.version
    assert contents(db) == {"n": 2}


def test_a_repeat_with_other_writes_changes_nothing_and_reports_none_of_them(db):
    first = add_once(db, "r")
    with db.transaction("r") as tx:
        m = tx.map("m")
        m["x"] = m.get("n")
        m.increment("k", 5)
    assert (tx.version, tx.increments) == (first.version, {})
    assert contents(db) == {"n": 1}


def test_a_repeat_succeeds_though_what_it_read_has_changed(db):
    put(db, x=1)

    def take(request_id):
        with db.transaction(request_id) as tx:
            m = tx.map("m")
            m["x"] -= 1
        return tx.version

    first = take("r")
    with db.transaction("r") as tx:
        seen = tx.map("m")["x"]
        elsewhere(lambda: put(db, x=50))
        tx.map("m")["x"] = seen - 1
    assert tx.version == first
    assert contents(db) == {"x": 50}


def test_a_request_that_was_rejected_stays_rejected(db):
    with pytest.raises(of.Conflict, match="stays rejected") as caught:
        overtaken(db, "r")
    assert caught.value.definite
    assert db.outcome("r") == "rejected"
    with pytest.raises(of.Conflict, match="stays rejected"):
        add_once(db, "r")
    calls = []

    def fn(tx):
        calls.append(1)
        tx.map("m").increment("n")

    with pytest.raises(of.Conflict, match="was rejected before"):
        db.run_transaction(fn, request_id="r")
    assert len(calls) == 1
    assert contents(db) == {"x": 10}


def test_run_transaction_may_lose_and_win_under_one_request_id(db):
    tries = []

    def fn(tx):
        seen = tx.map("m").get("x", 0)
        if len(tries) < 3:
            elsewhere(lambda: put(db, x=seen + 10))
        tries.append(seen)
        tx.map("m")["x"] = seen + 1
        return db.outcome("r")

    assert db.run_transaction(fn, request_id="r") is None
    assert (tries, db.outcome("r")) == ([0, 10, 20, 30], "committed")
    assert contents(db) == {"x": 31}
    assert db.run_transaction(fn, request_id="r") == "committed"
    assert (len(tries), contents(db)) == (5, {"x": 31})


def test_only_the_last_try_is_kept_as_rejected(db):
    seen = []

    def loses(tx):
        seen.append(db.outcome("r"))
        tx.map("m").get("x")
        elsewhere(lambda: put(db, x=len(seen)))
        tx.map("m")["y"] = 1

    with pytest.raises(of.Conflict):
        db.run_transaction(loses, request_id="r", attempts=3)
    assert (seen, db.outcome("r")) == ([None, None, None], "rejected")


def test_a_transaction_that_writes_nothing_keeps_nothing(db):
    before = db._state.present()
    with db.transaction("r") as tx:
        tx.map("m").get("x")
    assert (db.outcome("r"), db._state.present()) == (None, before)


def test_an_exception_in_the_block_leaves_the_request_id_free(db):
    with pytest.raises(ZeroDivisionError), db.transaction("r") as tx:
        tx.map("m")["x"] = 1
        _ = 1 / 0
    assert db.outcome("r") is None
    add_once(db, "r")
    assert contents(db) == {"n": 1}


def test_a_request_id_must_be_text(db):
    for wrong in ("", 7, b"r", "\ud800", "x" * (config.REQUEST_ID_BYTES_MAX + 1)):
        with pytest.raises(of.InvalidArgument):
            db.transaction(wrong)
        with pytest.raises(of.InvalidArgument):
            db.run_transaction(lambda tx: None, request_id=wrong)
    with pytest.raises(of.InvalidArgument, match="writes nothing"):
        db.transaction("r", read_only=True)


def test_an_outcome_is_forgotten_after_its_retention():
    env = SeededEnv(1)
    with Database(open_shards("memory://", space_folds, env=env)) as db:
        add_once(db, "r")
        env.advance(config.REQUEST_ID_RETENTION_S - 1)
        add_once(db, "r")
        assert (db.outcome("r"), contents(db)) == ("committed", {"n": 1})
        env.advance(2)
        add_once(db, "r")
        assert contents(db) == {"n": 2}


@pytest.mark.parametrize(
    ("kept", "meaning"),
    [
        (Committed(5, 0), "committed"),
        (Rejected("conflict"), "rejected"),
        (Decided("t", True, 5, 0), "committed"),
        (Decided("t", False, 5, 0), "rejected"),
        (Answer(7), "committed"),
        (Voted(True, 5), None),
        (Blocked((("t", 0),)), None),
    ],
)
def test_every_kept_outcome_has_a_meaning(db, kept, meaning, monkeypatch):
    space = db._state.shards[0]
    monkeypatch.setattr(
        type(space), "outcome", lambda self, request_id, need: encode_outcome(kept), raising=True
    )
    assert db.outcome("r") == meaning


def test_an_append_of_unknown_outcome_says_how_to_learn_it(db, monkeypatch):
    def unknown(self, ops, deadline=None, receipt=None):
        raise AppendUnknown("the answer was lost")

    monkeypatch.setattr(type(db._state.shards[0]), "submit", unknown)
    with pytest.raises(AppendUnknown, match=r"db.outcome\('r'\)") as caught:
        add_once(db, "r")
    assert not caught.value.definite
    with pytest.raises(AppendUnknown) as caught, db.transaction() as tx:
        tx.map("m")["x"] = 1
    assert str(caught.value) == "the answer was lost"
    assert tx.version is None
    with pytest.raises(AppendUnknown):
        db.run_transaction(lambda tx: tx.map("m").put("x", 1))


def test_a_request_that_did_happen_before_its_answer_was_lost_is_told(db, monkeypatch):
    space_type = type(db._state.shards[0])
    submit = space_type.submit

    def lost_answer(self, ops, deadline=None, receipt=None):
        submit(self, ops)
        raise AppendUnknown("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(space_type, "submit", lost_answer)
        with pytest.raises(AppendUnknown):
            add_once(db, "r")
    assert db.outcome("r") == "committed"
    add_once(db, "r")
    assert contents(db) == {"n": 1}


PROGRAM = """
import sys
import onefold as of
with of.connect(sys.argv[1]) as db:
    for number in range(30):
        db.run_transaction(lambda tx: tx.map("m").increment("n"), request_id=f"request {number}")
        def move(tx):
            m = tx.map("m")
            m["x"] = m.get("x", 0) + 1
        db.run_transaction(move, request_id=f"move {number}", attempts=200)
"""


def test_two_processes_that_send_the_same_requests_do_each_once(tmp_path):
    path = tmp_path / "space"
    with of.connect(path) as db:
        put(db, x=0)
        processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)]) for _ in range(2)]
        try:
            assert [process.wait(timeout=120) for process in processes] == [0, 0]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        assert contents(db) == {"n": 30, "x": 30}
        assert all(db.outcome(f"request {number}") == "committed" for number in range(30))
