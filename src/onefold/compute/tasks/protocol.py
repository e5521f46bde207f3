"""What an executor and its worker process say to each other: length-prefixed msgpack over a socket pair.

One request is answered by any number of ``Progress`` and then one reply. In between the worker may ask for blobs that it has
not here (``Fetch``), or to make one durable for all machines (``Share``); ``Given`` answers. So a worker, which runs code of
users, needs neither a connection nor credentials of the blob store.
"""

from __future__ import annotations

import socket
from typing import Final, Literal

import msgspec

from onefold.compute.plan.stages import DeadLetter, Failure, Result, TaskInput

_LENGTH_BYTES: Final = 4
MESSAGE_BYTES_MAX: Final = 2**31
MARK_BYTES: Final = 16
"""Size of the shared memory in which an isolating worker says which records it is about to work on: lo, hi as
int64.
"""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First of all: the pickled plan, the blob directory, and where the submitting program imports from."""

    plan: bytes
    blobs: str
    import_path: tuple[str, ...]
    shared: bool = False
    """The directory is a cache: blobs come from the executor and go to it."""
    code: Literal["pickle", "reference"] = "pickle"
    """See ``functions.load``."""


class Task(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Run one task, or a range of its records."""

    stage: int
    input: TaskInput
    seed: int
    inputs: dict[int, list[Result]]
    isolate: bool
    skip_errors: bool
    dead_letters_max: int
    rows: tuple[int, int] | None


class Count(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How many input records has this task?"""

    task: Task


class Peek(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What does this input record of the task look like, and where is it?"""

    task: Task
    row: int


class Rows(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Have an input's steps (``row_steps.LiveSteps``) work on a frame."""

    input: int
    frame: bytes
    """An Arrow IPC stream."""


class Given(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answers ``Fetch`` and ``Share``: it is done, or why not."""

    problem: str = ""
    """The blob store did not do it."""
    missing: bool = False
    """There is no such blob."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The plan is loaded."""


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Records of the task read so far."""

    rows: int


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The task's result."""

    result: Result


class RowsDone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answers ``Rows``."""

    frames: tuple[bytes, ...]
    """With ``row_steps.ORIGIN``."""
    letters: tuple[tuple[int, DeadLetter], ...]
    """(row of the frame, why)."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The attempt failed; the worker lives."""

    failure: Failure


class Missing(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The output of an earlier task cannot be had."""

    blob: str


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Bring this blob into the blob directory."""

    blob: str


class Share(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """This blob is in the blob directory: make it durable for everybody."""

    blob: str


class Counted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answers ``Count``."""

    rows: int


class Peeked(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answers ``Peek``."""

    record: str
    location: str


Request = Hello | Task | Count | Peek | Rows | Given
Reply = Ready | Progress | Finished | RowsDone | Failed | Missing | Counted | Peeked | Fetch | Share

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def send(connection: socket.socket, message: Request | Reply) -> None:
    """Send one message. Raises OSError when the other side is gone."""
    data = _encoder.encode(message)
    if len(data) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {len(data)} bytes is too large")
    connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "little") + data)


def receive_request(connection: socket.socket) -> Request | None:
    """Wait for the next request; None when the executor is gone."""
    head = _receive_exactly(connection, _LENGTH_BYTES)
    body = _receive_exactly(connection, int.from_bytes(head, "little")) if head is not None else None
    return _request_decoder.decode(body) if body is not None else None


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        more = connection.recv(min(1 << 20, count - len(data)))
        if not more:
            return None
        data += more
    return bytes(data)


class ReplyBuffer:
    """Replies out of bytes as they come in."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Bytes that have arrived."""
        self._data += data

    def next(self) -> Reply | None:
        """The next whole reply, or None."""
        if len(self._data) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._data[:_LENGTH_BYTES], "little")
        if len(self._data) < end:
            return None
        reply: Reply = _reply_decoder.decode(bytes(self._data[_LENGTH_BYTES:end]))
        del self._data[:end]
        return reply
