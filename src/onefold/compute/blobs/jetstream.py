"""Blobs in JetStream, for small clusters: messages of one stream, found by their subjects.

A blob is a *head* message, and chunks if it is larger than what the head carries. The head is written after all its chunks are
acknowledged, so what has a head is whole. Subjects are the content's hash, so storing a blob again writes the same bytes under
the same subjects, and no two writers can mix.

The client library's object store is not used: it reads through a consumer, whose creation needs the servers' meta leader and
whose queue drops messages silently when it is full (see docs/adr). Here everything is read by direct get, which any replica of
the stream answers, and what was read is compared with its hash by the caller.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from onefold import config
from onefold.backoff import Backoff, Deadline, retried
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.errors import OnefoldError, Timeout, Unavailable
from onefold.log.jetstream import names
from onefold.log.jetstream.client.message import EXPECTED_STREAM, SEQUENCE

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.client.message import Msg
    from onefold.log.jetstream.client.pending import Pending

T = TypeVar("T")
_INLINE_BYTES_MAX: Final = 16 * 1024
"""Blobs up to this size are in their head."""
_HEADER_ROOM_BYTES: Final = 4096
"""What subject and headers take of the server's largest message."""
_BATCH_MESSAGES: Final = 256
_BATCH_BYTES: Final = 8 * 1024 * 1024
_SIZE: Final = "Onefold-Size"
_CHUNKS: Final = "Onefold-Chunks"
_AT: Final = "Onefold-At"
_STAMP: Final = "Nats-Time-Stamp"
_SUBJECTS_PAGE: Final = 100_000
"""Servers list so many subjects at a time."""
_LOOK_AGAIN_S: Final = 0.05
_LOOK_AGAIN_S_MAX: Final = 0.5
_TRY_AGAIN_S: Final = 0.2
_TRY_AGAIN_S_MAX: Final = 2.0


