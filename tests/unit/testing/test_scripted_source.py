"""A scripted source: records come when and in the order that the script says, each once, whatever goes wrong."""

from datetime import timedelta

import pytest

import onefold as of
from onefold.testing import FakeClock, ScriptedSource

SCRIPT = [
    (0, {"page": "/"}, "u1"),
    ("5s", {"page": "/buy"}, "u1"),
    (timedelta(seconds=5), {"page": "/"}, "u2"),
    ("1h", "end"),
]


def values(db, name="clicks"):
    return [record.value for record in db.stream(name).read()]


def test_time_passes_as_the_script_says(onefold_db, onefold_clock):
    start = onefold_clock.now
    source = ScriptedSource("clicks", SCRIPT, partitions=1)
    assert source.play(onefold_db, onefold_clock, until="10s") == 3
    assert onefold_clock.now - start == timedelta(seconds=10)
    assert (source.sent, source.ended) == (3, False)
    assert source.play(onefold_db, onefold_clock, until=60) == 0
    onefold_clock.advance("1m")  # the test's own time comes on top of the script's
    assert source.play(onefold_db, onefold_clock) == 1 and source.ended
    records = list(onefold_db.stream("clicks").read())
    assert [record.value for record in records] == [value for _, value, *_ in SCRIPT]
    assert [record.key for record in records] == ["u1", "u1", "u2", None]
    seconds = [(record.time - start).total_seconds() for record in records]
    assert seconds == [0, 5, 5, 3600 + 60]
    assert source.play(onefold_db, onefold_clock) == 0


def test_a_lifetime_ends_between_two_records(onefold_db, onefold_clock):
    source = ScriptedSource("clicks", SCRIPT)
    onefold_db.map("sessions").put("u1", 1, ttl="30m")
    source.play(onefold_db, onefold_clock, until="5s")
    assert "u1" in onefold_db.map("sessions")
    source.play(onefold_db, onefold_clock)
    assert "u1" not in onefold_db.map("sessions")


def test_two_sources_of_one_stream():
    clock = FakeClock()
    with clock.connect() as db:
        for name in ("left", "right"):
            ScriptedSource("clicks", [(0, name)], name=name).play(db, clock)
            ScriptedSource("clicks", [(0, name)], name=name).play(db, clock)  # the same one again
        assert values(db) == ["left", "right"]


@pytest.mark.parametrize(
    "script",
    [[5], [(1,)], [(1, 2, 3, 4)], [("soon", 1)], [(-1, 1)], [(5, "a"), (4, "b")], [["5s", 1]]],
)
def test_scripts_that_cannot_be_are_told(script):
    with pytest.raises(of.InvalidArgument, match="entry"):
        ScriptedSource("clicks", script)


def test_under_faults_each_record_comes_once_and_in_order(onefold_sim):
    wanted = list(range(40))
    source = ScriptedSource("clicks", [(number * 0.5, number, "k") for number in wanted], partitions=2)
    onefold_sim.client(source.program(onefold_sim))

    def count(db):
        with db.stream("clicks", partitions=2).consumer("counters") as consumer:
            for record in consumer:
                with db.transaction() as tx:
                    seen = tx.map("seen")
                    seen[record.value] = seen.get(record.value, 0) + 1
                    tx.commit(consumer)
                if record.value == wanted[-1]:
                    return

    onefold_sim.client(count)
    onefold_sim.run(faults="all", seconds=20)
    assert source.ended
    with onefold_sim.healed() as db:
        assert values(db) == wanted
        assert dict(db.map("seen")) == dict.fromkeys(wanted, 1)


def test_one_seed_is_one_run():
    def run():
        from onefold.testing import Simulation

        with Simulation(3) as sim:
            source = ScriptedSource("clicks", [(number, number) for number in range(10)])
            sim.client(source.program(sim))
            sim.run(faults="all", seconds=20)
            with sim.healed() as db:
                return sim.trace, [(record.value, record.time) for record in db.stream("clicks").read()]

    assert run() == run()
