"""Positions in streams."""

from __future__ import annotations

from collections.abc import Mapping

from onefold.errors import InvalidArgument
from onefold.state.encoding.items import _base36

_PREFIX = "s1"


class Position:
    """A place in a stream: opaque, comparable for equality; ``str()`` makes a text that ``start=`` takes too.

    It holds, for some or all partitions, the offset of the next record to read there; and what to do in the other
    partitions: start at the first record that is no older than a moment of fold time, or at the earliest.

    - Of ``append``: the record's own partition and offset, and its time. So reading from it starts *with* that record, and in the
      other partitions with the first records that are no older.
    - Of ``append_many``: the first of the records in each partition that they went to; otherwise the same.
    - Of a reader (``reader.position``, ``record.position``): the next record to read in each partition that is read; so
      reading from it continues *after* what was read.
    """

    __slots__ = ("_offsets", "_since_ms", "_tag")

    def __init__(self, tag: int, offsets: Mapping[int, int], since_ms: int | None = None) -> None:
        """``tag``: of the stream, so that another's position is refused."""
        self._tag = tag
        self._offsets = tuple(sorted(offsets.items()))
        self._since_ms = since_ms

    @classmethod
    def of(cls, position: Position | str, tag: int, partitions: int) -> Position:
        """The position, or the one whose text this is, checked against the stream.

        Raises:
            InvalidArgument: definite; it is none, or one of another stream.
        """
        found = position if isinstance(position, Position) else parse_position(position)
        if found._tag != tag:
            raise InvalidArgument(f"{found!r} is a position in another stream")
        if any(partition >= partitions for partition, _ in found._offsets):
            raise InvalidArgument(f"{found!r} names partitions that this stream does not have ({partitions})")
        return found

    @property
    def offsets(self) -> dict[int, int]:
        """The offset of the next record, by partition."""
        return dict(self._offsets)

    @property
    def since_ms(self) -> int | None:
        """Where the other partitions start: at the first record of this fold time or later; None: at the earliest."""
        return self._since_ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Position) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return self._tag, self._offsets, self._since_ms

    def __str__(self) -> str:
        since = "" if self._since_ms is None else _base36(self._since_ms)
        parts = (f"{_base36(partition)}-{_base36(offset)}" for partition, offset in self._offsets)
        return ".".join((_PREFIX, _base36(self._tag), since, *parts))

    def __repr__(self) -> str:
        return f"<Position {self}>"


def parse_position(text: object) -> Position:
    """The position whose text this is, of whichever stream. Raises InvalidArgument."""
    try:
        if isinstance(text, str) and text.isascii() and "_" not in text and "+" not in text:
            prefix, tag, since, *parts = text.split(".")
            if prefix == _PREFIX:
                pairs = [tuple(int(number, 36) for number in part.split("-")) for part in parts]
                offsets = {partition: offset for partition, offset in pairs}  # noqa: C416  # checks that they are pairs
                return Position(int(tag, 36), offsets, int(since, 36) if since else None)
    except ValueError:
        pass
    raise InvalidArgument(
        f"{text!r:.80} is not a position. Use what `append` returned, a reader's or a record's `.position`, or the text of one; "
        "or 'earliest', 'latest' or a datetime"
    )
