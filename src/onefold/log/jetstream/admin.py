"""Making, reading, listing and deleting the spaces of a cluster.

A space is a record in a stream of its own, and a stream per shard. The streams are made before the record, and of two makers the
record lets one win; so what a record names is there, and a maker that died leaves streams that no record names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

import msgspec

from onefold import config
from onefold.backoff import Backoff, retried
from onefold.env import SYSTEM, Env
from onefold.errors import (
    AppendUnknown,
    InvalidArgument,
    LogCorrupt,
    OnefoldError,
    SpaceError,
    Timeout,
    Unavailable,
)
from onefold.ids import new_id
from onefold.log.jetstream import acks, names
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import EXPECTED_LAST_SUBJECT_SEQUENCE, EXPECTED_STREAM
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.regions import CP_TAG, badly_placed, check_regions
from onefold.log.jetstream.spaces import FORMAT, Base, SpaceInfo
from onefold.log.jetstream.streams import NOT_FOUND, Refused, ask_api, stream_state, takes_node_records

__all__ = [
    "Beginning",
    "SpaceInfo",
    "delete_space",
    "find_space",
    "leftover_streams",
    "let_nodes_publish",
    "list_spaces",
    "make_blobs",
    "make_log",
    "make_space",
    "read_space",
    "taken",
]

T = TypeVar("T")
REPLICAS: Final = (1, 3, 5)
_DUPLICATES_NS: Final = 100_000_000
"""The shortest window that servers take. No record has a message id, so nothing is ever found in it."""
_IN_USE: Final = 10058
_NO_PEERS: Final = 10005
_OFFLINE: Final = "peer offline"
"""Among the reasons of that: a server that is known does not run, or its beats have not come yet."""
_PAUSE_S: Final = 0.1


class Beginning(Protocol):
    """What a space is made with that does not begin empty."""

    def store(self, info: SpaceInfo) -> tuple[Base, ...]:
        """Store what its logs continue from, by shard; the stream of its blobs is there. Raises OnefoldError, OSError."""
        ...

    def begin(self, info: SpaceInfo) -> None:
        """Append what its logs begin with; they are there. Raises OnefoldError."""
        ...


def make_space(
    link: Link,
    space: str,
    shards: int = 1,
    replicas: int = 3,
    *,
    blobs: str | Callable[[str], str] = "jetstream",
    env: Env = SYSTEM,
    beginning: Beginning | None = None,
    first: bytes | None = None,
    regions: Sequence[str] = (),
) -> SpaceInfo:
    """Make a space, or find the one that is there already, whatever shards it has. ``blobs``: where results of jobs are kept, or
    what says that for an incarnation. ``beginning``: what it holds from the first moment on; then SpaceError when there is one
    already. ``first``: the record with which each log begins, published where only nodes may publish. ``regions``: over which
    it lies; then its copies are on the servers with the tag ``cp``, and SpaceError when those are so placed that it would not
    survive the loss of a region.

    Raises InvalidArgument; SpaceError (the credential may not create streams, too few servers); Unavailable and Timeout: it may
    be half made, so make it again.
    """
    names.check_space(space)
    if not 1 <= shards <= config.SHARDS_MAX:
        raise InvalidArgument(f"shards={shards}: a space has 1 to {config.SHARDS_MAX}")
    if replicas not in REPLICAS:
        raise InvalidArgument(f"replicas={replicas}: a log has 1, 3 or 5 copies")
    found = find_space(link, space)
    if found is not None:
        if beginning is not None:
            raise taken(link)
        return found
    incarnation = new_id("i", env)
    place = blobs if isinstance(blobs, str) else blobs(incarnation)
    made = SpaceInfo(space, incarnation, shards, replicas, env.wall_ms(), blobs=place)
    if regions:
        made = msgspec.structs.replace(made, regions=check_regions(regions), format=FORMAT)
    try:
        _make(link, made, _stream(made, names.space_stream(space), names.space_subject(space)))
        make_blobs(link, made)
        if beginning is not None:
            made = msgspec.structs.replace(made, base=beginning.store(made))
        for shard in range(shards):
            make_log(link, made, shard)
            if first is not None:
                _begin_log(link, LogNames(space, made.incarnation, shard), first)
        if beginning is not None:
            beginning.begin(made)
    except BaseException as error:
        with contextlib.suppress(OnefoldError):
            if beginning is not None:  # its next try makes other logs
                _delete_logs(link, made)
            if isinstance(error, _Misplaced) and find_space(link, space) is None:
                _delete_all(link, made)  # else the next try would find them
        raise
    kept = _write_record(link, made)
    if kept != made:
        _delete_logs(link, made)
        if beginning is not None:
            raise taken(link)
    return kept


def make_log(link: Link, info: SpaceInfo, shard: int) -> None:
    """Make the stream of a shard's log; nothing happens when it is there. Raises as ``make_space``."""
    log = LogNames(info.space, info.incarnation, shard)
    stream = _stream(info, log.stream, log.subject) | _for_both(log)
    base = info.base_of(shard)
    if base is not None:
        stream["first_seq"] = base.offset + 1
    _make(link, info, stream)


