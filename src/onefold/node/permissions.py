"""What each of a space's users may do on its servers: no more than it needs.

A space is one account, so wildcards over stream names reach no other space. The users are:

- ``app``: programs. They append to logs, read them, ask nodes, and put blobs. They make, trim and delete nothing.
- ``node``: nodes. The same, and they answer questions and trim (purge) logs whose records say so.
- ``admin``: ``onefold init``, ``doctor`` and people. Makes, inspects, repairs and deletes streams.
"""

from __future__ import annotations

from typing import Any, Final, Literal

User = Literal["app", "node", "admin"]
USERS: Final[tuple[User, ...]] = ("app", "node", "admin")


def permissions(space: str, user: User) -> dict[str, Any]:
    """The ``permissions`` of a user in the servers' configuration. What is not allowed is refused."""
    data = [f"of.{space}.*.log.*", f"of.{space}.*.ask.>", f"of.{space}.*.node.>", f"$O.of_{space}_blobs.>"]
    reading = [
        "$JS.API.DIRECT.GET.*",
        "$JS.API.DIRECT.GET.*.>",
        "$JS.API.STREAM.MSG.GET.*",
        "$JS.API.STREAM.INFO.*",
    ]
    own = [f"_INBOX_{user}.>", f"of.{space}.*.tail.*"]
    match user:
        case "app":
            return {"publish": {"allow": data + reading}, "subscribe": {"allow": own}}
        case "node":
            asked = [f"of.{space}.*.ask.>", f"of.{space}.*.node.>"]
            return {
                "publish": {
                    "allow": [*data, *reading, "$JS.API.STREAM.PURGE.*"],
                    "deny": [f"$JS.API.STREAM.PURGE.OF_{space}"],  # the record of the space
                },
                "subscribe": {"allow": own + asked},
                "allow_responses": {"max": RESPONSES_MAX, "expires": RESPONSES_EXPIRE},
            }
        case "admin":
            return {
                "publish": {"allow": [*data, f"of.{space}.space", "$JS.API.>"]},
                "subscribe": {"allow": own},
            }


RESPONSES_MAX: Final = 10_000
"""Messages that a node may send in answer to one question: large answers are paged."""
RESPONSES_EXPIRE: Final = "2m"
"""How long a node may take to answer."""
