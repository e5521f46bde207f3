"""Comparing the records of a log as every server has them: no server's own account reports what rots.

Servers hand each direct get to a copy chosen at random and do not say which. But a message may be *traced*: every server that
handles it says so on a subject of the asker's choice. So a question is repeated until each server has answered it, and what each
has is known by its name. That needs a credential that may publish where traces go (the admin); without it a question is repeated
until all copies were asked but for one chance in a million, and what is found is nobody's by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from onefold.cluster.permissions import trace_prefix
from onefold.codec import is_intact
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import Msg
from onefold.log.jetstream.client.subscription import Subscription
from onefold.log.jetstream.fetch import Batch, fetch
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.quorum_read import certain

STEP_RECORDS: Final = 200
STEP_BYTES: Final = 1 << 20
_TRACE_WAIT_S: Final = 1.0
_LOOK_S: Final = 0.002
_AGAIN_S: Final = 1.0
_ROUTER: Final = 1
"""The kind of an egress that continues to another server."""


_NO_RECORD: Final = "has bytes that are no record"


class Finding(NamedTuple):
    """What one copy has at an offset where it should have a record. ``server``: None when it is not known whose copy it is."""

    server: str | None
    offset: int
    what: str


@dataclass
class Comparison:
    """What came of comparing a log."""

    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    """So many offsets were compared."""
    silent: set[str] = field(default_factory=set)
    """Servers that keep a copy and did not answer."""


class Comparer:
    """Compares logs over one link. Use it as a context manager."""

    def __init__(self, link: Link, *, traced: bool) -> None:
        self._link = link
        self._traced = traced
        self._traces: dict[str, list[Mapping[str, Any]]] = {}
        self._count = 0
        self._subscription: Subscription | None = None
        self._prefix = f"{trace_prefix(link.address.space)}.{link.env.token(6).hex()}"

    def __enter__(self) -> Comparer:
        if self._traced:
            self._subscription = self._link.subscribe(f"{self._prefix}.*", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._subscription is not None:
            self._subscription.close()

    def compare(self, log: LogNames, servers: Sequence[str], ranges: Sequence[tuple[int, int]]) -> Comparison:
        """Compare these ranges of offsets (ends included) on these servers. What is found is looked at twice: a copy may have
        been behind, a log may have been trimmed. Raises Unavailable, Timeout, SpaceError."""
        result = Comparison()
        for start, stop in ranges:
            for at in range(start, stop + 1, STEP_RECORDS):
                end = min(at + STEP_RECORDS - 1, stop)
                self._link.run(partial(self._step, log, servers, at, end, result), None)
        return result

    async def _step(
        self, log: LogNames, servers: Sequence[str], start: int, stop: int, result: Comparison
    ) -> None:
        found, silent = await self._look(log, servers, start, stop)
        if found:
            await asyncio.sleep(_AGAIN_S)
            again, _ = await self._look(log, servers, start, stop)
            found = [finding for finding in found if finding in again]
        result.findings += found
        result.records += stop - start + 1
        result.silent |= silent

    async def _look(
        self, log: LogNames, servers: Sequence[str], start: int, stop: int
    ) -> tuple[list[Finding], set[str]]:
        """What is wrong in a range, and who did not answer."""
        found: dict[Finding, None] = {}
        seen: dict[int, bytes] = {}
        missing = set(servers)
        copies: dict[str | None, Mapping[int, bytes]] = {}
        for _ in range(certain(max(len(servers) - 1, 1), max(len(servers), 2))):
            server, held, upto = await self._held(log, start, stop)
            found |= dict.fromkeys(Finding(server, *wrong) for wrong in _wrong(held, start, upto))
            for offset, data in held.items():
                first = seen.setdefault(offset, data)
                if first != data and is_intact(first) and is_intact(data):
                    found[Finding(server, offset, "has another record than others")] = None
            if upto == stop and server is not None:
                copies[server] = held
                missing.discard(server)
                if not missing:
                    break
        if len(copies) > 1 and not missing:
            # The same on all copies was appended so: replicas refuse it alike, and no copy is damaged.
            same = {offset for offset in seen if len({copy.get(offset) for copy in copies.values()}) == 1}
            found = {one: None for one in found if one.what != _NO_RECORD or one.offset not in same}
        return list(found), missing if self._traced else set()

    async def _held(self, log: LogNames, start: int, stop: int) -> tuple[str | None, dict[int, bytes], int]:
        """What one copy has in a range, and up to which offset it was asked: whose it is, if that can be determined."""
        held: dict[int, bytes] = {}
        at = start
        owner: str | None = None
        while at <= stop:
            server, batch = await self._fetch(log, at, stop - at + 1)
            if at > start and server != owner:
                return owner, held, at - 1  # another copy has answered: the rest is for the next time
            owner = server
            entries = {entry.offset: entry.data for entry in batch.entries if entry.offset <= stop}
            held |= entries
            beyond = any(entry.offset > stop for entry in batch.entries)
            if beyond or not entries or batch.pending == 0:
                return owner, held, stop
            at = max(entries) + 1
        return owner, held, stop

    async def _fetch(self, log: LogNames, start: int, count: int) -> tuple[str | None, Batch]:
        if not self._traced:
            return None, await fetch(self._link, log, start, max_records=count, max_bytes=STEP_BYTES)
        self._count += 1
        token = str(self._count)
        self._traces[token] = []
        try:
            asker = _Traced(self._link, f"{self._prefix}.{token}")
            batch = await fetch(asker, log, start, max_records=count, max_bytes=STEP_BYTES)
            return await self._whose(token), batch
        finally:
            del self._traces[token]

    async def _whose(self, token: str) -> str | None:
        deadline = asyncio.get_running_loop().time() + _TRACE_WAIT_S
        while asyncio.get_running_loop().time() < deadline:
            owner = last_server(self._traces[token])
            if owner is not None:
                return owner
            await asyncio.sleep(_LOOK_S)
        return None

    def _note(self, msg: Msg) -> None:
        kept = self._traces.get(msg.subject.rpartition(".")[2])
        if kept is not None:
            try:
                kept.append(msgspec.json.decode(msg.data))
            except msgspec.DecodeError:
                return


class _Traced:
    """A link whose questions are traced."""

    def __init__(self, link: Link, destination: str) -> None:
        self._link = link
        self._destination = destination

    async def collect(
        self,
        subject: str,
        payload: bytes,
        each: Callable[[bytes, bytes | None], bool],
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        traced = {**(headers or {}), "Nats-Trace-Dest": self._destination}
        await self._link.collect(subject, payload, each, timeout=timeout, headers=traced)


def last_server(traces: Sequence[Mapping[str, Any]]) -> str | None:
    """The server that kept a traced message, having sent it on to none; None while that is not told."""
    for trace in traces:
        events = trace.get("events") or ()
        if events and not any(event.get("type") == "eg" and event.get("kind") == _ROUTER for event in events):
            return str(trace["server"]["name"])
    return None


def _wrong(held: Mapping[int, bytes], start: int, upto: int) -> Iterator[tuple[int, str]]:
    for offset in range(start, upto + 1):
        data = held.get(offset)
        if data is None:
            yield offset, "has nothing"
        elif not is_intact(data):
            yield offset, _NO_RECORD


def ranges(first: int, last: int, *, deep: bool) -> list[tuple[int, int]]:
    """What of a log is compared: all of it, or its beginning and its end."""
    if last < first:
        return []
    if deep or last - first < 2 * STEP_RECORDS:
        return [(first, last)]
    return [(first, first + STEP_RECORDS - 1), (last - STEP_RECORDS + 1, last)]


def said(findings: Sequence[Finding]) -> str:
    """The findings, for people: by server, with the first offset of each kind."""
    kinds: dict[tuple[str | None, str], list[int]] = {}
    for finding in findings:
        kinds.setdefault((finding.server, finding.what), []).append(finding.offset)
    return "; ".join(
        f"{server or 'some copy'} {what} at offset {offsets[0]:,}"
        + (f" and {len(offsets) - 1:,} more" if len(offsets) > 1 else "")
        for (server, what), offsets in kinds.items()
    )
