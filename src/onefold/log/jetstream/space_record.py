"""The record of a space: where it is, and how it is read and written.

It is one message of a stream of its own. In a space over regions each region has a copy of it too, in a stream inside the
region. A server that was restarted answers for a stream only once that has a leader. So without a majority of the servers the
record itself cannot be read by then, and a region's copy can. Copies are written after the record, and may be older.
"""

from __future__ import annotations

import base64
from contextlib import suppress

import msgspec

from onefold import config
from onefold.errors import (
    AppendUnknown,
    InvalidArgument,
    LogCorrupt,
    SpaceError,
    Timeout,
    Unavailable,
)
from onefold.ids import is_region
from onefold.log.jetstream import acks, names
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import EXPECTED_LAST_SUBJECT_SEQUENCE, EXPECTED_STREAM
from onefold.log.jetstream.regions import check_regions, region_of
from onefold.log.jetstream.spaces import FORMAT, SpaceInfo
from onefold.log.jetstream.stream_making import ask, configuration, make, patiently
from onefold.log.jetstream.streams import NOT_FOUND, Refused, stream_state


def find_space(link: Link, space: str) -> SpaceInfo | None:
    """The space's record; None when the servers' leader knows of none (one that was just deposed may not know of a new space).

    Works without a leader where there is a record. Raises Unavailable when it cannot be determined, SpaceError, LogCorrupt.
    """
    stream = names.space_stream(space)
    with suppress(Unavailable, Timeout):  # nobody keeps such a stream, or nobody who does can be reached
        found = _direct(link, space, stream, names.space_subject(space))
        if found is not None:
            return found
    for region in _regions_near(link):
        with suppress(Unavailable, Timeout):
            found = _direct(
                link, space, names.region_record_stream(space, region), names.region_record(space, region)
            )
            if found is not None:
                return found
    try:
        state = link.run(lambda: stream_state(link, stream), config.ENGINE_REQUEST_TIMEOUT_S)
        if not state.led:  # such an answer tells of nothing: it may come from a server that has just begun
            raise Unavailable(f"nobody leads {stream}")
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
    found = patiently(lambda: _direct(link, space, stream, names.space_subject(space)))
    if found is None:
        raise Unavailable(f"{link.address}: the record of the space is not on every server yet. Try again")
    return found


def _direct(link: Link, space: str, stream: str, subject: str) -> SpaceInfo | None:
    """What a server that has the stream answers; None when it has no record. Raises Unavailable, Timeout."""
    question = b'{"last_by_subj":"%s"}' % subject.encode()
    answer = link.request(names.DIRECT_GET + stream, question, timeout=config.ENGINE_REQUEST_TIMEOUT_S)
    return None if answer.status is not None else decode(space, answer.data)


def _regions_near(link: Link) -> list[str]:
    """The region of the link's program, and that of the server that it is connected to."""
    found = (link.address.region, region_of(link.server_name or ""))
    return [region for region in dict.fromkeys(found) if region is not None and is_region(region)]


def write_first(link: Link, made: SpaceInfo) -> SpaceInfo:
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

    return patiently(write)


def led_record(link: Link, space: str) -> tuple[SpaceInfo, int]:
    """The record as the leader of its stream has it, and its sequence number. Raises as ``find_space``."""
    stream, subject = names.space_stream(space), names.space_subject(space)
    what = f"the record of space {space}"
    found = patiently(lambda: ask(link, names.MESSAGE_GET + stream, {"last_by_subj": subject}, what))
    message = found.get("message")
    if not isinstance(message, dict):
        raise LogCorrupt(f"{what}: its leader gave no message. Compare the servers with `onefold doctor`")
    return decode(space, base64.b64decode(message["data"])), int(message["seq"])


def replace_record(link: Link, made: SpaceInfo, sequence: int) -> bool:
    """Write the record in place of the one with this sequence number. False: that may not have happened."""
    stream = names.space_stream(made.space)
    headers = {EXPECTED_STREAM: stream, EXPECTED_LAST_SUBJECT_SEQUENCE: str(sequence)}
    pending = link.append(names.space_subject(made.space), msgspec.json.encode(made), headers)
    try:
        acks.offset_of(pending.wait(config.APPEND_ACK_TIMEOUT_S), stream, stream)
    except (AppendUnknown, Unavailable):  # also when another one is there by now
        return False
    return True


def copy_to_regions(link: Link, space: str) -> list[str]:
    """Bring each region's copy of the record up to date; the regions that do not answer. Raises as ``find_space``, and SpaceError
    where a region's servers cannot keep it."""
    while True:
        info, sequence = led_record(link, space)
        missing = [region for region in info.regions if not _copied(link, info, region)]
        if led_record(link, space)[1] == sequence:  # else another one may have copied a later record before
            return missing


def _copied(link: Link, info: SpaceInfo, region: str) -> bool:
    """Whether the region has such a copy now."""
    stream, subject = names.region_record_stream(info.space, region), names.region_record(info.space, region)
    try:
        if _direct(link, info.space, stream, subject) == info:
            return True
    except (Unavailable, Timeout):
        try:
            link.run(lambda: stream_state(link, stream), config.ENGINE_REQUEST_TIMEOUT_S)
            return False  # nobody answers for it
        except (Unavailable, Timeout):
            return False
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            make(
                link,
                info.of_region(region),
                configuration(info.of_region(region), stream, subject) | {"deny_purge": True},
            )
    headers = {EXPECTED_STREAM: stream}

    def write() -> None:
        answer = link.append(subject, msgspec.json.encode(info), headers).wait(config.APPEND_ACK_TIMEOUT_S)
        acks.offset_of(answer, stream, stream)

    try:
        patiently(write)
    except (Unavailable, Timeout, AppendUnknown):
        return False
    return True


def decode(space: str, data: bytes) -> SpaceInfo:
    """The record in these bytes. Raises LogCorrupt, and SpaceError for one of a later release."""
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
    if tuple(logs.name for logs in info.region_logs) != info.regions:
        raise LogCorrupt(
            f"the record of space {space} names the regions {', '.join(info.regions) or 'none'} and logs of "
            f"{', '.join(logs.name for logs in info.region_logs) or 'none'}. Restore it"
        )
    return info
