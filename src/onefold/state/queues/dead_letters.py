"""Dead letters: messages whose last attempt has failed, also those that cannot be read as the queue's type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from onefold.errors import InvalidValue
from onefold.state.encoding.keys import Key
from onefold.state.encoding.values import ValueCodec
from onefold.state.queues.messages import read_value, shown_key

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[T]):
    """A message whose last attempt has failed."""

    id: int
    """Its number in the queue that it was put into."""
    value: T
    key: Key
    attempts: int
    """How often it was tried."""
    errors: tuple[str, ...]
    """What the latest tries ended with, oldest first."""

    @property
    def error(self) -> str:
        """What the last try ended with."""
        return self.errors[-1] if self.errors else ""

    @property
    def problem(self) -> InvalidValue | None:
        """Why its value cannot be read as the queue's type, which ``value`` then raises; None: it can."""
        return None


class UnreadableLetter(DeadLetter[Any]):
    """A dead letter whose value cannot be read as the queue's type. All else of it can."""

    __slots__ = ("_problem", "data")

    data: bytes
    """The value as it is stored."""

    def __init__(
        self, id: int, problem: InvalidValue, data: bytes, key: Key, attempts: int, errors: tuple[str, ...]
    ) -> None:
        for name, found in (("id", id), ("key", key), ("attempts", attempts), ("errors", errors)):
            object.__setattr__(self, name, found)
        object.__setattr__(self, "_problem", problem)
        object.__setattr__(self, "data", data)

    @property
    def value(self) -> Any:
        """Raises InvalidValue, which names queue and message."""
        problem: InvalidValue = self._problem  # type: ignore[attr-defined]
        raise problem.with_traceback(None)

    @property
    def problem(self) -> InvalidValue | None:
        """Why its value cannot be read."""
        return self._problem  # type: ignore[attr-defined,no-any-return]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnreadableLetter) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return f"<UnreadableLetter {self.id}: {self.problem}>"

    def _all(self) -> tuple[Any, ...]:
        return (self.id, self.data, self.key, self.attempts, self.errors)


def read_letter(
    codec: ValueCodec[T],
    queue: str,
    number: int,
    data: bytes,
    key: bytes | None,
    attempts: int,
    errors: tuple[str, ...],
) -> DeadLetter[T]:
    """The letter, whether or not its value can be read."""
    try:
        value = read_value(codec, queue, number, data)
    except InvalidValue as problem:
        return UnreadableLetter(number, problem, data, shown_key(key), attempts, errors)
    return DeadLetter(number, value, shown_key(key), attempts, errors)
