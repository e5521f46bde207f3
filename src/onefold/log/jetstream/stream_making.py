"""Making and deleting the streams of a space, and looking where the servers have put their copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from onefold import config
from onefold.backoff import Backoff, retried
from onefold.errors import AppendUnknown, SpaceError, Timeout, Unavailable
from onefold.log.jetstream import acks, names
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import EXPECTED_STREAM
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.regions import CP_TAG, badly_placed, elsewhere, region_tag
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.log.jetstream.streams import NOT_FOUND, Refused, ask_api, stream_state, takes_node_records

T = TypeVar("T")
_DUPLICATES_NS: Final = 100_000_000
"""The shortest window that servers take. No record has a message id, so nothing is ever found in it."""
_IN_USE: Final = 10058
_NO_PEERS: Final = 10005
_OFFLINE: Final = "peer offline"
"""Among the reasons of that: a server that is known does not run, or its beats have not come yet."""
_PAUSE_S: Final = 0.1


class Misplaced(SpaceError):
    """A stream's copies are on servers where they must not be."""


def make_log(link: Link, info: SpaceInfo, shard: int) -> None:
    """Make the stream of a shard's log; nothing happens when it is there. Raises as ``admin.make_space``."""
    log = LogNames(info.space, info.incarnation, shard)
    stream = configuration(info, log.stream, log.subject) | _for_both(log)
    base = info.base_of(shard)
    if base is not None:
        stream["first_seq"] = base.offset + 1
    make(link, info, stream)


def _for_both(log: LogNames) -> dict[str, object]:
    """What a log's stream takes, and publishes again: records of everybody, and those with what only nodes may append."""
    return {
        "subjects": [log.subject, log.node_subject],
        "republish": {"src": log.both_subjects, "dest": log.tail},
    }


def let_nodes_publish(link: Link, info: SpaceInfo, shard: int) -> bool:
    """Have the stream of a shard's log take the nodes' subject too; False when it did already. Those of earlier releases do not.

    Raises as ``admin.make_space``.
    """
    log = LogNames(info.space, info.incarnation, shard)
    what = f"changing {log.stream}"

    def let() -> bool:
        found = ask(link, names.STREAM_INFO + log.stream, None, what)["config"]
        assert isinstance(found, dict)
        if takes_node_records(found, log):
            return False
        ask(link, names.STREAM_UPDATE + log.stream, found | _for_both(log), what)
        return True

    return patiently(let)


def begin_log(link: Link, log: LogNames, record: bytes) -> None:
    """Append a record to a new log, where only nodes may publish. Raises as ``admin.make_space``."""
    headers = {EXPECTED_STREAM: log.stream}

    def append() -> None:
        answer = link.append(log.node_subject, record, headers).wait(config.APPEND_ACK_TIMEOUT_S)
        try:
            acks.offset_of(answer, log.stream, log.stream)
        except AppendUnknown as error:  # written twice, it counts once
            raise Unavailable(str(error), definite=False) from error

    patiently(append)


def make_blobs(link: Link, info: SpaceInfo) -> None:
    """Make the stream of the blobs; nothing happens when it is there. Raises as ``admin.make_space``."""
    blobs = info.blob_names
    stream = configuration(info, blobs.stream, f"{blobs.prefix}.>")
    # A blob's subject is its hash: what is stored again replaces the same bytes.
    make(link, info, stream | {"max_msgs_per_subject": 1, "deny_delete": False})


def configuration(info: SpaceInfo, stream: str, subject: str) -> dict[str, object]:
    """The configuration that leaves no holes and removes nothing by itself."""
    tag = placed_by(info)
    return ({} if tag is None else {"placement": {"tags": [tag]}}) | {
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


def placed_by(info: SpaceInfo) -> str | None:
    """The tag of the servers that hold copies; None where any may."""
    if info.region:
        return region_tag(info.region)
    return CP_TAG if info.regions else None


def make(link: Link, info: SpaceInfo, stream: Mapping[str, object]) -> None:
    """Make a stream. Where there are regions, see that its copies are where they must be."""
    name = str(stream["name"])
    _create(link, stream)
    if placed_by(info) is None:
        return

    def servers() -> Sequence[str]:
        state = link.run(lambda: stream_state(link, name), config.ENGINE_REQUEST_TIMEOUT_S)
        found = state.servers
        if not state.led or len(found) < info.replicas:
            raise Unavailable(f"{link.address}: stream {name} has no leader that names its copies. Try again")
        return found

    held = patiently(servers)
    on = f"{link.address}: stream {name} is on {', '.join(sorted(held))}"
    if info.region:
        strangers = elsewhere(held, info.region)
        if strangers:
            raise Misplaced(
                f"{on}, of which {', '.join(strangers)} is not in the region by its name. Give the tag "
                f"{region_tag(info.region)} only to servers whose names begin with {info.region}-"
            )
        return
    wrong = badly_placed(held, info.replicas)
    if wrong is not None:
        raise Misplaced(
            f"{on}: {wrong}. Give the tag {CP_TAG} to exactly {info.replicas} servers, at most "
            f"{(info.replicas - 1) // 2} of them in one region"
        )


def _create(link: Link, stream: Mapping[str, object]) -> None:
    name = str(stream["name"])

    def create() -> None:
        try:
            ask(link, names.STREAM_CREATE + name, stream, f"making {name}")
        except Refused as error:
            if error.code == _IN_USE:
                return  # with another configuration, such as more copies: it was made before
            if error.code != _NO_PEERS:
                raise
            placement = stream.get("placement")
            tagged = f" with the tag {placement['tags'][0]}" if isinstance(placement, dict) else ""
            copies = stream["num_replicas"]
            said = (
                f"{link.address} has too few servers{tagged} for {copies} copies, or they are full ({error})"
            )
            if _OFFLINE in str(error):
                raise Unavailable(said) from error  # one that has just begun gets this answer for a moment
            raise SpaceError(said) from error

    patiently(create)


def delete(link: Link, stream: str) -> None:
    """Delete a stream; nothing happens when it is not there. Raises as ``admin.make_space``."""
    try:
        patiently(lambda: ask(link, names.STREAM_DELETE + stream, None, f"deleting {stream}"))
    except Refused as error:
        if error.code != NOT_FOUND:
            raise


def ask(link: Link, subject: str, body: Mapping[str, object] | None, what: str) -> dict[str, object]:
    """One question of the engine's API. Raises as ``streams.ask_api``."""
    return link.run(lambda: ask_api(link, subject, body, what), config.ENGINE_REQUEST_TIMEOUT_S)


def patiently(work: Callable[[], T]) -> T:
    """Try again while there is no leader, which a new stream has not at once."""
    return retried(work, (Unavailable, Timeout), config.APPEND_RETRY_S, Backoff(_PAUSE_S, _PAUSE_S))


def stream_names(link: Link, subject: str) -> list[str]:
    """The streams that take such a subject. Raises as ``admin.make_space``."""
    found: list[str] = []
    while True:
        question = {"subject": subject, "offset": len(found)}
        page = patiently(partial(ask, link, names.STREAM_NAMES, question, "listing streams"))
        streams = page.get("streams") or []
        assert isinstance(streams, list)
        found += [str(stream) for stream in streams]
        total = page.get("total")
        if not streams or not isinstance(total, int) or len(found) >= total:
            return sorted(set(found))
