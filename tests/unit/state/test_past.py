"""``db.at``: the database as it was, at every moment of its history."""

import copy
import random
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

import onefold as of
from onefold import config
from onefold.backup.restore_embedded import restore_space
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.errors import InvalidArgument, SpaceError, TokenAhead, TokenError, TooOld
from onefold.folds import folds as space_folds
from onefold.space.log_prefix import offset_at, time_at
from onefold.space.open_space import open_shards
from onefold.state.core.tokens import Token, encode_token


def opened(url, env, shards=None):
    return Database(open_shards(url, space_folds, env=env, shards=shards))


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else tmp_path / "space"


def moment(env):
    return datetime.fromtimestamp(env.wall_ms() / 1000, UTC)


def contents(db):
    """What a program can see of it."""
    return {
        "maps": {name: dict(db.map(name)) for name in ("a", "b")},
        "queue": list(db.queue("q").counts()),
        "stream": [(r.partition, r.offset, r.value) for r in db.stream("s").read()],
    }


def do_something(db, rng, model):
    """One random change, to the database and to the model."""
    name, key = rng.choice("ab"), rng.randrange(6)
    match rng.randrange(6):
        case 0 | 1:
            value = rng.randrange(100)
            db.map(name)[key] = model["maps"][name][key] = value
        case 2:
            db.map(name).delete(key)
            model["maps"][name].pop(key, None)
        case 3:
            db.queue("q").put(key)
            model["queue"][0] += 1
        case 4:
            position = len(model["stream"])
            db.stream("s").append(key)
            model["stream"].append((0, position, key))
        case 5:
            db.map(name).clear()
            model["maps"][name].clear()


@pytest.mark.moving(4)
@pytest.mark.parametrize("window", [None, 10], ids=["in the window", "beyond the window"])
@pytest.mark.parametrize("seed", range(3))
def test_at_every_offset_of_a_random_history_it_equals_a_model(url, seed, window, monkeypatch):
    if window is not None:
        monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", window)
        monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 4)
    rng, env = random.Random(seed), SeededEnv(seed)
    with opened(url, env) as db:
        model = {"maps": {"a": {}, "b": {}}, "queue": [0, 0, 0, 0, 0], "stream": []}
        history = [(db.session.token, moment(env), copy.deepcopy(model))]
        for _ in range(60):
            env.advance(rng.randrange(1, 1000) / 1000)
            do_something(db, rng, model)
            history.append((db.session.token, moment(env), copy.deepcopy(model)))
        assert contents(db) == model
        for token, when, expected in rng.sample(history, 25):
            for asked in (token, when):
                with db.at(asked) as past:
                    found = contents(past)
                    assert found == expected, (seed, asked)
                    assert len(past.map("a")) == len(expected["maps"]["a"])
                    assert past.map("a").get(3) == expected["maps"]["a"].get(3)


def test_a_moment_is_of_fold_time_however_the_clocks_of_writers_went(url):
    env = SeededEnv(1)
    with opened(url, env) as db:
        m = db.map("m")
        stamps = []
        for step_ms in (0, 1000, -5000, 1000, 20_000, -20_000, 500, 50_000):
            env._wall_ms += step_ms
            m["n"] = len(stamps)
            stamps.append(env.wall_ms())
        fold, now = [], 0
        for stamp in stamps:
            now = max(now, stamp)
            fold.append(now)
        log = db._shard.log
        first = log.last - len(stamps) + 1  # one record before may only make the fold known
        for at in {*stamps, *(stamp + 1 for stamp in stamps), *(stamp - 1 for stamp in stamps)}:
            expected = max((n for n, folded in enumerate(fold) if folded <= at), default=None)
            found = offset_at(log, at)
            if expected is not None:
                assert found == first + expected, at
                assert time_at(log, found) == fold[expected]


def test_before_the_first_record_there_was_nothing(url):
    env = SeededEnv(2)
    with opened(url, env) as db:
        before = moment(env)
        env.advance(1)
        db.map("m")["k"] = 1
        with db.at(before) as past:
            assert dict(past.map("m")) == {}
            assert past._shard.applied == 0
        with db.at(moment(env)) as past:
            assert dict(past.map("m")) == {"k": 1}


def test_items_whose_lifetime_has_ended_since_are_there(url):
    env = SeededEnv(3)
    with opened(url, env) as db:
        db.map("m").put("k", 1, ttl="5s")
        token, when = db.session.token, moment(env)
        env.advance(60)
        assert "k" not in db.map("m")
        assert dict(db.map("m")) == {}
        for asked in (token, when):
            with db.at(asked) as past:
                assert past.map("m")["k"] == 1
                assert dict(past.map("m")) == {"k": 1}
                with past.transaction(read_only=True) as tx:
                    assert tx.map("m")["k"] == 1


def test_naive_times_are_local_and_the_future_is_refused(url):
    with of.connect(url) as db:
        db.map("m")["k"] = 1
        time.sleep(0.002)
        with db.at(datetime.now()) as past:
            assert past.map("m")["k"] == 1
        with db.at(datetime.now(UTC)) as past:
            assert past.map("m")["k"] == 1
        with pytest.raises(InvalidArgument, match="future"):
            db.at(datetime.now(UTC) + timedelta(hours=1))
        for wrong in (7, None, b"x"):
            with pytest.raises(InvalidArgument, match="datetime"):
                db.at(wrong)
        with pytest.raises(TokenError):
            db.at("yesterday")


