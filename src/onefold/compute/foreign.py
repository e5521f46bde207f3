"""The one place where what other libraries raise becomes an error of Onefold.

Polars raises errors of its own, Python's ``ValueError`` or ``UnicodeError``, and, where its Rust code gives up, a
``PanicException``, which is not even an ``Exception``. A program that catches ``OnefoldError`` must see all of them, and
they seldom name the file that they are about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onefold.errors import InvalidValue, OnefoldError, Unavailable
from onefold.machine.undisturbed import is_interrupt

_CHARS_MAX = 500


def is_panic(error: BaseException) -> bool:
    """Whether this is a panic of a Rust library: each such library has a class of that name."""
    return any(kind.__name__ == "PanicException" for kind in type(error).__mro__)


def is_foreign(error: BaseException) -> bool:
    """Whether this is to become an error of ours.

    Not the errors of files and disks (``OSError``), for which callers have words of their own, and not what ends a program
    or a task from outside: ``KeyboardInterrupt``, and whatever a signal handler raised, such as a soft time limit.
    """
    if isinstance(error, OnefoldError | OSError):
        return False
    return is_panic(error) or (isinstance(error, Exception) and not is_interrupt(error))


def why(error: BaseException) -> str:
    """What the error says, as one line that can be printed."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    if is_panic(error):
        text = f"Polars gave up: {text}"
    elif not text or not type(error).__module__.startswith("polars"):
        text = f"{name}: {text}" if text else name
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _CHARS_MAX else text[: _CHARS_MAX - 1] + "…"


@contextmanager
def translated(
    what: str, *, kind: type[OnefoldError] = InvalidValue, hint: str = "", definite: bool | None = None
) -> Iterator[None]:
    """Raise foreign errors of the block as ``kind``: ``{what}: {why}; {hint}``, with the original as its cause.

    ``what`` names the file or the table that the block works on. Memory that runs out becomes ``Unavailable``.
    """
    try:
        yield
    except BaseException as error:
        if not is_foreign(error):
            raise
        as_ours = Unavailable if isinstance(error, MemoryError) else kind
        raise as_ours(f"{what}: {why(error)}" + (f"; {hint}" if hint else ""), definite=definite) from error
