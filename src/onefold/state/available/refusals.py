"""Errors for what the fold of a region refuses. All are definite."""

from __future__ import annotations

from onefold.available import ops
from onefold.available.kinds import places
from onefold.errors import (
    BelowFloor,
    Conflict,
    InvalidArgument,
    InvalidValue,
    OnefoldError,
    SpaceError,
    TooOld,
    TooStale,
    Unavailable,
)
from onefold.state.core.client import shown_key

KINDS = {
    places.REGISTER: "an available map (merge='last_writer_wins')",
    places.FIELDS: "an available map (merge='fields')",
    places.KEEP_BOTH: "an available map (merge='keep_both' or a function)",
    places.SET: "a collection of sets",
    places.COUNTER: "a collection of counters",
    places.BOUNDED: "a collection of counters with a floor",
}


def described(place: str) -> str:
    """What stands at a place, for people."""
    letter, _, floor = places.split_place(place)
    return KINDS[letter] if floor is None else f"a collection of counters with floor={floor}"


def other_kind(name: str, place: str) -> InvalidArgument:
    """The error for a name that stands for what is at that place."""
    return InvalidArgument(
        f"{name!r} is {described(place)} already, and a name is one thing. Open it as that, or take another name"
    )


def refusal(outcome: ops.Outcome, region: str) -> OnefoldError:
    """The error for an outcome that is not a success."""
    if not isinstance(outcome, ops.Rejected):
        return SpaceError(f"an unexpected outcome: {outcome}. Are all programs of this space of one version?")
    detail = outcome.detail
    name = places.split_place(detail)[1] if places.is_place(detail) else detail
    where = f" in {name!r}" if name else ""
    match outcome.reason:
        case "conflict":
            return Conflict(
                f"{shown_key(outcome.key)}{where} was changed by somebody else; nothing was written. Read again and retry"
            )
        case "too_old":
            return TooOld(
                f"the transaction read{where} so long ago that its changes can no longer be checked; nothing was written. "
                "Run it again, shorter"
            )
        case "below_floor":
            error = BelowFloor(
                f"{shown_key(outcome.key)}{where} may be taken from by {outcome.here} here, and is {outcome.value} in "
                "all regions; nothing was taken. Take less, or let another region move some (`move`)"
            )
            error.value, error.here = outcome.value, outcome.here
            return error
        case "other_kind":
            return other_kind(name, detail)
        case "too_large":
            return InvalidValue(
                f"{shown_key(outcome.key)}{where} would leave the integers of 64 bit; nothing was added"
            )
        case "behind":
            return TooStale("what this session has seen in another region is not here yet. Try again")
        case "evicted":
            return Unavailable(
                f"region {region} was evicted, so nothing is written in it: `onefold region rejoin {region}` takes it in again"
            )
        case "not_admitted" | "no_region":
            return Unavailable(
                f"region {region} is new and not admitted by all others yet, so nothing is written in it. Try again when they "
                "can be reached (`onefold region list`)"
            )
        case "unknown_region":
            return InvalidArgument(
                "there is no such region that could be given something: see `db.regions()`"
            )
        case "malformed":
            return InvalidArgument(f"the space refused the operation as malformed{where}")
        case reason:
            return Conflict(f"refused: {reason}{where}. Nothing was written")
