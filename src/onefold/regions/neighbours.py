"""The regions of a folder as one process has them open: its own, and the others as far as they are needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from onefold.available import exchange
from onefold.available.exchange import Ask, Reply
from onefold.available.ops import AvailableOp
from onefold.available.regions import read_self
from onefold.env import Env
from onefold.errors import OnefoldError, SpaceError, Unavailable
from onefold.fold.nodes.regions import Region, living
from onefold.machine.undisturbed import let_pass
from onefold.regions.links import LinksFile, RegionEnv
from onefold.regions.making import FOLDER, decisions_of
from onefold.regions.peers import LinkIs, LinkState
from onefold.regions.pulling import says_lost
from onefold.shard.api import Shard
from onefold.shard.embedded import EmbeddedShard
from onefold.space.open_space import Folds, open_shards

_WRITE_LOCK_S: Final = 2.0
"""The exchange queues behind other writers for so long at a time."""


class OpenedRegion:
    """A region of the folder that this process has open."""

    def __init__(self, region: Region, shards: Sequence[Shard], *, writable: bool) -> None:
        self.number = region.number
        self.name = region.name
        self.shards = tuple(shards)
        self.writable = writable

    def close(self) -> None:
        """Close its shards."""
        for shard in self.shards:
            shard.close()


class Neighbours:
    """See above, and ``Peers``. Thread-safe."""

    def __init__(self, first: EmbeddedShard, own: OpenedRegion, folds: Folds, env: Env) -> None:
        """``first``: shard 0 of the space; ``own``: the region of this program, which it closes itself."""
        self.first = first
        self.own = own
        self.folder = first.directory / FOLDER
        self.links_file = LinksFile(self.folder, env)
        self.env = env
        self._folds = folds
        self._opened: dict[int, OpenedRegion] = {own.number: own}
        self._changing = threading.Lock()
        self._closed = False

    def others(self) -> list[Region]:
        """The other regions that are not evicted, in the order of their numbers. Raises as ``Shard.view``."""
        return [region for region in living(decisions_of(self.first)) if region.number != self.own.number]

    def opened(self, region: Region) -> OpenedRegion:
        """A region, opened if it is not yet: for writing where that may be done. Raises SpaceError and as ``open_shards``."""
        with self._changing:
            found = self._opened.get(region.number)
            if found is None:
                if self._closed:
                    raise SpaceError(f"{self.folder} is closed. Open the space again")
                found = self._opened[region.number] = self._open(region)
            return found

    def _open(self, region: Region) -> OpenedRegion:
        env, place = RegionEnv(self.env, self.links_file, region.name), self.folder / region.name
        writable = self.own.writable
        for read_only in (False, True) if writable else (True,):
            try:
                shards = open_shards(
                    place,
                    self._folds,
                    env=env,
                    create=False,
                    read_only=read_only,
                    timeout=_WRITE_LOCK_S,
                )
            except SpaceError as error:
                let_pass(error)
                if read_only:
                    raise
                continue
            opened = OpenedRegion(region, shards, writable=not read_only)
            try:
                with shards[0].view() as view:
                    number = read_self(view).number
                if number != region.number:
                    raise SpaceError(f"{place} has the number {number}, and was decided as {region.number}")
            except BaseException:
                opened.close()
                raise
            return opened
        raise AssertionError("the last way raises what it fails with")

    def keep(self, numbers: Sequence[int]) -> None:
        """Close the regions that are not among these."""
        with self._changing:
            left = [number for number in self._opened if number not in numbers and number != self.own.number]
            dropped = [self._opened.pop(number) for number in left]
        for one in dropped:
            one.close()

    def close(self) -> None:
        """Close all but the own one."""
        with self._changing:
            self._closed = True
        self.keep(())

    def cut_since_ms(self, source: str, target: str) -> int | None:
        """Since when a link is cut, in ms since 1970; None: it is not, at this moment. Raises SpaceError."""
        return self.links_file.read(now=True).cut_since(source, target)

    def reply(self, source: OpenedRegion, target: str, shard: int, asked: Ask, bytes_max: int) -> Reply:
        """What one region answers another one. Raises Unavailable where the link is cut, and as ``Shard.view``."""
        now_ms = source.shards[shard].env.wall_ms()
        with source.shards[shard].view() as view:
            self.check_link(source.name, target)
            return exchange.answer(view, asked, bytes_max, now_ms)

    def check_link(self, source: str, target: str) -> None:
        """Raises Unavailable where the link is cut. Called while a view is open, so that nothing passes of what is written after
        the cut."""
        if self.cut_since_ms(source, target) is not None:
            raise Unavailable(f"the link from region {source} to {target} is cut", definite=True)

    # -- what programs learn (``Peers``)

    def latest(self, timeout_s: float) -> Mapping[int, Mapping[int, int]]:
        """See ``Peers``."""
        deadline = time.monotonic() + timeout_s
        found: dict[int, Mapping[int, int]] = {}
        for region in self.others():
            try:
                other = self.opened(region)
                seqs: dict[int, int] = {}
                for index, shard in enumerate(other.shards):
                    with shard.view() as view:
                        self.check_link(region.name, self.own.name)
                        seqs[index] = read_self(view).have().get(region.number, 0)
                found[region.number] = seqs
            except OnefoldError as error:
                let_pass(error)
            if time.monotonic() > deadline:
                break
        return found

    def clocks(self, number: int) -> Mapping[int, int]:
        """See ``Peers``."""
        found: dict[int, int] = {}
        for region in self.others():
            if region.number != number:
                continue
            try:
                for index, shard in enumerate(self.opened(region).shards):
                    with shard.view() as view:
                        self.check_link(region.name, self.own.name)
                        found[index] = read_self(view).origin(number).hlc
            except OnefoldError as error:
                let_pass(error)
        return found

    def links(self) -> Sequence[LinkState]:
        """See ``Peers``."""
        return [self._link(region) for region in self.others()]

    def _link(self, region: Region) -> LinkState:
        since_ms = self.cut_since_ms(region.name, self.own.name)
        if since_ms is not None:
            silent_s = max(0, self.env.wall_ms() - since_ms) / 1000
            return LinkState(region.number, region.name, silent_s, "cut")
        try:
            other = self.opened(region)
            state: LinkIs = "linked"
            for index, shard in enumerate(self.own.shards):
                with shard.view() as view:
                    asked = exchange.ask(view)
                reply = self.reply(other, self.own.name, index, asked, 1)
                with shard.view() as view:
                    lost = says_lost(read_self(view), reply)
                if lost or reply.state == "lost":
                    return LinkState(region.number, region.name, 0.0, "lost")
                if reply.state in ("diverged", "differs"):
                    return LinkState(region.number, region.name, 0.0, reply.state)
                if reply.state == "sync":
                    state = "behind"
        except OnefoldError as error:
            let_pass(error)
            return LinkState(region.number, region.name, 0.0, "cut")
        return LinkState(region.number, region.name, 0.0, state)


class FolderTransport:
    """See ``runner.Transport``: one region of a folder reads another one's files."""

    def __init__(self, neighbours: Neighbours, source: OpenedRegion, target: OpenedRegion) -> None:
        self._neighbours = neighbours
        self._source = source
        self._target = target

    def ask(self, shard: int, asked: Ask, bytes_max: int) -> Reply:
        """See ``Transport``. Does not wait."""
        return self._neighbours.reply(self._source, self._target.name, shard, asked, bytes_max)

    @contextmanager
    def sync(self, shard: int, id: str) -> Iterator[Iterator[AvailableOp]]:
        """See ``Transport``."""
        with self._source.shards[shard].view() as view:
            self._neighbours.check_link(self._source.name, self._target.name)
            yield exchange.sync_ops(view, id)
