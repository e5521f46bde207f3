"""Two or three regions with everything that can go wrong between them, from a seed.

Faults first. Links are cut both ways and one way, answers are late, doubled, out of order and lost, regions crash, clocks are
off. Rows are synced although that was not needed, a region is evicted and comes again, a log is restored from a backup. Then
all is healed, and within a few rounds all regions must be equal to each other and to the model. At every moment each of them
shows what the model says for the effects that it knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from kit.regions.clients import FLOORS, KEYS, Requests, Session
from kit.regions.model import Did, Model
from kit.regions.region import SimRegion, Violation, after
from onefold.available import exchange, ops, reading
from onefold.available.home import place_of_request
from onefold.available.ops import AvailableOp, Committed, Imported, Rejected
from onefold.available.stamps import covers, merged

START_MS = 1_000_000
HOUR_MS = 3_600_000


class World:
    """See above. ``count``: how many regions there are at first."""

    def __init__(
        self, seed: int, count: int, *, kinds: str = "rfksnb", turnover: float = 1, old_number: bool = False
    ) -> None:
        """``kinds``: of collections that are written. ``turnover``: how often regions go and come, compared with other things.
        ``old_number``: a planted error: a log that is restored continues under its number."""
        self.turnover = turnover
        self.random = random.Random(seed)
        self.clock_ms = START_MS
        self.model = Model()
        self.requests = Requests(self.random, kinds)
        self.regions = {n: SimRegion(n, f"r{n}") for n in range(1, count + 1)}
        self.cut: set[tuple[int, int]] = set()
        """(from, to): what the one does does not reach the other."""
        self.late: list[tuple[int, int, AvailableOp]] = []
        """(step, to, operation): on its way."""
        self.asked: dict[tuple[int, int], exchange.Ask] = {}
        """(who asks, whom) -> its next question, as if all answers had arrived: several are on their way at a time."""
        self.sessions = [Session() for _ in range(3)]
        self.asked_for: list[tuple[str, Any]] = []
        self.named: dict[tuple[int, int], str | None] = {}
        """The request id of each effect."""
        self.decisions: list[AvailableOp] = []
        """Decided once for all regions, in this order."""
        self.gone: dict[int, SimRegion] = {}
        self.round = 0
        self.reclaims = False
        self.old_number = old_number
        self.step_number = 0
        self.syncing: dict[int, tuple[int, list[AvailableOp]]] = {}
        """By region: the other one's fold time, and what is left to be appended."""
        for number, region in self.regions.items():
            for other in self.regions.values():
                here = other.number == number
                region.append(ops.Admit(other.number, other.name, here=here, founder=True), START_MS)

    # -- what happens

    def step(self) -> None:
        """One thing happens."""
        self.step_number += 1
        self.clock_ms += self.random.randrange(0, 400)
        self._arrive()
        actions: list[tuple[float, Callable[[], None]]] = [
            (40, self.do),
            (25, self.pull),
            (8, self.beat),
            (4, self.toggle_link),
            (3, self.crash),
            (3, self.pass_time),
            (2, self.set_clock),
            (2, self.begin_sync),
            (20, self.continue_sync),
            (10, self.decide),
            (0.4 * self.turnover, self.evict),
            (0.3 * self.turnover, self.restore),
            (2 * self.turnover, self.come_again),
            (3, self.gone_does),
        ]
        weights = [weight for weight, _ in actions]
        self.random.choices([action for _, action in actions], weights)[0]()
        if self.random.random() < 0.15:
            self.check_shown(self.any())

    def any(self) -> SimRegion:
        return self.random.choice(list(self.regions.values()))

    def append(self, region: SimRegion, op: AvailableOp, request_id: str | None = None) -> Any:
        return region.append(op, self.clock_ms, request_id)

    def do(self) -> None:
        """A program does something, in a session that may come from another region."""
        session = self.random.choice(self.sessions)
        if session.region not in self.regions or self.random.random() < 0.1:
            session.region = self.any().number
        region = self.regions[session.region]
        numbers = [number for number in self.regions if number != region.number]
        op = ops.Do(self.requests.some(numbers), session=dict(session.vector), hlc=session.hlc)
        before = region.have()
        request_id, again = None, False
        if self.asked_for and self.random.random() < 0.1:
            request_id, requests = self.random.choice(self.asked_for)
            op, again = ops.Do(requests, session=op.session, hlc=op.hlc), True
        elif self.random.random() < 0.1:
            request_id = f"q{self.step_number}"
            self.asked_for.append((request_id, op.requests))
        outcome = self.append(region, op, request_id)
        if isinstance(outcome, Committed) and again and self.was_done(region, outcome, request_id, before):
            return
        if isinstance(outcome, Committed):
            if not covers(before, session.vector):
                raise Violation(f"region {region.number} wrote before it knew what the session had seen")
            self.did(region, outcome, op, before)
            self.named[outcome.region, outcome.seq] = request_id
            session.vector = merged(session.vector, {**before, region.number: outcome.seq})
            session.hlc = max(session.hlc, outcome.hlc)
        elif outcome.reason == "behind":
            if covers(before, session.vector):
                raise Violation("a region that knows all was taken for one that is behind")
            if self.random.random() < 0.3:
                session.vector, session.hlc = {}, 0
        elif outcome.reason not in ("below_floor", "malformed", "evicted", "not_admitted", "unknown_region"):
            raise Violation(f"unexpected: {outcome}")

    def was_done(
        self, region: SimRegion, outcome: Committed, request_id: Any, before: dict[int, int]
    ) -> bool:
        """A retry: done again only where nobody has heard of the first time."""
        known = [
            dot for dot, name in self.named.items() if name == request_id and before.get(dot[0], 0) >= dot[1]
        ]
        if not known:
            return False
        if (outcome.region, outcome.seq) not in known:
            raise Violation(f"region {region.number} did {request_id} again")
        return (outcome.region, outcome.seq) in known

    def did(self, region: SimRegion, outcome: Committed, op: ops.Do, before: dict[int, int]) -> None:
        """The model learns of an effect."""
        past = {**before, region.number: outcome.seq}
        self.model.add(Did(region.number, outcome.seq, past, outcome.hlc, region.now_ms, op.requests))
        for request in op.requests:
            if isinstance(request, ops.Change) and not self.reclaims:
                total = self.model.total(place_of_request(request), request.key)
                if total < request.floor:
                    raise Violation(f"{request.name} is at {total}, below {request.floor}")

    def pull(self) -> None:
        """One region pulls from another; the answer may be late, come twice, or be lost."""
        asks, answers = self.pair()
        if asks is None or (answers.number, asks.number) in self.cut:
            return
        ask = asks.ask()
        ahead = self.asked.get((asks.number, answers.number))
        if ahead is not None and covers(ahead.have, ask.have) and self.random.random() < 0.7:
            ask = ahead
        reply = exchange.answer(answers.store, ask, self.random.choice((100, 400, 100_000)))
        self.asked[asks.number, answers.number] = after(ask, reply)
        if reply.state == "sync":
            self._sync(asks, answers)
        elif reply.state in ("differs", "diverged", "lost"):
            self.alarm(asks, answers, reply)
        for _ in range(self.random.choice((0, 1, 1, 1, 2)) if reply.effects else 0):
            for part in self.parts(reply):
                due = self.step_number + self.random.choice((0, 0, 1, 5, 20))
                self.late.append((due, asks.number, part))

    def parts(self, reply: exchange.Reply) -> list[ops.Import]:
        """An answer as it is, or in two records that overtake each other."""
        if self.random.random() < 0.7:
            return [reply.as_import()]
        taken = [self.random.random() < 0.5 for _ in reply.effects]
        return [
            ops.Import(
                reply.number,
                tuple(data for data, mine in zip(reply.effects, taken, strict=True) if mine is part),
            )
            for part in (True, False)
        ]

    def alarm(self, asks: SimRegion, answers: SimRegion, reply: exchange.Reply) -> None:
        """Nothing that regions do by themselves may come to this."""
        raise Violation(f"{asks.number} asks {answers.number}: {reply.state} {reply.origin}")

    def pair(self) -> tuple[SimRegion | None, SimRegion]:
        everybody = list(self.regions.values())
        if len(everybody) < 2:
            return None, everybody[0]
        one, other = self.random.sample(everybody, 2)
        return one, other

    def _arrive(self) -> None:
        now = [one for one in self.late if one[0] <= self.step_number]
        self.late = [one for one in self.late if one[0] > self.step_number]
        self.random.shuffle(now)
        for _, number, op in now:
            if number in self.regions:
                region = self.regions[number]
                outcome = self.append(region, op)
                if not isinstance(outcome, Imported) and outcome.reason not in ("evicted", "unknown_region"):
                    raise Violation(f"region {number} refused an import: {outcome}")

    def beat(self) -> None:
        self.append(self.any(), ops.Beat())

    def toggle_link(self) -> None:
        asks, answers = self.pair()
        if asks is None:
            return
        link = (answers.number, asks.number)
        both = {link} if self.random.random() < 0.4 else {link, link[::-1]}
        self.cut = self.cut - both if link in self.cut else self.cut | both

    def crash(self) -> None:
        """A region restarts from its log; what was on its way to it is lost."""
        region = self.any()
        self.late = [one for one in self.late if one[1] != region.number]
        region.restart()

    def pass_time(self) -> None:
        self.clock_ms += self.random.randrange(0, 6000)

    def set_clock(self) -> None:
        region = self.any()
        far = HOUR_MS if self.random.random() < 0.1 else 0
        region.skew_ms = self.random.choice((-1, 1)) * (far or self.random.randrange(0, 10_000))

    def begin_sync(self) -> None:
        """A full sync, needed or not."""
        asks, answers = self.pair()
        if asks is not None and (answers.number, asks.number) not in self.cut:
            self._sync(asks, answers)

    def _sync(self, asks: SimRegion, answers: SimRegion) -> None:
        left = list(exchange.sync_ops(answers.store, f"s{self.step_number}"))
        self.syncing[asks.number] = (answers.now_ms, left)

    def continue_sync(self) -> None:
        """Its operations come one after the other, and other things in between. Some are lost."""
        for number, (now_ms, left) in list(self.syncing.items()):
            if left and isinstance(left[0], ops.SyncRows) and self.random.random() < 0.05:
                del left[0]
            if number in self.regions and left:
                outcome = self.append_synced(self.regions[number], left[0], now_ms)
                if not exchange.continues(left[0], outcome):
                    del left[0]
                if isinstance(outcome, Rejected) and outcome.reason not in (
                    "evicted",
                    "unknown_region",
                    "held",
                ):
                    raise Violation(f"region {number} refused a sync: {outcome}")

    def append_synced(self, region: SimRegion, op: AvailableOp, now_ms: int) -> Any:
        """What had ended in the other region is not in its rows, so it ends here too, perhaps some seconds early. The model does
        not know of that: the clock is there before."""
        if isinstance(op, ops.SyncEnd):
            region.append(ops.Accept(region.number, 0), max(self.clock_ms, now_ms - region.skew_ms))
        return self.append(region, op)

    # -- regions that go and come

    def decide(self) -> None:
        """A region hears of the next decision."""
        region = self.any()
        if region.decided < len(self.decisions):
            self.append(region, self.decision(region))

    def decision(self, region: SimRegion) -> AvailableOp:
        op = self.decisions[region.decided]
        region.decided += 1
        if isinstance(op, ops.Admit) and op.number == region.number:
            return ops.Admit(op.number, op.name, here=True)
        return op

    def evict(self) -> None:
        """A region is taken for dead. It may be alive, and what it has said last may be anywhere."""
        if len(self.regions) < 2 or len(self.gone) >= 2:
            return
        region = self.any()
        del self.regions[region.number]
        self.gone[region.number] = region
        self.round += 1
        self.decisions.append(ops.Evict(region.number, self.round))
        if self.random.random() < 0.3:
            self.reclaims = True
            self.decisions.append(ops.Reclaim(region.number, min(self.regions)))

    def gone_does(self) -> None:
        """An evicted region that is alive writes on, and is asked by one that may not have heard of it."""
        alive = [region for region in self.gone.values() if region.log]
        if not alive:
            return
        region, asks = self.random.choice(alive), self.any()
        op, before = ops.Do(self.requests.some(list(self.regions))), region.have()
        outcome = self.append(region, op)
        if isinstance(outcome, Committed):
            self.did(region, outcome, op, before)
        for one, other in ((asks, region), (region, asks)):
            reply = exchange.answer(other.store, one.ask())
            if reply.effects and self.random.random() < 0.7:
                self.append(one, reply.as_import())

    def come_again(self) -> None:
        """An evicted one comes again under a new number, with nothing."""
        if not self.gone or len(self.regions) + 1 > 3 or self.random.random() < 0.5:
            return
        number = self.new_number()
        region = SimRegion(number, f"r{number}", self.random.randrange(-20_000, 5000))
        for first in range(1, number):
            if first <= self.founders():
                self.append(region, ops.Admit(first, f"r{first}"))
        self.decisions.append(ops.Admit(number, region.name))
        while region.decided < len(self.decisions):
            self.append(region, self.decision(region))
        self.regions[number] = region

    def founders(self) -> int:
        admitted = [op.number for op in self.decisions if isinstance(op, ops.Admit)]
        return min(admitted, default=self.new_number()) - 1

    def new_number(self) -> int:
        return max(*self.regions, *self.gone, 0) + 1

    def restore(self) -> None:
        """A log is restored from a backup, so it has lost its end. What others have seen of that comes back from them."""
        region = self.any()
        kept = self.random.randrange(len(region.log) // 2, len(region.log) + 1)
        if len(self.gone) >= 2 or kept >= len(region.log) or kept <= 6:
            return
        self.late = [one for one in self.late if one[1] != region.number]
        self.syncing.pop(region.number, None)
        region.back_to(kept)
        if self.old_number:
            return
        old, number = region.number, self.new_number()
        del self.regions[old]
        self.gone[old] = SimRegion(old, region.name)
        self.round += 1
        region.number, region.name, region.skew_ms = (
            number,
            f"r{number}",
            self.random.randrange(-20_000, 5000),
        )
        self.decisions += [ops.Admit(number, region.name), ops.Evict(old, self.round)]
        self.append(
            region, ops.Admit(number, region.name, here=True)
        )  # before anything is done under the old one
        while region.decided < len(self.decisions):
            self.append(region, self.decision(region))
        self.regions[number] = region

    # -- what must hold

    def check_shown(self, region: SimRegion) -> None:
        """A region shows what its effects make, whatever way they came."""
        have = region.have()
        for did in self.model.did.values():
            if have.get(did.origin, 0) >= did.seq and not covers(have, did.past):
                raise Violation(
                    f"region {region.number} knows {did.origin}:{did.seq} and not what it was made from"
                )
        for name, floor in FLOORS.items():
            for key in KEYS:
                if (here := reading.here(region.store, name, floor, key)) < 0:
                    raise Violation(
                        f"region {region.number} has given away {-here} of {name} more than it had"
                    )
        shown, wanted = region.shown(), self.model.state(have, region.now_ms)
        if shown != wanted:
            differ = sorted(
                (key, shown.get(key), wanted.get(key))
                for key in {*shown, *wanted}
                if shown.get(key) != wanted.get(key)
            )
            raise Violation(f"region {region.number} shows {differ[:3]} (shown, wanted)")
        me, counted = region.me, region.counted()
        if counted != (me.content, me.gone_rows, me.gone_bytes):
            raise Violation(
                f"region {region.number} counted {counted[1:]}, not {me.gone_rows, me.gone_bytes}"
            )

    def heal(self) -> None:
        """No more faults: all regions become equal, drop what is gone, and can sell what is left."""
        self.cut.clear()
        for region in self.regions.values():
            region.skew_ms = 0
        self.step_number += 1000
        self._arrive()
        for _ in range(40):
            if self._round() and self.equal():
                break
        else:
            raise Violation(f"not equal: {[region.have() for region in self.regions.values()]}")
        self.clock_ms += 30_000
        for _ in range(3):
            for region in self.regions.values():
                self.append(region, ops.Beat())
            self._round()
        self.check_end()

    def _round(self) -> bool:
        """Each hears all decisions, pulls from each other one until nothing is missing, and beats. Whether nothing was new."""
        quiet = True
        top = max(region.now_ms for region in self.regions.values())
        self.clock_ms = max(self.clock_ms + 2000, top if self.random.random() < 0.5 else 0)
        for region in self.regions.values():
            while region.decided < len(self.decisions):
                quiet = False
                self.append(region, self.decision(region))
            for other in self.regions.values():
                for _ in range(200 if other is not region else 0):
                    reply = exchange.answer(other.store, region.ask())
                    if reply.state == "same":
                        break
                    quiet = False
                    if not self._pull(region, other, reply):
                        break
        for region in self.regions.values():
            quiet = not self.append(region, ops.Beat()).value and quiet
        return quiet

    def _pull(self, region: SimRegion, other: SimRegion, reply: exchange.Reply) -> bool:
        if reply.state == "sync":
            for op in exchange.sync_ops(other.store, f"h{self.clock_ms}"):
                while exchange.continues(op, outcome := self.append_synced(region, op, other.now_ms)):
                    pass
                if isinstance(outcome, Rejected):
                    if outcome.reason == "held":
                        self.append(region, ops.Accept(other.number, other.me.hlc))
                    return False
            return True
        if reply.state != "effects":
            self.alarm(region, other, reply)
        outcome = self.append(region, reply.as_import())
        if not isinstance(outcome, Imported):
            raise Violation(f"region {region.number} refused an import: {outcome}")
        for number, reason in outcome.waiting.items():
            if reason == "held":
                self.append(region, ops.Accept(number, region.me.regions[number].held))
        return outcome.taken > 0

    def equal(self) -> bool:
        haves = [region.have() for region in self.regions.values()]
        return all(have == haves[0] for have in haves)

    def check_end(self) -> None:
        """After the heal."""
        if not self.equal():
            raise Violation(f"not equal: {[region.have() for region in self.regions.values()]}")
        for region in self.regions.values():
            self.append(region, ops.Accept(region.number, 0))
            self.check_shown(region)
            region.check_cleared(self.clock_ms)
            me = region.me
            if me.gone_rows or me.gone_bytes:
                raise Violation(f"region {region.number} keeps {me.gone_rows} gone rows")
            if me.content != next(iter(self.regions.values())).me.content:
                raise Violation("the content hashes differ")
            if not me.writing:
                raise Violation(f"region {region.number} does not write")
            for number, seq in [*self.model.did]:
                if number in self.regions and me.have().get(number, 0) < seq:
                    raise Violation(f"effect {seq} of region {number} is lost")
            region.restart()
        if not self.gone:
            self.check_sellable()

    def check_sellable(self) -> None:
        """One region can have all rights that there are."""
        region = self.any()
        for name, floor in FLOORS.items():
            place = f"b{floor}/{name}"
            for key in [key for at, key in region.shown() if at == place]:
                left = self.model.total(place, key) - floor
                if left <= 0:
                    continue
                for wishing in self.regions.values():  # none is open any more
                    self.append(wishing, ops.Do((ops.Wish(name, floor, key, 0, 0),)))
                self._round()
                self.append(region, ops.Do((ops.Wish(name, floor, key, left, 60_000),)))
                self._round()
                self._round()
                outcome = self.append(region, ops.Do((ops.Change(name, floor, key, -left),)))
                if not isinstance(outcome, Committed):
                    raise Violation(f"{left} of {name} are left and cannot be sold: {outcome}")