def _for_both(log: LogNames) -> dict[str, object]:
    """What a log's stream takes, and publishes again: records of everybody, and those with what only nodes may append."""
    return {
        "subjects": [log.subject, log.node_subject],
        "republish": {"src": log.both_subjects, "dest": log.tail},
    }


def let_nodes_publish(link: Link, info: SpaceInfo, shard: int) -> bool:
    """Have the stream of a shard's log take the nodes' subject too; False when it did already. Those of earlier releases do not.

    Raises as ``make_space``.
    """
    log = LogNames(info.space, info.incarnation, shard)
    what = f"changing {log.stream}"

    def ask() -> bool:
        found = _ask(link, names.STREAM_INFO + log.stream, None, what)["config"]
        assert isinstance(found, dict)
        if takes_node_records(found, log):
            return False
        _ask(link, names.STREAM_UPDATE + log.stream, found | _for_both(log), what)
        return True

    return _patiently(ask)


def _begin_log(link: Link, log: LogNames, record: bytes) -> None:
    """Append a record to a new log. Raises as ``make_space``."""
    headers = {EXPECTED_STREAM: log.stream}

    def append() -> None:
        answer = link.append(log.node_subject, record, headers).wait(config.APPEND_ACK_TIMEOUT_S)
        try:
            acks.offset_of(answer, log.stream, log.stream)
        except AppendUnknown as error:  # written twice, it counts once
            raise Unavailable(str(error), definite=False) from error

    _patiently(append)


def make_blobs(link: Link, info: SpaceInfo) -> None:
    """Make the stream of the space's blobs; nothing happens when it is there. Raises as ``make_space``."""
    stream = _stream(info, names.blobs_stream(info.space), f"$O.{names.blobs_bucket(info.space)}.>")
    # A blob's subject is its hash: what is stored again replaces the same bytes.
    _make(link, info, stream | {"max_msgs_per_subject": 1, "deny_delete": False})


def find_space(link: Link, space: str) -> SpaceInfo | None:
    """The space's record; None when the servers' leader knows of none (one that was just deposed may not know of a new space).

    Works without a leader where there is a record. Raises Unavailable when it cannot be determined, SpaceError, LogCorrupt.
    """
    stream = names.space_stream(space)
    subject = names.DIRECT_GET + stream
    question = b'{"last_by_subj":"%s"}' % names.space_subject(space).encode()
    try:
        answer = link.request(subject, question, timeout=config.ENGINE_REQUEST_TIMEOUT_S)
        if answer.status is None:
            return _decode(space, answer.data)
    except Unavailable:
        pass  # nobody keeps such a stream, or nobody who does can be reached: its leader knows
    try:
        state = link.run(lambda: stream_state(link, stream), config.ENGINE_REQUEST_TIMEOUT_S)
    except Refused as error:
        if error.code == NOT_FOUND:
            return None
        raise
    except (Unavailable, Timeout) as error:
        raise Unavailable(
            f"{link.address}: whether there is a space cannot be determined, its servers have no leader now ({error}). Try again"
        ) from error
    if state.messages == 0:
        return None
    # It is there: right after it was made, the servers may not listen for questions yet.
    answer = _patiently(lambda: link.request(subject, question, timeout=config.ENGINE_REQUEST_TIMEOUT_S))
    if answer.status is not None:
        raise Unavailable(f"{link.address}: the record of the space is not on every server yet. Try again")
    return _decode(space, answer.data)


