"""Keys, values and moments as they are typed."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onefold.arguments import shown

if TYPE_CHECKING:
    from onefold.state.encoding.keys import Key

JsonKeyOption = Annotated[
    bool,
    typer.Option(
        "--json-key",
        help='KEY is JSON: 7, true, null, "text", [...] or {"$bytes": "AAE="}.',
        show_default=False,
    ),
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="As it was: an ISO 8601 time, `2h ago`, or a session token.",
        show_default=False,
    ),
]


def parse_key(text: str, *, as_json: bool = False, name: str = "KEY") -> Key:
    """The key that was typed: text is text, a JSON array is a tuple; with ``as_json`` any JSON."""
    from onefold.errors import InvalidValue
    from onefold.state.encoding.json_values import key_from_json

    if not as_json and not text.startswith("["):
        return text
    try:
        return key_from_json(json.loads(text))
    except (ValueError, RecursionError, InvalidValue) as error:
        raise typer.BadParameter(
            f"{shown(text)} is not a key: {error}. Text is taken as it is; a tuple is a JSON array such as '[\"eu\", 7]'",
            param_hint=name,
        ) from None


def parse_value(text: str) -> Any:
    """The value that was typed: JSON if it is that, else the text; ``-`` reads it from stdin."""
    from onefold.state.encoding.json_values import from_json

    if text == "-":
        text = sys.stdin.read().removesuffix("\n")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return from_json(found)


def parse_time(text: str, name: str = "TIME") -> datetime:
    """A moment: ISO 8601 (without a zone: local time), or how long ago: ``2h ago``."""
    from onefold.durations import seconds
    from onefold.errors import InvalidArgument

    try:
        if text.endswith("ago"):
            return datetime.now(UTC) - timedelta(seconds=seconds(text.removesuffix("ago"), name))
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, InvalidArgument):
        raise typer.BadParameter(
            f"{shown(text)} is not a moment; write an ISO 8601 time such as 2026-05-01T12:00 or `2h ago`",
            param_hint=name,
        ) from None


def parse_when(text: str) -> datetime | str:
    """A moment, or a session token."""
    return parse_token(text, "--at") if text.startswith("of1.") else parse_time(text, "--at")


def parse_token(text: str, name: str) -> str:
    """A session token; ends with wrong usage for what is none."""
    from onefold.errors import TokenError
    from onefold.state.core.tokens import decode_token

    try:
        decode_token(text)
    except TokenError as error:
        raise typer.BadParameter(str(error), param_hint=name) from None
    return text


def shown_key(key: Key) -> str:
    """A key for people: text as it is, a tuple as JSON."""
    from onefold.state.encoding.json_values import dump_line, key_to_json

    return key if isinstance(key, str) and key.isprintable() else dump_line(key_to_json(key))


def not_there(key: Key, name: str) -> str:
    """That a map has no such key; with what may have been meant, when the text of the key is JSON too."""
    text = f"there is no {shown_key(key)} in map {name!r}"
    if not isinstance(key, str) or not re.fullmatch(r"-?\d+|true|false|null", key):
        return text
    return f"{text} (the text; --json-key looks for {key} as JSON)"


def shown_value(value: Any) -> str:
    """A value for people: text as it is, the rest as JSON."""
    from onefold.state.encoding.json_values import dump_line, to_json

    return value if isinstance(value, str) else dump_line(to_json(value))
