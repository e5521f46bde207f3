"""Arguments that are True or False, and nothing that Python merely takes for true: a stop with ``drain="no"`` would drain."""

from __future__ import annotations

from onefold.errors import InvalidArgument


def check_flag(name: str, value: object, *, or_none: bool = False) -> None:
    """Raises InvalidArgument, which names argument and value, for what is not True or False (or None, with ``or_none``)."""
    if isinstance(value, bool) or (or_none and value is None):
        return
    wanted = "True, False or None" if or_none else "True or False"
    raise InvalidArgument(f"{name} must be {wanted}; got {value!r:.80} ({type(value).__name__})")
