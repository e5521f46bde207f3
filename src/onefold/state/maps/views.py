"""The views that ``keys()``, ``values()`` and ``items()`` give: as those of a dict, but each iteration is one scan."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from onefold.state.maps.methods import ReadMethods

T = TypeVar("T")


class MapKeys(KeysView[Any]):
    """Keys in key order."""

    _mapping: ReadMethods[Any]

    def __reversed__(self) -> Iterator[Any]:
        return self._mapping.__reversed__()


class MapValues(ValuesView[T]):
    """Values in the order of their keys."""

    _mapping: ReadMethods[T]

    def __iter__(self) -> Iterator[T]:
        return map(_second, self._mapping.scan())

    def __reversed__(self) -> Iterator[T]:
        return map(_second, self._mapping.scan(reverse=True))

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


def _second(pair: tuple[Any, T]) -> T:
    return pair[1]


class MapItems(ItemsView[Any, T]):
    """(key, value) in key order."""

    _mapping: ReadMethods[T]

    def __iter__(self) -> Iterator[tuple[Any, T]]:
        return self._mapping.scan()

    def __reversed__(self) -> Iterator[tuple[Any, T]]:
        return self._mapping.scan(reverse=True)