def test_the_past_cannot_be_written(url):
    with of.connect(url) as db:
        db.map("m")["k"] = 1
        db.queue("q").put(1)
        applied = db._shard.applied
        with db.at(db.session.token) as past:
            attempts = [
                lambda: past.map("m").put("k", 2),
                lambda: past.map("m").increment("n"),
                lambda: past.queue("q").put(1),
                lambda: past.queue("q").take(timeout=0),
                lambda: past.lock("l", timeout=1).acquire(),
                lambda: past.stream("s").append(1),
                lambda: past.run_transaction(lambda tx: tx.map("m").update(k=2)),
            ]
            for attempt in attempts:
                with pytest.raises(SpaceError, match="as it was"):
                    attempt()
            assert list(past.map("m").watch(timeout=0)) == []
            with pytest.raises(SpaceError, match="nothing to wait for"):
                past._shard.wait(past._shard.applied, None)
        assert db._shard.applied == applied
        assert db.map("m")["k"] == 1  # closing the past leaves the present open


def test_tables_of_jobs_are_there_as_they_were(tmp_path):
    (tmp_path / "a.txt").write_text("x\nx\n")
    with of.connect(tmp_path / "space") as db:
        job = db.read_text(str(tmp_path / "*.txt")).group_by("line").agg(n=of.agg.count()).into("lines")
        job.run(progress=False, workers=1)
        token = db.session.token
        db.map("m")["k"] = 1
        (tmp_path / "b.txt").write_text("y\n")
        with db.at(token) as past:
            assert past.table("lines").to_polars().rows() == [("x", 2)]


def test_a_trimmed_log_says_which_moment_is_the_oldest(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 8)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 4)
    env = SeededEnv(4)
    with opened(tmp_path / "space", env) as db:
        tokens, moments = [], []
        for number in range(40):
            env.advance(1)
            db.map("m")["n"] = number
            tokens.append(db.session.token)
            moments.append(moment(env))
        db.queue("q").put(1)
        db._shard.trim(30)
        for asked in (tokens[5], moments[5]):
            with pytest.raises(TooOld, match=r"oldest record|can be read from") as raised:
                db.at(asked)
            assert "2023-11-14" in str(raised.value)  # a moment, not only an offset
        with db.at(tokens[37]) as past:  # within the window: maps need no log
            assert past.map("m")["n"] == 37
            with pytest.raises(TooOld, match="queues"):
                len(past.queue("q"))


def test_a_space_from_a_snapshot_has_no_past_before_it(tmp_path):
    env = SeededEnv(5)
    with opened(tmp_path / "space", env) as db:
        for number in range(5):
            env.advance(1)
            db.map("m")["n"] = number
        early = moment(env)
        env.advance(1)
        db.map("m")["n"] = 5
        db._shard.snapshot(tmp_path / "snapshot")
    restore_space(tmp_path / "snapshot", tmp_path / "new", space_folds(0, 1))
    with opened(tmp_path / "new", env) as db:
        with db.at(moment(env)) as past:
            assert past.map("m")["n"] == 5
        with pytest.raises(TooOld):
            db.at(early)
        env.advance(1)
        db.map("m")["n"] = 6
        with db.at(moment(env)) as past:
            assert past.map("m")["n"] == 6
        with pytest.raises(TooOld):
            db.at(early)


def test_tokens_that_do_not_fit_are_refused(tmp_path):
    with of.connect(tmp_path / "other") as other:
        other.map("m")["k"] = 1
        foreign = other.session.token
    with of.connect(tmp_path / "space", shards=3) as db:
        empty = db.session.token
        for key in range(20):
            db.map("m")[key] = key
        with pytest.raises(TokenError, match="another space"):
            db.at(foreign)
        one = encode_token(Token(db._shard.incarnation, {0: 1}))
        with pytest.raises(TokenError, match="Give a datetime"):
            db.at(one)
        ahead = encode_token(Token(db._shard.incarnation, {0: 10_000, 1: 1, 2: 1}))
        with pytest.raises(TokenAhead, match="10000"):
            db.at(ahead)
        with db.at(empty) as past:
            assert dict(past.map("m")) == {}


ACCOUNTS, EACH = 8, 100


@pytest.mark.parametrize("seed", range(2))
def test_over_several_shards_no_cut_shows_half_of_a_transaction(tmp_path, seed):
    """Every step of two-phase commit is a record, so cuts are made after each of them: prepared, decided, resolved."""
    rng = random.Random(seed)
    with of.connect(tmp_path / "space", shards=3) as db:
        db.map("bank").update(dict.fromkeys(range(ACCOUNTS), EACH))
        cuts = []

        def noting(space):
            real = space.submit

            def submit(*args, **kwargs):
                try:
                    return real(*args, **kwargs)
                finally:
                    cuts.append({shard: one.applied for shard, one in enumerate(db._shards)})

            return submit

        for space in db._shards:
            space.submit = noting(space)
        for _ in range(8):
            source, target = rng.sample(range(ACCOUNTS), 2)
            with db.transaction() as tx:
                bank = tx.map("bank")
                bank[source] -= 7
                bank[target] += 7
        prepared = 0
        for offsets in cuts:
            token = encode_token(Token(db._shard.incarnation, offsets))
            with db.at(token) as past:
                bank = dict(past.map("bank"))
                assert len(bank) == ACCOUNTS and sum(bank.values()) == ACCOUNTS * EACH, offsets
                prepared += any(space.replay().applied > space.applied for space in past._shards)
        assert prepared, "no cut fell between a decision and what follows it: the test has tested nothing"


def test_views_of_the_past_end_with_the_past(url):
    with of.connect(url) as db:
        db.map("m")["k"] = 1
        past = db.at(db.session.token)
        space = past._shard
        assert len(past.queue("q")) == 0  # folded again
        past.close()
        with pytest.raises(SpaceError, match="closed"):
            past.map("m").get("k")
        with (
            pytest.raises(InvalidArgument),
            closing(db.at(db.session.token)) as again,
            again._shard.view(10**6),
        ):
            pass
        assert space is not None
