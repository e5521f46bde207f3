"""Values as short text, for messages: never fails, whatever the value is."""

from __future__ import annotations

from typing import Any, Final

RECORD_CHARS_MAX: Final = 2_000


def cut(text: str, chars_max: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def safe_repr(value: Any, chars_max: int = RECORD_CHARS_MAX) -> str:
    """The value's repr, cut; never raises, and does not render the whole of a large string to cut it."""
    if isinstance(value, dict):
        value = {key: _shortened(item, chars_max) for key, item in value.items()}
    try:
        return cut(repr(_shortened(value, chars_max)), chars_max)
    except BaseException as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def _shortened(value: Any, chars_max: int) -> Any:
    return value[: chars_max + 1] if isinstance(value, str | bytes) else value
