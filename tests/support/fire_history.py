"""What programs of ``tests/cluster/fire_program.py`` did, read from their journals, and what has to hold of it at the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onefold as of
from cluster.fire_program import ACCOUNTS, KEYS, OPENING, RARE, STOCK
from onefold.log.jetstream.regions import region_of
from onefold.testing.history import Operation
from onefold.testing.session_checks import check_session


@dataclass
class Done:
    """One operation; its status is ``open`` when nobody knows how it ended."""

    id: str
    thread: str
    kind: str
    key: Any
    value: Any
    begun: float
    ended: float = float("inf")
    status: str = "open"
    result: Any = None
    said: str = ""

    @property
    def sure(self) -> bool:
        return self.status == "ok"

    @property
    def possible(self) -> bool:
        """Whether it may have happened."""
        return self.status in ("ok", "info", "open")

    @property
    def program(self) -> str:
        return self.id.rpartition("-")[0]


def read(path: Path) -> list[Done]:
    """What a program did, in the order in which it began."""
    found: dict[str, Done] = {}
    text = path.read_bytes() if path.exists() else b""
    for line in text[: text.rfind(b"\n") + 1].splitlines():  # it may just be writing one
        said = json.loads(line)
        at, name = said.pop("t"), said.pop("id")
        if "kind" in said:
            found[name] = Done(name, begun=at, **said)
        else:
            one = found[name]
            one.ended, one.status, one.result, one.said = at, said["status"], said["result"], said["said"]
    return list(found.values())


def resolve(done: Iterable[Done], outcome: Callable[[Done], str | None]) -> None:
    """Learn of additions in doubt whether they happened."""
    for one in done:
        if one.status in ("info", "open") and one.kind in ("like", "sell", "order"):
            one.status = "ok" if outcome(one) == "committed" else "fail"


def check_acknowledged(db: of.Database, done: list[Done]) -> None:
    """All of what was acknowledged is there, and nothing else but what is in doubt, after ``resolve``."""
    kinds: dict[str, list[Done]] = defaultdict(list)
    for one in done:
        kinds[one.kind].append(one)
    _check_registers(db, kinds)
    _check_races(db, kinds)
    _check_sums(db, kinds)
    _check_sets(db, kinds)
    _check_transfers(db, kinds["transfer"])
    for one in kinds["check"]:
        assert not one.sure or one.result[0] == one.result[1], f"an order was seen in part: {one}"


def _check_registers(db: of.Database, kinds: dict[str, list[Done]]) -> None:
    """Keys and fields that one program writes."""
    people = db.map("people", mode="available", merge="fields")
    found = dict(db.map("registers", mode="available").items())
    fields = {(key, name): n for key, value in people.items() for name, n in value.items()}
    fields.update(found)
    written: dict[Any, list[Done]] = defaultdict(list)
    for one in kinds["write"]:
        written[one.key].append(one)
    for one in kinds["patch"]:
        written[(one.key, one.program)].append(one)
    assert fields.keys() <= written.keys()
    for key, ones in written.items():
        least = max((one.value for one in ones if one.sure), default=0)
        possible = {one.value for one in ones if one.possible} | {0}
        assert fields.get(key, 0) >= least and fields.get(key, 0) in possible, (key, fields.get(key), least)


def _check_races(db: of.Database, kinds: dict[str, list[Done]]) -> None:
    """Keys that all programs write."""
    shared = db.map("shared", mode="available")
    drafts = db.map("drafts", mode="available", merge="keep_both")
    for key in range(KEYS):
        raced = {one.value for one in kinds["race"] if one.key == key and one.possible}
        assert key not in shared or shared[key] in raced
        assert key in shared or not [one for one in kinds["race"] if one.key == key and one.sure]
        ones = {one.value: one for one in kinds["keep"] if one.key == key and one.possible}
        found = drafts.get(key) or []
        assert ones.keys() >= set(found), f"nobody wrote {set(found) - ones.keys()}"
        siblings = [ones[text] for text in found]
        regions = [region_of(one.program) for one in siblings]
        assert len(set(regions)) == len(regions), f"two siblings of one region: {siblings}"
        for one in ones.values():
            # What is gone was replaced by a put that ended later, and so on up to one that is there.
            if one.sure and one not in siblings:
                assert any(other.ended > one.begun for other in siblings), f"lost: {one}, {siblings}"


def _check_sums(db: of.Database, kinds: dict[str, list[Done]]) -> None:
    added: Counter[int] = Counter()
    for one in kinds["like"]:
        added[one.key] += one.value * one.sure
    assert dict(db.counters("likes").items()) == {key: n for key, n in added.items() if n}
    orders = {key for key, _ in db.map("orders", mode="available").items()}
    assert orders == {tuple(one.value) for one in kinds["order"] if one.sure}
    counted = Counter(key for key, _, _ in orders)
    assert dict(db.counters("totals").items()) == dict(counted)
    stock = db.counters("stock", floor=0)
    for ware, had in (("plenty", STOCK), ("rare", RARE)):
        sold = sum(one.sure for one in kinds["sell"] if one.key == ware)
        assert stock.get(ware) == had - sold >= 0, ware
        for one in kinds["sell"]:
            assert not one.sure or one.key != ware or one.result is None or one.result >= 0, one


def _check_sets(db: of.Database, kinds: dict[str, list[Done]]) -> None:
    """Each element is added and taken out by one program only."""
    found = {(key, text) for key, texts in db.sets("tags").items() for text in texts}
    gone = {(one.key, one.value) for one in kinds["untag"] if one.sure}
    perhaps = {(one.key, one.value) for one in kinds["untag"] if one.possible}
    sure = {(one.key, one.value) for one in kinds["tag"] if one.sure}
    possible = {(one.key, one.value) for one in kinds["tag"] if one.possible}
    assert sure - perhaps <= found, sure - perhaps - found
    assert found <= possible - gone, found - (possible - gone)


def _check_transfers(db: of.Database, transfers: list[Done]) -> None:
    """Accounts are what the ledger says, and the ledger has what was acknowledged."""
    ledger = dict(db.map("ledger").items())
    assert {one.id for one in transfers if one.sure} <= ledger.keys()
    assert ledger.keys() <= {one.id for one in transfers if one.possible}
    balances = dict.fromkeys(range(ACCOUNTS), OPENING)
    for debit, credit, amount in ledger.values():
        balances[debit] -= amount
        balances[credit] += amount
    assert dict(db.map("accounts").items()) == balances


def check_sessions(done: list[Done], names: list[str]) -> None:
    """Nobody reads less than it has seen, nor a write before what that was made from, in whatever region."""
    operations = []
    for one in done:
        if one.kind not in ("write", "read") or one.status in ("fail", "error"):
            continue
        result: Any = None
        if one.kind == "read":
            result = (one.result, one.result or 0)
        elif one.sure:
            result = one.value  # only its owner writes a key, one higher number after the other
        status: Any = "ok" if one.sure else "info"
        ended = one.ended if one.sure else None
        process = names.index(one.program)
        operations.append(Operation(process, one.kind, one.key, one.value, result, one.begun, ended, status))
    verdict = check_session(operations, global_order=False)
    verdict.require()


def pauses(done: list[Done], thread: str, since: float) -> tuple[float, float]:
    """(the longest of the operations that ended after a moment, when the first one that began after it had ended)."""
    ended = [one for one in done if one.thread == thread and one.sure and one.ended >= since]
    longest = max((one.ended - one.begun for one in ended), default=0.0)
    return longest, min((one.ended for one in ended if one.begun >= since), default=since) - since
