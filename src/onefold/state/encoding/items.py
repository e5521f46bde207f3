"""What maps give back: versions, items and changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from onefold.arguments import shown
from onefold.errors import InvalidArgument

T = TypeVar("T")
ChangeKind = Literal["put", "delete", "expire"]


class Version:
    """When something was written: opaque, comparable for equality; ``str()`` makes an ETag that ``if_version`` takes too."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[tuple[int, int, int], ...]) -> None:
        """``parts``: (shard, offset, index), one for each shard that was written, in order of shards."""
        self._parts = parts

    @classmethod
    def of(cls, version: Version | str) -> Version:
        """The version, or the one whose text this is (an ETag's quotes are dropped).

        Raises:
            InvalidArgument: definite; an argument is not valid.
        """
        if isinstance(version, RegionVersion) or _is_of_region(version):
            raise InvalidArgument(
                f"{shown(str(version))} is the version of a region's write, in an available map. A consistent map takes what its "
                "own `put` returned, or an item's `.version`"
            )
        if isinstance(version, Version):
            return version
        try:
            text = version.removeprefix("W/").strip('"')
            parts = tuple(tuple(_number(number) for number in part.split("-")) for part in text.split("."))
            if parts and all(len(part) == 3 for part in parts):
                return cls(tuple((shard, offset, index) for shard, offset, index in parts))
        except (AttributeError, TypeError, ValueError):
            pass
        raise InvalidArgument(
            f"{shown(version)} is not a version. Use what `put` returned, an item's `.version`, or the text of one"
        )

    def in_shard(self, shard: int) -> tuple[int, int] | None:
        """(offset, index) of what was written in that shard."""
        for number, offset, index in self._parts:
            if number == shard:
                return offset, index
        return None

    def __eq__(self, other: object) -> bool:
        return type(other) is Version and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __str__(self) -> str:
        return ".".join("-".join(_base36(number) for number in part) for part in self._parts)

    def __repr__(self) -> str:
        return f"<Version {self}>"


class RegionVersion(Version):
    """Which writes of regions an item of an available map consists of: the same in all regions. Its text begins with ``@``.

    Each part is (shard, region number, seq). Of a map by fields it is the latest write of each region, and a digest says of
    which fields. A change that no write stands for (a lifetime has ended) has the region number 0 and an offset of the log of the
    region where it was watched.
    """

    __slots__ = ("_digest",)

    def __init__(self, parts: tuple[tuple[int, int, int], ...], digest: str = "") -> None:
        super().__init__(parts)
        self._digest = digest

    @classmethod
    def of(cls, version: Version | str) -> RegionVersion:
        """As ``Version.of``.

        Raises:
            InvalidArgument: definite; an argument is not valid.
        """
        if isinstance(version, RegionVersion):
            return version
        if isinstance(version, Version):
            raise InvalidArgument(
                f"{shown(str(version))} is the version of a consistent map. An available map takes what its own `put` returned, "
                "or an item's `.version`"
            )
        try:
            text, _, digest = version.removeprefix("W/").strip('"').removeprefix("@").partition("_")
            parts = tuple(tuple(_number(number) for number in part.split("-")) for part in text.split("."))
            if _is_of_region(version) and parts and all(len(part) == 3 for part in parts):
                return cls(tuple((shard, region, seq) for shard, region, seq in parts), digest)
        except (AttributeError, TypeError, ValueError):
            pass
        raise InvalidArgument(
            f"{shown(version)} is not a version of an available map. Use what `put` returned, an item's `.version`, or the text "
            "of one"
        )

    def __eq__(self, other: object) -> bool:
        return type(other) is RegionVersion and self._parts == other._parts and self._digest == other._digest

    def __hash__(self) -> int:
        return hash((self._parts, self._digest))

    def __str__(self) -> str:
        return "@" + super().__str__() + ("_" + self._digest if self._digest else "")


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """A key with everything that is known of it."""

    key: Any
    """As it was given: a bare key, or a tuple."""
    value: T
    version: Version
    expires_at: datetime | None
    """When it ends, UTC; None: it stays."""
    siblings: list[Any] | None = None
    """Of an available map that keeps both: the values as they are kept, in the order in which they were written."""
    region: str | None = None
    """Of an available map: the region of the latest write."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One change of a key. ``value`` is None for ``delete`` and ``expire``. A watch that starts at ``token`` continues after
    it."""

    key: Any
    """As it was given: a bare key, or a tuple."""
    value: T | None
    version: Version
    kind: ChangeKind
    token: str
    region: str | None = None
    """Of an available map: where the write was made, if that is known."""


def utc(ms: int | None) -> datetime | None:
    """Milliseconds since 1970 as a time in UTC; the last one that exists when it is beyond."""
    if ms is None:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def _is_of_region(version: object) -> bool:
    return isinstance(version, str) and version.removeprefix("W/").strip('"').startswith("@")


def _number(text: str) -> int:
    return -int(text[1:], 36) if text.startswith("~") else int(text, 36)


def _base36(number: int) -> str:
    if number < 0:  # the place of what time did is -1
        return "~" + _base36(-number)
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return digits
