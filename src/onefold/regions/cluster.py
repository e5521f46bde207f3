"""The other regions of a cluster's space, as their nodes answer: for nodes, which pull from them, and for programs.

Which regions there are, and what numbers they have, is in the logs of the own region. Which incarnation their logs have is in the
space's record. That is read again where an answer shows that it has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

from onefold.available import exchange
from onefold.available.exchange import EXCHANGE_BYTES_MAX, Ask, Reply
from onefold.available.ops import AvailableOp
from onefold.available.regions import Known, read_self
from onefold.env import Env
from onefold.errors import OnefoldError, SpaceError, Unavailable
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.machine.undisturbed import let_pass
from onefold.regions.peers import LinkIs, LinkState
from onefold.regions.questions import Question, decode_reply, encode_question
from onefold.shard.api import Shard
from onefold.shard.remote import protocol
from onefold.shard.remote.asking import LinkAsking
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.requirements import ReadRequirement
from onefold.space.open_cluster import Folds

S = TypeVar("S")
T = TypeVar("T")
POLL_S: Final = 5.0
"""So long a question waits at another region's node for something to tell."""
_BARRIER_S: Final = 5.0
_LOOK_S: Final = 0.5
"""How long another region may take to say how a link is."""
_RECORD_S: Final = 5.0
"""The space's record is read again no more often than this."""
_AT_ONCE: Final = 8
_ROOM_BYTES: Final = 64 << 10
"""What an import takes in a record besides the effects in it."""


class OtherRegion(NamedTuple):
    """One that is not evicted, as far as is known here."""

    number: int
    name: str


class Answered(NamedTuple):
    """What another region's node has answered, and how long that was on its way."""

    reply: Reply
    bytes: int


class ClusterNeighbours:
    """The other regions, as one region's programs or nodes reach them. Thread-safe."""

    def __init__(
        self, link: Link, info: SpaceInfo, own: Callable[[], Shard | None], folds: Folds, env: Env
    ) -> None:
        """``own``: shard 0 of the own region; None while it is not open. ``folds``: of a region's logs. The link stays its
        owner's. Asks nobody yet."""
        self.env = env
        self._link = link
        self._info = info
        self._own = own
        self._folds = folds
        self._lock = threading.Lock()
        self._shards: dict[tuple[str, int], RemoteShard] = {}
        self._heard_s: dict[str, float] = {}
        self._began_s = self._read_s = env.boot_s()
        self._closed = False

    @property
    def shard_count(self) -> int:
        """How many shards the space has."""
        return self._info.shards

    @property
    def bytes_max(self) -> int:
        """How many bytes of effects are asked for at most: they become one record."""
        return max(_ROOM_BYTES, min(EXCHANGE_BYTES_MAX, self._link.max_payload - _ROOM_BYTES))

    def others(self) -> list[OtherRegion]:
        """Those that are not evicted, in the order of their numbers. Raises as ``Shard.view``, and Unavailable while the own
        region is not open."""
        me = self._me()
        return [
            OtherRegion(number, region.name)
            for number, region in sorted(me.regions.items())
            if number != me.number and not region.round
        ]

    def shard(self, region: str, index: int) -> RemoteShard:
        """A shard of another region. Asks nobody yet. Raises SpaceError for a region without logs."""
        with self._lock:
            if self._closed:
                raise SpaceError(f"{self._link.address} is closed. Open the space again")
            found = self._shards.get((region, index))
            if found is None:
                found = self._shards[region, index] = self._open(region, index)
            return found

    def ask(self, region: str, index: int, question: Question, need: ReadRequirement) -> Answered:
        """What a node of another region answers. Raises Unavailable when none does."""
        data: bytes
        try:
            data = self.shard(region, index).ask(protocol.Exchange(encode_question(question)), need)[1]
        except SpaceError:
            self._read_record()
            raise
        self.heard(region)
        return Answered(decode_reply(data), len(data))

    def heard(self, region: str) -> None:
        """It has answered."""
        self._heard_s[region] = self.env.boot_s()

    def silent_s(self, region: str) -> float:
        """How long ago it has answered last; if never, since when it could have been asked."""
        return self.env.boot_s() - self._heard_s.get(region, self._began_s)

    def close(self) -> None:
        """Ask no more."""
        with self._lock:
            self._closed = True
            shards, self._shards = self._shards, {}
        for shard in shards.values():
            shard.close()

    # -- inside

    def _me(self) -> Known:
        own = self._own()
        if own is None:
            raise Unavailable("the own region is not open yet. Try again")
        with own.view() as view:
            return read_self(view)

    def _open(self, region: str, index: int) -> RemoteShard:
        try:
            info = self._info.of_region(region)
        except KeyError:
            raise SpaceError(f"region {region} of {self._link.address} has no logs of its own") from None
        log = JetStreamLog(self._link, info, index, self.env)
        folds = self._folds(index, info.shards)
        return RemoteShard(
            log, LinkAsking(self._link, log.names), folds, self.env, url=f"{self._link.address} ({region})"
        )

    def _read_record(self) -> None:
        """Learn of regions that have other logs now."""
        now_s = self.env.boot_s()
        if now_s - self._read_s < _RECORD_S:
            return
        self._read_s = now_s
        try:
            info = admin.find_space(self._link, self._info.space)
        except OnefoldError as error:
            let_pass(error)
            return
        if info is None or info.incarnation != self._info.incarnation:
            return
        with self._lock:
            self._info = info
            named = {logs.name: logs.incarnation for logs in info.region_logs}
            left = [at for at, shard in self._shards.items() if named.get(at[0]) != shard.incarnation]
            dropped = [self._shards.pop(at) for at in left]
        for shard in dropped:
            shard.close()


