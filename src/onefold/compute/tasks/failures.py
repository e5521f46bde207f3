"""From an exception to the ``Failure`` that is reported to the log: short, safe to print, with the user's frames
only.
"""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Any, Final

from onefold import _version
from onefold.compute.frames.values_as_text import cut, safe_repr
from onefold.compute.plan.stages import DeadLetter, Failure
from onefold.errors import InvalidArgument, InvalidPlan, InvalidValue, OnefoldError, Unavailable

MESSAGE_CHARS_MAX: Final = 1_000
TRACEBACK_CHARS_MAX: Final = 20_000

_OWN_FILES: Final = str(Path(_version.__file__).parent)
_PYTHON_FILES: Final = str(Path(traceback.__file__).parent)
_POLARS_FILES: Final = f"{os.sep}polars{os.sep}"
_POLARS_PLAN: Final = "\n\nResolved plan until failure"
"""What Polars says from there on is about its own plan, which is not what the user wrote."""
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class RecordError(Exception):
    """A function raised for one record; ``__cause__`` is what it raised.

    ``position``: where the record stands in the input of the step; ``row``: in the chunk, where that is
    known.
    """

    def __init__(self, record: Any, position: int) -> None:
        super().__init__("a function raised for one record")
        self.record = record
        self.position = position
        self.row: int | None = None


class LocatedError(Exception):
    """The record that breaks a task has been found; ``letter`` says which and why.

    ``passing``: what it met may be gone at the next attempt.
    """

    def __init__(self, letter: DeadLetter, kind: str, *, passing: bool = False) -> None:
        super().__init__(letter.error)
        self.letter = letter
        self.kind = kind
        self.passing = passing


def one_line(error: BaseException) -> str:
    """``KeyError: 'x'``: the exception as one line."""
    try:
        text = str(error)
    except BaseException:
        text = "<its text cannot be made>"
    name = type(error).__name__
    text = text.split(_POLARS_PLAN)[0]
    line = " ".join(text.split())
    return cut(f"{name}: {line}" if line else name, MESSAGE_CHARS_MAX)


def user_traceback(error: BaseException) -> str:
    """The traceback from the user's first frame on; the whole of it when no frame is the user's.

    Empty for what Onefold or Polars says of the data: the message tells it all.
    """
    try:
        if _says_it_all(error):
            return ""
        trace = traceback.TracebackException.from_exception(error)
        _skip_own(trace)
        text = "".join(trace.format())
    except BaseException:
        text = one_line(error)
    if len(text) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        text = f"{text[:half]}\n  …\n{text[-half:]}"
    return text


def _says_it_all(error: BaseException) -> bool:
    """Whether this is an error of Onefold, Polars or a file, with no code of the user or foreign cause behind it."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not all(map(_is_library, files)):
        return False
    if isinstance(error, OnefoldError):
        return error.__cause__ is None or _says_it_all(error.__cause__)
    return isinstance(error, OSError) or (bool(files) and _POLARS_FILES in files[-1])


def _is_library(file: str) -> bool:
    return (
        file.startswith(_OWN_FILES)
        or _POLARS_FILES in file
        or (file.startswith(_PYTHON_FILES) and "site-packages" not in file)
    )


def _skip_own(trace: traceback.TracebackException) -> None:
    own = 0
    while own < len(trace.stack) and trace.stack[own].filename.startswith(_OWN_FILES):
        own += 1
    if own < len(trace.stack):
        del trace.stack[:own]
    for inner in (trace.__cause__, trace.__context__):
        if inner is not None:
            _skip_own(inner)


def of_machine(error: OSError) -> str:
    """What the machine refused, and what to do: ``no space is left on the disk (/data/x); free some``."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in _DISK_FULL:
        return f"no space is left on the disk{place}; free some"
    return f"{error.strerror or error}{place}; fix that"


def refused_by_machine(error: BaseException) -> str:
    """What the machine refused, as ``of_machine`` says it; empty for any other error, and for one that a function of the user
    met: nobody knows what that did before."""
    if not isinstance(error, OSError) or isinstance(error, OnefoldError) or not _says_it_all(error):
        return ""
    return of_machine(error)


def failure_of(error: BaseException, *, final: bool = False) -> Failure:
    """What is reported to the log about this exception.

    It is final, whatever is asked, where trying again or looking for the record cannot help: a broken file, a full disk, a
    function that raised for a record. Memory that runs out never is: another machine may have more.
    """
    if isinstance(error, OSError) and not isinstance(error, OnefoldError) and error.errno in _DISK_FULL:
        return Failure(message=of_machine(error), final=True, kind=type(error).__name__)
    final = final or isinstance(error, InvalidArgument | InvalidPlan | InvalidValue)
    if isinstance(error, LocatedError):
        letter = error.letter
        passing = error.passing or (error.__context__ is not None and is_passing(error.__context__))
        final = final or not passing
        return Failure(
            message=letter.error,
            traceback=letter.traceback,
            record=letter.record,
            location=letter.location,
            final=final,
            kind=error.kind,
        )
    record = None
    if isinstance(error, RecordError):
        record = safe_repr(error.record)
        error = cause_of(error)
    return Failure(
        message=one_line(error),
        traceback=user_traceback(error),
        record=record,
        final=final,
        kind=type(error).__name__,
    )


def is_passing(error: BaseException) -> bool:
    """Whether this is a trouble of the machine, a file, a store or the network, which may be gone at the next attempt."""
    return isinstance(cause_of(error), MemoryError | OSError | Unavailable)


def cause_of(error: BaseException) -> BaseException:
    """What a function raised, without the wrapping that names the record."""
    return error.__cause__ if isinstance(error, RecordError) and error.__cause__ is not None else error


def letter_of(error: BaseException, location: str, record: str | None = None) -> DeadLetter:
    """The dead letter for an exception; the record is the one that the exception names unless given."""
    if record is None:
        record = safe_repr(error.record) if isinstance(error, RecordError) else ""
    cause = cause_of(error)
    return DeadLetter(location, record, one_line(cause), user_traceback(cause))
