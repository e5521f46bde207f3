"""The engine's API for streams, as far as it is used: JSON questions and their answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from onefold import config
from onefold.errors import SpaceError, Unavailable
from onefold.log.jetstream.client.message import Msg
from onefold.log.jetstream.names import STREAM_INFO, STREAM_PURGE, STREAM_STEPDOWN, LogNames
from onefold.log.jetstream.regions import region_tag

NOT_FOUND: Final = 10059
REPLICA_SILENT_S: Final = 2.5
"""A replica that its leader has not heard of for this long does not count as up to date. They beat every second."""
_BUSY: Final = (10008, 10009, 10074, 10118)
"""No leader of the cluster, or no answer from it: worth another try."""


class Asker(Protocol):
    """A link or a connection to one server."""

    async def ask(
        self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """See ``Link.request``."""
        ...


class StreamState(NamedTuple):
    """A stream as its leader tells; it may be old or wrong."""

    stream: str
    first: int
    """The lowest sequence number that is kept; one beyond ``last`` when none is."""
    last: int
    messages: int
    bytes: int
    replicas: int
    leader: str | None
    servers: tuple[str, ...]
    """Names of all servers that keep a copy, the leader first, each once; empty when they are not told."""
    behind: Mapping[str, int]
    """How many operations each other server is behind the leader."""
    current: tuple[str, ...]
    """Those that the leader takes for up to date, itself included."""

    @property
    def led(self) -> bool:
        """Whether this is what a leader says. Otherwise it is a server's that has just begun, and may know of no record yet."""
        return self.leader is not None or self.replicas == 1


class Refused(SpaceError):
    """The engine refused a question."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


async def ask_api(asker: Asker, subject: str, body: Mapping[str, object] | None, what: str) -> dict[str, Any]:
    """One question of the API. Raises Refused (definite), Unavailable, Timeout (not definite), SpaceError."""
    payload = b"" if body is None else json.dumps(body).encode()
    answer = await asker.ask(subject, payload, timeout=config.ENGINE_REQUEST_TIMEOUT_S)
    try:
        found = json.loads(answer.data)
        error = found.get("error")
    except (ValueError, AttributeError) as problem:
        raise Unavailable(
            f"{what}: the engine gave an answer that is none ({problem})", definite=False
        ) from None
    if error is not None:
        code = int(error.get("err_code", 0))
        said = f"{what}: the engine says: {error.get('description', 'no reason')} ({code})"
        if code in _BUSY:
            raise Unavailable(f"{said}. Try again")
        raise Refused(said, code)
    return dict(found)


async def stream_state(asker: Asker, stream: str) -> StreamState:
    """What the stream's leader says. Raises as ``ask_api``; Refused with ``NOT_FOUND`` when there is no such stream."""
    return state_of(stream, await ask_api(asker, STREAM_INFO + stream, None, f"stream {stream}"))


def state_of(stream: str, info: Mapping[str, Any]) -> StreamState:
    """The state in the answer to a question for a stream's information."""
    state, cluster = info.get("state") or {}, info.get("cluster") or {}
    alone = not cluster and "state" in info  # a server that is in no cluster
    last = int(state.get("last_seq", 0))
    first = max(int(state.get("first_seq", 0)), 1)
    others = cluster.get("replicas") or []
    leader = "alone" if alone else cluster.get("leader")
    return StreamState(
        stream,
        first if int(state.get("messages", 0)) else max(first, last + 1),
        last,
        int(state.get("messages", 0)),
        int(state.get("bytes", 0)),
        int((info.get("config") or {}).get("num_replicas", 1)),
        leader,
        each_once(leader, (str(other["name"]) for other in others)),
        {str(other["name"]): int(other.get("lag", 0)) for other in others},
        each_once(leader, (str(other["name"]) for other in others if _is_current(other))),
    )


def each_once(leader: str | None, others: Iterable[str]) -> tuple[str, ...]:
    """The servers of a stream, the leader first. While that moves, a server may name it among the others too."""
    return tuple(dict.fromkeys([*([leader] if leader else []), *others]))


def _is_current(replica: Mapping[str, Any]) -> bool:
    """Whether the leader heard of a replica lately. It calls one that died current for several seconds more."""
    silent_s = float(replica.get("active", 0)) / 1e9
    return bool(replica.get("current")) and not replica.get("offline") and silent_s <= REPLICA_SILENT_S


def takes_node_records(config: Mapping[str, object], log: LogNames) -> bool:
    """Whether a stream of this configuration takes what nodes publish for themselves, as one of an earlier release does not."""
    subjects = config.get("subjects")
    return isinstance(subjects, list) and log.node_subject in subjects


async def lead_from(asker: Asker, stream: str, region: str) -> None:
    """Ask the stream's leader to give way to a server of a region, which has a current copy. Raises as ``ask_api``."""
    body = {"placement": {"tags": [region_tag(region)]}}
    await ask_api(asker, STREAM_STEPDOWN + stream, body, f"having {stream} led from {region}")


async def purge(asker: Asker, stream: str, before: int) -> None:
    """Forget what is below ``before``, which must not be beyond the end: the engine would skip offsets. Raises as ``ask_api``."""
    await ask_api(asker, STREAM_PURGE + stream, {"seq": before}, f"trimming {stream}")
