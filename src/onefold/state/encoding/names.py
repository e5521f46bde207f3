"""Names of collections, and other text."""

from __future__ import annotations

from onefold import config
from onefold.errors import InvalidArgument


def check_name(kind: str, name: object) -> str:
    """The name of a collection, checked: text of 1 to ``config.NAME_BYTES_MAX`` bytes. ``kind``: ``map``, ``queue``, ...

    Raises InvalidArgument (definite).
    """
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"the name of a {kind} must be text and not empty; got {name!r}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"the name of a {kind} holds half a surrogate pair, which has no UTF-8: {name[:60]!a}"
        ) from None
    if length > config.NAME_BYTES_MAX:
        raise InvalidArgument(
            f"the name of a {kind} takes {length} bytes; at most {config.NAME_BYTES_MAX} are possible: {name[:60]!r}..."
        )
    return name


def check_request_id(request_id: object) -> None:
    """Raises InvalidArgument unless it is None or text of 1 to ``config.REQUEST_ID_BYTES_MAX`` bytes."""
    if request_id is None:
        return
    if not isinstance(request_id, str) or not request_id:
        raise InvalidArgument(f"request_id must be text and not empty; got {request_id!r}")
    try:
        length = len(request_id.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"request_id holds half a surrogate pair, which has no UTF-8: {request_id[:60]!a}"
        ) from None
    if length > config.REQUEST_ID_BYTES_MAX:
        raise InvalidArgument(
            f"request_id takes {length} bytes; at most {config.REQUEST_ID_BYTES_MAX} are possible: {request_id[:60]!r}..."
        )


def check_text(name: str, value: object) -> None:
    """Raises InvalidArgument for an argument that is not text."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be text; got {value!r} ({type(value).__name__})")
