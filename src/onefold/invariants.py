"""What cannot be, checked where to continue would make it worse.

A fold or a replica that finds its own state impossible stops before it writes: what is in the log is whole, and a corrected
program folds it again. Bad input breaks none; it is refused.
"""

from __future__ import annotations

from onefold.errors import SpaceError


class InvariantBroken(SpaceError):
    """A bug in Onefold, or in what it stands on. Definite: nothing was written."""


def invariant(condition: bool, message: str, **facts: object) -> None:
    """Raises InvariantBroken with the facts unless the condition holds. ``message``: what should be so, as a sentence."""
    if not condition:
        facts_text = ", ".join(f"{name} = {value!r}" for name, value in facts.items())
        raise InvariantBroken(
            f"{message} ({facts_text}): a bug in Onefold; nothing was written. Keep a copy of the space, and report it",
            definite=True,
        )