class ClusterTransport:
    """See ``runner.Transport``: nodes of one other region are asked, and wait for something to answer."""

    def __init__(
        self, neighbours: ClusterNeighbours, region: str, came: Callable[[int], None] = lambda _: None
    ) -> None:
        """``came``: called with the bytes of each answer, before it is used; it may wait."""
        self._neighbours = neighbours
        self._region = region
        self._came = came

    def ask(self, shard: int, asked: Ask, bytes_max: int) -> Reply:
        """See ``Transport``."""
        question = Question(asked, min(bytes_max, self._neighbours.bytes_max))
        found = self._neighbours.ask(self._region, shard, question, ReadRequirement(timeout=POLL_S))
        if found.reply.state == "lost":  # or the node that was asked is behind others of its region
            need = ReadRequirement(barrier=True, timeout=_BARRIER_S)
            found = self._neighbours.ask(self._region, shard, question, need)
        self._came(found.bytes)
        return found.reply

    @contextmanager
    def sync(self, shard: int, id: str) -> Iterator[Iterator[AvailableOp]]:
        """See ``Transport``."""
        need = ReadRequirement(barrier=True, timeout=_BARRIER_S)
        with self._neighbours.shard(self._region, shard).view(need=need) as view:
            yield exchange.sync_ops(view, id)


class ClusterPeers:
    """See ``Peers``. Thread-safe."""

    def __init__(self, neighbours: ClusterNeighbours, own: Sequence[Shard]) -> None:
        self._neighbours = neighbours
        self._own = own

    def latest(self, timeout_s: float) -> Mapping[int, Mapping[int, int]]:
        """See ``Peers``."""
        others = self._neighbours.others()
        at = [(region, index) for region in others for index in range(self._neighbours.shard_count)]
        need = ReadRequirement(barrier=True, timeout=timeout_s)
        seqs = _at_once(lambda one: self._seq(one[0], one[1], need), at)
        found: dict[int, dict[int, int]] = {region.number: {} for region in others}
        for (region, index), seq in zip(at, seqs, strict=True):
            if seq is not None:
                found[region.number][index] = seq
        whole = self._neighbours.shard_count
        return {number: by_shard for number, by_shard in found.items() if len(by_shard) == whole}

    def links(self) -> Sequence[LinkState]:
        """See ``Peers``."""
        return _at_once(self._link, self._neighbours.others())

    def clocks(self, number: int) -> Mapping[int, int]:
        """See ``Peers``."""
        found: dict[int, int] = {}
        for region in self._neighbours.others():
            if region.number != number:
                continue
            try:
                for index in range(self._neighbours.shard_count):
                    need = ReadRequirement(timeout=_BARRIER_S)
                    with self._neighbours.shard(region.name, index).view(need=need) as view:
                        found[index] = read_self(view).origin(number).hlc
            except OnefoldError as error:
                let_pass(error)
        return found

    def _seq(self, region: OtherRegion, index: int, need: ReadRequirement) -> int | None:
        try:
            with self._neighbours.shard(region.name, index).view(need=need) as view:
                me = read_self(view)
        except OnefoldError as error:
            let_pass(error)
            return None
        self._neighbours.heard(region.name)
        return me.have().get(region.number, 0) if me.number == region.number else None

    def _link(self, region: OtherRegion) -> LinkState:
        state: LinkIs = "linked"
        try:
            for index, shard in enumerate(self._own):
                with shard.view() as view:
                    question = Question(exchange.ask(view), 1, waits=False)
                need = ReadRequirement(timeout=_LOOK_S)
                told = self._neighbours.ask(region.name, index, question, need).reply.state
                if told == "lost":
                    need = ReadRequirement(barrier=True, timeout=_LOOK_S)
                    told = self._neighbours.ask(region.name, index, question, need).reply.state
                if told in ("lost", "diverged", "differs"):
                    return LinkState(region.number, region.name, 0.0, told)
                if told == "sync":
                    state = "behind"
        except OnefoldError as error:
            let_pass(error)
            return LinkState(region.number, region.name, self._neighbours.silent_s(region.name), "cut")
        return LinkState(region.number, region.name, 0.0, state)


def _at_once(ask: Callable[[S], T], of: Sequence[S]) -> list[T]:
    """What it returns for each of these, in order; several at a time, since each waits for somebody."""
    if len(of) <= 1:
        return [ask(one) for one in of]
    with ThreadPoolExecutor(min(_AT_ONCE, len(of)), thread_name_prefix="onefold-regions") as pool:
        return list(pool.map(ask, of))
