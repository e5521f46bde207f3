"""What follows in a call once it has done what it was called for.

A definite error says that the call certainly did nothing. So what fails behind that point raises an error of the same kind that
is not definite, and that says what has happened already.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import TracebackType

from onefold.errors import OnefoldError
from onefold.machine.undisturbed import is_interrupt, let_pass


def indefinite(error: OnefoldError, what: str) -> OnefoldError:
    """The same error, for a call of which this happened before: ``what``, as a sentence without its end."""
    found = copy.copy(error)  # not itself: others may have been given it too
    found.args = (f"{what}: {error}",)
    found.definite = False
    return found


class Happened:
    """A ``with`` block for what follows: a definite error that comes out of it is made indefinite. What a signal handler raises
    comes out as it is."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        """``what`` has happened: a sentence without its end."""
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OnefoldError) and error.definite and not is_interrupt(error):
            raise indefinite(error, self._what) from error


class Afterwards:
    """Several steps that follow, of which none is left out since another one fails."""

    def __init__(self, what: str) -> None:
        """``what``: as of ``Happened``."""
        self._what = what
        self._failed: OnefoldError | None = None

    def do(self, step: Callable[[], object]) -> None:
        """The next step. What a signal handler raises ends all of it."""
        try:
            step()
        except OnefoldError as error:
            let_pass(error)
            self._failed = self._failed or error

    def end(self) -> None:
        """Raise what the first step that failed has met, as an error that is not definite."""
        if self._failed is not None:
            raise indefinite(self._failed, self._what) from self._failed