def read_space(link: Link, space: str | None = None) -> SpaceInfo:
    """The record of a space (default: the link's). Raises SpaceError when there is none, and as ``find_space``."""
    found = find_space(link, space or link.address.space)
    if found is None:
        raise SpaceError(
            f"there is no space at {link.address}. Make it with `onefold init --url …` and a credential that may create streams"
        )
    return found


def list_spaces(link: Link) -> list[SpaceInfo]:
    """The spaces of this account, by name. Raises as ``find_space``."""
    found = (find_space(link, space) for space in _space_names(link))
    return [info for info in found if info is not None]


def leftover_streams(link: Link) -> list[str]:
    """Streams of logs that no space's record names: of makers that died. They can be deleted once nobody makes a space."""
    named = {
        LogNames(info.space, info.incarnation, shard).stream
        for info in list_spaces(link)
        for shard in range(info.shards)
    }
    return [stream for stream in _stream_names(link, "of.*.*.log.*") if stream not in named]


def delete_space(link: Link, info: SpaceInfo) -> None:
    """Delete the record, then the logs, then the blobs. Raises as ``make_space``; then delete it again."""
    _delete_all(link, info)


def taken(link: Link) -> SpaceError:
    """What to raise where a space would be restored over one that is there."""
    return SpaceError(
        f"{link.address}: there is a space already, and nothing is restored over it. Give another name in the URL"
    )


# -- inside


class _Misplaced(SpaceError):
    """A stream's copies are on servers that would not survive the loss of a region together."""


def _delete_all(link: Link, info: SpaceInfo) -> None:
    _delete(link, names.space_stream(info.space))
    _delete_logs(link, info)
    _delete(link, names.blobs_stream(info.space))


def _delete_logs(link: Link, info: SpaceInfo) -> None:
    for shard in range(info.shards):
        _delete(link, LogNames(info.space, info.incarnation, shard).stream)


def _stream(info: SpaceInfo, stream: str, subject: str) -> dict[str, object]:
    """The configuration that leaves no holes and removes nothing by itself."""
    return ({"placement": {"tags": [CP_TAG]}} if info.regions else {}) | {
        "name": stream,
        "subjects": [subject],
        "storage": "file",
        "num_replicas": info.replicas,
        "retention": "limits",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "deny_delete": True,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "duplicate_window": _DUPLICATES_NS,
    }


def _make(link: Link, info: SpaceInfo, stream: Mapping[str, object]) -> None:
    """Make a stream of the space. Where there are regions, see that its copies are where it survives the loss of one."""
    name = str(stream["name"])
    _create(link, stream)
    if not info.regions:
        return

    def servers() -> Sequence[str]:
        found = link.run(lambda: stream_state(link, name), config.ENGINE_REQUEST_TIMEOUT_S).servers
        if len(found) < info.replicas:
            raise Unavailable(f"{link.address}: stream {name} has no leader that names its copies. Try again")
        return found

    held = _patiently(servers)
    wrong = badly_placed(held, info.replicas)
    if wrong is not None:
        raise _Misplaced(
            f"{link.address}: stream {name} is on {', '.join(sorted(held))}: {wrong}. Give the tag {CP_TAG} to exactly "
            f"{info.replicas} servers, at most {(info.replicas - 1) // 2} of them in one region"
        )


