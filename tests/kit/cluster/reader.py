"""A client that only reads, weakly: what it sees must be some prefix of what was written, and it must continue to see."""

from __future__ import annotations

from kit.workloads.sessions import Prefix
from onefold.db import Database
from onefold.testing.history import Verdict, worst
from onefold.testing.session_checks import check_prefix

LEVELS = ("prefix", "eventual", "session")


class Reader(Prefix):
    """Reads what ``Prefix`` writes."""

    name = "reader"
    consistency = "session"

    def step(self, db: Database, process: int) -> None:
        self.read(db, process, self.random.choice(LEVELS))

    def check(self) -> Verdict:
        """All reads show prefixes; those of a session continue."""
        of_sessions = [op for op in self.operations() if op.key == "session"]
        return worst(
            [
                check_prefix(self.operations(), self.order),
                check_prefix(of_sessions, self.order, monotonic=True),
            ]
        )
