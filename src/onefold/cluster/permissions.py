"""What each of a space's users may do on its servers: no more than it needs.

A space is one account, so wildcards over stream names reach no other space. The users are:

- ``app``: programs. They append to logs, read them, ask nodes, and put blobs. They make, trim and delete nothing.
- ``node``: nodes. The same, and they answer questions, trim (purge) logs whose records say so, ask leaders of logs to step down,
  store the snapshots of regions' own logs, and publish on a subject of their own what only nodes may append (see
  ``fold.authority``).
- ``admin``: ``onefold init``, ``doctor`` and people. Makes, inspects, repairs and deletes streams; begins new logs on the nodes'
  subject.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from onefold.log.jetstream import names

User = Literal["app", "node", "admin"]
USERS: Final[tuple[User, ...]] = ("app", "node", "admin")


def inbox_prefix(user: str) -> str:
    """What the inboxes of a user begin with: no user can subscribe to the replies of another. URLs have it as ``inbox=``."""
    return f"_INBOX_{user}"


def trace_prefix(space: str) -> str:
    """What the subjects begin with to which servers report how they passed a message on; only the admin may have that."""
    return f"of.{space}.trace"


def permissions(space: str, user: User) -> dict[str, Any]:
    """The ``permissions`` of a user in the servers' configuration. What is not allowed is refused."""
    log = names.LogNames(space, "*", "*")  # type: ignore[arg-type]  # of any shard
    asked = [f"{log.ask}", log.ask_region("*"), names.node_subject(space, "*", "*")]
    snapshots = f"{names.region_blobs(space, '*').prefix}.>"  # of regions' own logs: nodes take them
    data = [log.subject, *asked, f"$O.{names.blobs_bucket(space)}.>"]
    reading = [
        f"{names.DIRECT_GET}*",
        f"{names.DIRECT_GET}*.>",
        f"{names.MESSAGE_GET}*",
        f"{names.STREAM_INFO}*",
    ]
    heard = [f"{inbox_prefix(user)}.>", log.tail]
    match user:
        case "app":
            return {"publish": {"allow": data + reading}, "subscribe": {"allow": heard}}
        case "node":
            return {
                "publish": {
                    "allow": [
                        *data,
                        log.node_subject,
                        snapshots,
                        *reading,
                        f"{names.STREAM_PURGE}*",
                        f"{names.STREAM_STEPDOWN}*",
                    ],
                    "deny": [
                        call + names.space_stream(space)
                        for call in (names.STREAM_PURGE, names.STREAM_STEPDOWN)
                    ],
                },
                "subscribe": {"allow": heard + asked},
                "allow_responses": {"max": RESPONSES_MAX, "expires": RESPONSES_EXPIRE},
            }
        case "admin":
            traces = f"{trace_prefix(space)}.>"
            return {
                "publish": {
                    "allow": [
                        *data,
                        log.node_subject,
                        snapshots,
                        names.space_subject(space),
                        names.region_record(space, "*"),
                        "$JS.API.>",
                        traces,
                    ]
                },
                "subscribe": {"allow": [*heard, traces]},
            }


RESPONSES_MAX: Final = 10_000
"""Messages that a node may send in answer to one question: large answers are paged."""
RESPONSES_EXPIRE: Final = "2m"
"""How long a node may take to answer."""