def _create(link: Link, stream: Mapping[str, object]) -> None:
    name = str(stream["name"])

    def ask() -> None:
        try:
            _ask(link, names.STREAM_CREATE + name, stream, f"making {name}")
        except Refused as error:
            if error.code == _IN_USE:
                return  # with another configuration, such as more copies: it was made before
            if error.code != _NO_PEERS:
                raise
            tagged = f" with the tag {CP_TAG}" if "placement" in stream else ""
            copies = stream["num_replicas"]
            said = (
                f"{link.address} has too few servers{tagged} for {copies} copies, or they are full ({error})"
            )
            if _OFFLINE in str(error):
                raise Unavailable(said) from error  # one that has just begun gets this answer for a moment
            raise SpaceError(said) from error

    _patiently(ask)


def _delete(link: Link, stream: str) -> None:
    try:
        _patiently(lambda: _ask(link, names.STREAM_DELETE + stream, None, f"deleting {stream}"))
    except Refused as error:
        if error.code != NOT_FOUND:
            raise


def _ask(link: Link, subject: str, body: Mapping[str, object] | None, what: str) -> dict[str, object]:
    return link.run(lambda: ask_api(link, subject, body, what), config.ENGINE_REQUEST_TIMEOUT_S)


def _write_record(link: Link, made: SpaceInfo) -> SpaceInfo:
    """Write the record if there is none yet; the one that counts."""
    stream = names.space_stream(made.space)
    headers = {EXPECTED_STREAM: stream, EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}

    def write() -> SpaceInfo:
        subject = names.space_subject(made.space)
        link.append(subject, msgspec.json.encode(made), headers).wait(config.APPEND_ACK_TIMEOUT_S)
        found = find_space(link, made.space)  # whatever the answer was: mine or another's
        if found is None:
            raise Unavailable(f"{link.address}: the record of the space could not be written. Try again")
        return found

    return _patiently(write)


def _patiently(work: Callable[[], T]) -> T:
    """Try again while there is no leader, which a new stream has not at once."""
    return retried(work, (Unavailable, Timeout), config.APPEND_RETRY_S, Backoff(_PAUSE_S, _PAUSE_S))


def _space_names(link: Link) -> list[str]:
    prefix = names.space_stream("")
    found = [stream.removeprefix(prefix) for stream in _stream_names(link, names.space_subject("*"))]
    return sorted(space for space in found if names.SPACE_NAME.fullmatch(space))


def _stream_names(link: Link, subject: str) -> list[str]:
    found: list[str] = []
    while True:
        page = _patiently(
            partial(
                _ask, link, names.STREAM_NAMES, {"subject": subject, "offset": len(found)}, "listing streams"
            )
        )
        streams = page.get("streams") or []
        assert isinstance(streams, list)
        found += [str(stream) for stream in streams]
        total = page.get("total")
        if not streams or not isinstance(total, int) or len(found) >= total:
            return sorted(set(found))


def _decode(space: str, data: bytes) -> SpaceInfo:
    try:
        info = msgspec.json.decode(data, type=SpaceInfo)
    except msgspec.MsgspecError as error:
        raise LogCorrupt(
            f"the record of space {space} cannot be read ({error}). Compare the servers with `onefold doctor`"
        ) from error
    if info.format > FORMAT:
        raise SpaceError(
            f"space {space} has format {info.format}; this program knows {FORMAT}. Upgrade: pip install -U onefold"
        )
    if info.space != space or not 1 <= info.shards <= config.SHARDS_MAX:
        raise LogCorrupt(
            f"the record of space {space} is of {info.space} with {info.shards} shards. Restore it"
        )
    try:
        if info.regions:
            check_regions(info.regions)
    except InvalidArgument as error:
        raise LogCorrupt(
            f"the record of space {space} names regions that none has ({error}). Restore it"
        ) from error
    return info