class JetStreamBackend:
    """The blobs of one space, over a connection that is shared with its logs. Thread-safe."""

    def __init__(self, link: Link, space: str, region_incarnation: str | None = None) -> None:
        """``region_incarnation``: of the logs of a region; then those of their snapshots."""
        its = region_incarnation
        blobs = names.space_blobs(space) if its is None else names.region_blobs(space, its)
        self._link = link
        self._place, self._stream, self._prefix = blobs
        self._chunk_bytes = min(config.BLOB_CHUNK_BYTES, link.max_payload - _HEADER_ROOM_BYTES)
        self._closed = threading.Event()

    @property
    def place(self) -> str:
        """For messages."""
        return f"jetstream {self._place}"

    def put(self, name: str, path: Path) -> None:
        """Store the file's bytes; returns once a quorum of servers has all of them on disk."""
        if self._patiently("looked for in", lambda: self._last(self._head(name))) is not None:
            return
        size = path.stat().st_size
        if size <= _INLINE_BYTES_MAX:
            self._store([(self._head(name), path.read_bytes(), {_SIZE: str(size), _CHUNKS: "0"})])
            return
        count = -(-size // self._chunk_bytes)
        with path.open("rb") as file:
            self._store(
                (
                    self._chunk(name, number),
                    file.read(self._chunk_bytes),
                    {_AT: str(number * self._chunk_bytes)},
                )
                for number in range(count)
            )
        self._store([(self._head(name), b"", {_SIZE: str(size), _CHUNKS: str(count)})])

    def get(self, name: str, path: Path) -> bool:
        """Write the blob to ``path``; False when there is none, also after looking for a while."""
        return self._patiently("fetched from", lambda: self._unless_absent(lambda: self._get(name, path)))

    def exists(self, name: str) -> bool:
        """Whether the blob's head is there."""
        return self._patiently(
            "looked for in", lambda: self._unless_absent(lambda: self._last(self._head(name)) is not None)
        )

    def delete(self, name: str) -> None:
        """Remove head and chunks. Only nodes may.

        Of the chunks only those that were there before the head: a writer that finds no head may be storing new ones now.
        """
        head = self._patiently("looked for in", lambda: self._last(self._head(name)))
        self._purge({"filter": self._head(name)})
        before = {} if head is None else {"seq": int((head.headers or {})[SEQUENCE])}
        self._purge({"filter": f"{self._prefix}.C.{name}.*", **before})

    def hide(self, name: str, ticket: str, folder: Path) -> None:
        """Fetch the blob to the folder and remove it. The stream has no room for a second form of it."""
        copy = folder / f"{name}.{ticket}"
        fetched = folder / f"part-{ticket}"  # not named as a copy: it may stay unfinished
        if self._patiently("fetched from", lambda: self._get(name, fetched)):
            fetched.replace(copy)
            self.delete(name)
        fetched.unlink(missing_ok=True)

    def unhide(self, name: str, ticket: str, folder: Path) -> bool:
        """Store the copy again."""
        copy = folder / f"{name}.{ticket}"
        if not copy.exists():
            return False
        self.put(name, copy)
        copy.unlink(missing_ok=True)
        return True

    def drop(self, name: str, ticket: str, folder: Path) -> None:
        """Remove the copy."""
        (folder / f"{name}.{ticket}").unlink(missing_ok=True)

    def hidden(self, folder: Path) -> set[tuple[str, str]]:
        """The copies in the folder. Those of other machines cannot be seen."""
        files = [file.name.partition(".") for file in folder.iterdir()] if folder.exists() else []
        return {(name, ticket) for name, dot, ticket in files if dot}

    def names(self) -> Iterator[str]:
        """The blobs whose heads are there."""
        first = f"{self._prefix}.M."
        offset, more = 0, True
        while more:
            page = self._patiently("listed in", partial(self._subjects, f"{first}>", offset))
            yield from (subject.removeprefix(first) for subject in page)
            offset += len(page)
            more = len(page) >= _SUBJECTS_PAGE

    def _subjects(self, which: str, offset: int) -> list[str]:
        """Subjects of the stream, some of them from the so-manieth on."""
        answer = self._link.request(
            names.STREAM_INFO + self._stream,
            json.dumps({"subjects_filter": which, "offset": offset}).encode(),
            timeout=config.ENGINE_REQUEST_TIMEOUT_S,
        )
        problem = _problem(answer)
        if problem is not None:
            raise Unavailable(problem)
        return list(json.loads(answer.data).get("state", {}).get("subjects") or ())

    def stored_at(self, name: str) -> float | None:
        """When the head was written."""
        head = self._patiently("looked for in", lambda: self._last(self._head(name)))
        at = None if head is None else (head.headers or {}).get(_STAMP)
        return None if at is None else datetime.fromisoformat(at[:19]).replace(tzinfo=UTC).timestamp()

    def begins(self, name: str, size: int) -> bytes:
        """How the blob begins: in its head, or in its first chunk."""
        head = self._patiently("looked for in", lambda: self._last(self._head(name)))
        if head is not None and (head.headers or {}).get(_CHUNKS) != "0":
            head = self._patiently("fetched from", lambda: self._last(self._chunk(name, 0)))
        return b"" if head is None else bytes(head.data[:size])

    @property
    def is_of_one_space(self) -> bool:
        """The bucket is the space's."""
        return True

    def claim(self, space: str) -> None:
        """The stream is named after the space."""

    def claims(self) -> set[str]:
        """None: nobody shares it."""
        return set()

    def _purge(self, what: dict[str, Any]) -> None:
        def purge() -> None:
            answer = self._link.request(
                names.STREAM_PURGE + self._stream,
                json.dumps(what).encode(),
                timeout=config.ENGINE_REQUEST_TIMEOUT_S,
            )
            problem = _problem(answer)
            if problem is not None:
                raise Unavailable(problem)

        self._patiently("removed from", purge)

    def close(self) -> None:
        """Give up what is being tried again. The connection is its owner's."""
        self._closed.set()

    # -- reading

    def _head(self, name: str) -> str:
        return f"{self._prefix}.M.{name}"

    def _chunk(self, name: str, number: int) -> str:
        return f"{self._prefix}.C.{name}.{number}"

    def _last(self, subject: str) -> Msg | None:
        """The subject's message as the replica that answers has it."""
        answer = self._link.request(
            names.DIRECT_GET + self._stream,
            json.dumps({"last_by_subj": subject}).encode(),
            timeout=config.ENGINE_REQUEST_TIMEOUT_S,
        )
        status = answer.status
        if status is None:
            return answer
        if status == "404":
            return None
        raise Unavailable(f"the servers answered {status}")

    def _unless_absent(self, look: Callable[[], bool]) -> bool:
        """Look again for a while when it is not found: the replica that answers may be behind."""
        deadline = Deadline.after(config.BLOB_ABSENT_S)
        backoff = Backoff(_LOOK_AGAIN_S, _LOOK_AGAIN_S_MAX)
        while not look():
            if deadline.passed or self._closed.wait(backoff.pause_s()):
                return False
        return True

    def _get(self, name: str, path: Path) -> bool:
        head = self._last(self._head(name))
        if head is None:
            return False
        headers = head.headers or {}
        size, chunks = int(headers.get(_SIZE, "-1")), int(headers.get(_CHUNKS, "-1"))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            if chunks == 0:
                _write(fd, head.data, 0)
                return len(head.data) == size
            got: set[str] = set()
            following = 1
            while len(got) < chunks:
                messages = self._batch(f"{self._prefix}.C.{name}.*", following)
                if not messages:
                    return False  # a replica that is behind, or chunks that were lost
                for message in messages:
                    found = message.headers or {}
                    _write(fd, message.data, int(found[_AT]))
                    got.add(found["Nats-Subject"])
                    following = max(following, int(found[SEQUENCE]) + 1)
            return os.fstat(fd).st_size == size
        finally:
            os.close(fd)

    def _batch(self, subjects: str, following: int) -> list[Msg]:
        """The next messages of these subjects from a sequence on; none when there are no more."""
        answers = self._link.request_many(
            names.DIRECT_GET + self._stream,
            json.dumps(
                {
                    "seq": following,
                    "next_by_subj": subjects,
                    "batch": _BATCH_MESSAGES,
                    "max_bytes": min(_BATCH_BYTES, 8 * self._chunk_bytes),
                }
            ).encode(),
            timeout=config.ENGINE_REQUEST_TIMEOUT_S,
            is_last=lambda message: message.status is not None,
        )
        for answer in answers:
            status = answer.status
            if status not in (None, "204", "404"):
                raise Unavailable(f"the servers answered {status}")
        return [answer for answer in answers if answer.status is None]

    # -- writing

    def _store(self, messages: Any) -> None:
        """Append messages, several at a time, each until it is acknowledged."""
        waiting: deque[tuple[str, bytes, dict[str, str], Pending]] = deque()
        source = iter(messages)
        more = True
        while more or waiting:
            while more and len(waiting) < config.BLOB_CHUNKS_IN_FLIGHT:
                message = next(source, None)
                if message is None:
                    more = False
                    break
                waiting.append((*message, self._send(*message)))
            if waiting:
                subject, data, headers, pending = waiting.popleft()
                self._acknowledged(subject, data, headers, pending)

    def _send(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Pending:
        return self._link.append(subject, data, {**headers, EXPECTED_STREAM: self._stream})

    def _acknowledged(
        self, subject: str, data: bytes, headers: dict[str, str], pending: Pending | None
    ) -> None:
        """Wait for a message's acknowledgement; a lost one is sent again, which changes nothing."""

        def settle() -> None:
            nonlocal pending
            mine, pending = pending, None
            if mine is None:
                mine = self._send(subject, data, headers)
            answer = mine.wait(config.APPEND_ACK_TIMEOUT_S)
            if answer is None:
                raise Unavailable("the servers did not acknowledge in time")
            problem = _problem(answer)
            if problem is not None:
                raise Unavailable(problem)

        self._patiently("stored in", settle)

    def _patiently(self, what: str, do: Callable[[], T]) -> T:
        """Try again while the servers do not answer: they elect a leader for seconds."""
        backoff = Backoff(_TRY_AGAIN_S, _TRY_AGAIN_S_MAX)
        try:
            return retried(do, (Unavailable, Timeout), config.BLOB_RETRY_S, backoff, self._closed.wait)
        except (Unavailable, Timeout) as error:
            raise BlobsUnavailable(
                f"a blob cannot be {what} the {self.place}: {str(error).rstrip('.')}. "
                "`onefold doctor` looks after the cluster"
            ) from error
        except OnefoldError as error:
            raise BlobsUnavailable(f"a blob cannot be {what} the {self.place}: {error}") from error


def _problem(answer: Msg) -> str | None:
    """What an acknowledgement says is wrong; None when all is well."""
    status = answer.status
    if status is not None:
        return "no server answers for it" if status == "503" else f"the servers answered {status}"
    try:
        body = json.loads(answer.data)
    except ValueError:
        return "the servers answered what is not JSON"
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("description", error)) if isinstance(error, dict) else None


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
