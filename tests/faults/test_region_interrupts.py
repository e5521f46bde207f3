"""Exceptions of signal handlers in transactions over collections for every region: whole or nothing, and nothing stays locked."""

import itertools
from contextlib import closing

import pytest

import onefold as of
from onefold.state.core.time_limits import end_of
from support.interrupting import INTERRUPTS, in_a_thread, interrupted_at, places_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
FILES = ("/state/available/", "/state/transaction.py")


class Actions:
    """Each transaction makes ``value`` the value of the key ``k`` of a map, and of one that keeps fields apart."""

    def __init__(self, db):
        self.db = db
        self.value = 0
        self.map = db.map("m", mode="available")
        self.fields = db.map("f", mode="available", merge="fields")
        self.counters = db.counters("n")
        self.sets = db.sets("s")

    def transact(self):
        with self.db.transaction() as tx:
            self.change(tx)

    def run(self):
        self.db.run_transaction(self.change, request_id=f"r{self.value}")

    def change(self, tx):
        one, by_fields = tx.map(self.map), tx.map(self.fields)
        seen = one.get("k")
        list(one.items())
        one["k"] = self.value
        by_fields.patch("k", {"value": self.value})
        tx.counters(self.counters).add("k", self.value - (seen or 0))
        tx.sets(self.sets).add("k", self.value)
        tx.sets(self.sets).discard("k", seen)

    def found_after(self):
        """What another thread finds, and that it can write."""
        # A session may still show what it had read before a write of which it does not know; the log is asked here.
        found = (
            self.map.get("k", consistency="prefix"),
            self.fields.get("k", {}).get("value"),
            self.counters.get("k"),
            self.sets.get("k"),
        )
        self.map["after"] = self.value
        later = self.map.get("k", consistency="prefix")
        if later != found[0]:
            return "what was broken off came with the next write", found, later
        return found


@pytest.mark.parametrize("name", ["transact", "run"])
@pytest.mark.moving(2)
def test_a_transaction_in_a_region_is_whole_or_not_wherever_it_is_interrupted(tmp_path, name):
    kinds = itertools.cycle(INTERRUPTS)
    with closing(of.connect(tmp_path / "space", region="eu", timeout=60)) as db:
        actions = Actions(db)
        actions.value = 1
        action = getattr(actions, name)
        action()
        actions.value = value = 2
        places = places_of(action, FILES)
        assert len(places) > 100
        for place in places:
            old, actions.value = value, actions.value + 1
            where = (place[0].co_filename, place[0].co_name, place[1:])
            interrupted_at(place, action, next(kinds))
            assert end_of(db._state) is None, where
            assert end_of(db._available) is None, where
            found = in_a_thread(actions.found_after)
            value = found[0]
            assert value in (old, actions.value), (where, found)
            assert found == (value, value, value, {value}), where
