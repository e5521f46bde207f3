"""Checks of arguments: flags and whole numbers; and how messages show a value, however large it is.

A flag is True or False, and nothing that Python merely takes for true: a stop with ``drain="no"`` would drain. A whole number has
bounds, which its error gives.
"""

from __future__ import annotations

from typing import Final

from onefold.errors import InvalidArgument

WHOLE_MAX: Final = 2**63 - 1
"""The largest number that anything here stores, and the bound of what may be as large as anyone likes."""
_SHOWN_BITS: Final = 256
"""Longer numbers are not written out: Python refuses that for those of thousands of digits."""


def check_flag(name: str, value: object, *, or_none: bool = False) -> None:
    """Raises InvalidArgument, which names argument and value, for what is not True or False (or None, with ``or_none``)."""
    if isinstance(value, bool) or (or_none and value is None):
        return
    wanted = "True, False or None" if or_none else "True or False"
    raise InvalidArgument(f"{name} must be {wanted}; got {shown(value, 80)} ({type(value).__name__})")


def check_whole(
    name: str, value: object, *, least: int, most: int = WHOLE_MAX, or_none: bool = False
) -> None:
    """Raises InvalidArgument, which names argument, bounds and value, for what is not a whole number from ``least`` to ``most``
    (or None, with ``or_none``)."""
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(
            f"{name} must be a whole number of at least {least:,} and at most {most:,}{', or None' if or_none else ''}; got "
            f"{shown(value)}"
        )


def shown(value: object, longest: int = 60) -> str:
    """The value as text for a message, cut where it is long; of a very long number how many digits it has."""
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"a number of about {round(value.bit_length() * 0.30103):,} digits"
    try:
        text = repr(value)
    except ValueError:  # there is such a number in it
        return f"a {type(value).__name__}"
    return text if len(text) <= longest else text[: longest - 3] + "..."
