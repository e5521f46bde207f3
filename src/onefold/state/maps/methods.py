"""The methods of a dict that a map has everywhere: over its scan and its ``put_many``, whatever these read and write."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from onefold.arguments import check_whole
from onefold.errors import InvalidArgument, InvalidValue
from onefold.state.encoding.keys import decode_key, encode_key, encode_prefix
from onefold.state.maps.scans import MapScan, unreadable
from onefold.state.maps.views import MapItems, MapKeys, MapValues

if TYPE_CHECKING:
    from onefold.state.maps.writing import Pairs

T = TypeVar("T")
R = TypeVar("R")
_ABSENT: Final = object()


class ReadMethods(Mapping[Any, T], Generic[T]):
    """Reading, over ``_scan_rows`` and ``count``."""

    name: str
    """The map's name."""
    _decode: Callable[[bytes], T]

    __hash__ = None  # type: ignore[assignment]  # equal maps may change

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @abstractmethod
    def count(self, prefix: Any = None) -> int:
        """How many keys there are, or of those that begin with a prefix."""

    @abstractmethod
    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[Any, T]]:
        """(key, value) in key order."""

    @abstractmethod
    def _scan_rows(
        self, low: bytes, high: bytes, limit: int | None, reverse: bool, give: Callable[[bytes, Any], R]
    ) -> MapScan[R]:
        """What ``give`` makes of the encoded keys ``low <= key < high``, in order, and what is stored under them."""

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        """Whether anything is in it. Looks at the first key only."""
        return next(iter(self), _ABSENT) is not _ABSENT

    def __iter__(self) -> Iterator[Any]:
        return self._scan_rows(*_EVERYTHING, None, False, _key_of)

    def __reversed__(self) -> Iterator[Any]:
        return self._scan_rows(*_EVERYTHING, None, True, _key_of)

    def keys(self) -> MapKeys:
        """A view of the keys, in key order."""
        return MapKeys(self)

    def values(self) -> MapValues[T]:
        """A view of the values, in the order of their keys; an iteration is one scan."""
        return MapValues(self)

    def items(self) -> MapItems[T]:
        """A view of (key, value), in key order; an iteration is one scan."""
        return MapItems(self)

    def _value_of(self, key: object, data: bytes) -> T:
        """The stored value. Raises InvalidValue, which names the map and the key."""
        try:
            return self._decode(data)
        except InvalidValue as error:
            raise unreadable(error, self.name, key) from None


class WriteMethods(ReadMethods[T], MutableMapping[Any, T], Generic[T]):
    """Writing, over ``put_many``."""

    @abstractmethod
    def put_many(self, items: Pairs) -> object:
        """Set several keys, of a mapping or of (key, value) pairs, all or none."""

    def update(self, other: Any = (), /, **more: T) -> None:
        """As of a dict, all or nothing: see ``put_many``.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        if not isinstance(other, Mapping) and hasattr(other, "keys"):
            other = {key: other[key] for key in other.keys()}  # noqa: SIM118 - not every such object is a Mapping
        if more:
            other = [*(other.items() if isinstance(other, Mapping) else other), *more.items()]
        self.put_many(other)

    def _modified(self, key: object, fn: Callable[[Any], T], default: Any, data: bytes | None) -> T:
        """``fn`` of the stored value, or of a copy of ``default`` when there is none."""
        return fn(copy.deepcopy(default) if data is None else self._value_of(key, data))


_EVERYTHING: Final = encode_prefix(())


def encoded_range(prefix: Any, start: Any, stop: Any) -> tuple[bytes, bytes]:
    """The encoded keys that a scan is of: ``low <= key < high``. Raises InvalidKey."""
    low, high = _EVERYTHING if prefix is None else encode_prefix(prefix)
    if start is not None:
        low = max(low, encode_key(start))
    if stop is not None:
        high = min(high, encode_key(stop))
    return low, high


def check_limit(limit: object) -> None:
    """Raises InvalidArgument for what cannot be the limit of a scan."""
    check_whole("limit", limit, least=0, or_none=True)


def check_function(fn: object) -> None:
    """Raises InvalidArgument for what ``modify`` cannot call."""
    if not callable(fn):
        raise InvalidArgument(f"modify takes a function of the value; got {fn!r:.100}")


def _key_of(key: bytes, stored: object) -> Any:  # noqa: ARG001
    return decode_key(key)
