"""Putting into queues: what a plain handle and one inside a transaction have in common, and the latter."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from onefold.durations import seconds
from onefold.errors import InvalidArgument
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name
from onefold.state.encoding.values import ValueCodec
from onefold.state.fold.queues import ops as queue_ops

if TYPE_CHECKING:
    from onefold.state.transactions.attempt import TransactionCore

_Duration = float | timedelta | str


class TxQueue:
    """A queue inside a transaction: what is put is there once the transaction commits, together with all else it wrote."""

    def __init__(self, core: TransactionCore, name: str, codec: ValueCodec[Any]) -> None:
        self._core = core
        self._name = check_name("queue", name)
        self._codec = codec

    def put(self, value: object, *, key: object = None, delay: _Duration | None = None) -> None:
        """Put a message when the transaction commits; see ``Queue.put``."""
        self.put_many((value,), key=key, delay=delay)

    def put_many(
        self, values: Iterable[object], *, key: object = None, delay: _Duration | None = None
    ) -> None:
        """Put messages, in this order, when the transaction commits."""
        write = enqueue(self._name, values, key, delay, self._codec)
        if write.messages:
            size = sum(len(message.value) + len(message.key or b"") for message in write.messages)
            self._core.add_write(self._core.client.shard_of(encode_key(self._name)), write, size)

    def __repr__(self) -> str:
        return f"<TxQueue {self._name!r}>"


def enqueue(
    name: str, values: Iterable[Any], key: object, delay: _Duration | None, codec: ValueCodec[Any]
) -> queue_ops.Enqueue:
    """The write that puts these values into the queue of that name.

    Raises InvalidValue, InvalidKey, TooLarge, InvalidArgument.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument(
            f"put_many takes a list of messages; got {values!r:.80}. For one message use put"
        )
    encoded = None if key is None else encode_key(key)
    delay_ms = 0 if delay is None else duration_ms(seconds(delay, "delay"))
    return queue_ops.Enqueue(
        name, tuple([queue_ops.Message(codec.encode(value), encoded, delay_ms) for value in values])
    )


def duration_ms(duration_s: float) -> int:
    """In whole milliseconds, as operations carry it."""
    return min(max(0, round(duration_s * 1000)), 1 << 50)
