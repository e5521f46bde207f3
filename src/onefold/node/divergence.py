"""Where nodes say different things, this one looks again whether it can reproduce what it said.

About the log: it reads the range before the disputed offset again, from all servers, and continues the digest that it had there.
About the state: it folds the log again, from the last agreed snapshot, in a file aside. Who cannot reproduce what it said is
wrong: its copy halts here, and is recreated at the next start. Who can continues, and alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from onefold import config
from onefold.errors import OnefoldError
from onefold.fold.nodes import state
from onefold.log.api import Log
from onefold.node.members.witness import Dispute, Verdict, concerning, describe, disputes, judge
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import Tracing
from onefold.store.replica import next_digest

if TYPE_CHECKING:
    from onefold.node.hosting import Replica
    from onefold.node.maintenance import Round

Refold = Callable[[int, int], str | None]
"""Given a shard and an offset: the hash of the state there, folded again from the log; None when it cannot be done."""
_READ_BYTES = 4 << 20
_RECHECK_S = 300.0


class DivergenceCheck:
    """Compares, looks again and judges. Used by one thread."""

    def __init__(
        self,
        name: str,
        log: JsonLog,
        tracing: Tracing,
        *,
        hashed: Callable[[int, int], str | None],
        refold: Refold,
        halt: Callable[[int, str], None],
    ) -> None:
        """``hashed``: what this process found at a shard and an offset. ``halt``: makes the copy of a shard serve no more, and
        never again."""
        self.open: list[Dispute] = []
        """What is disputed now, of log and state."""
        self._name = name
        self._log = log
        self._tracing = tracing
        self._hashed = hashed
        self._refold = refold
        self._halt = halt
        self._judged: dict[tuple[str, Dispute], tuple[Verdict, float]] = {}

    def look(self, now: Round) -> None:
        """Compare what was said, and look again where this node's word is disputed."""
        with now.view() as view:
            about_log = disputes(state.digests(view))
            about_state = disputes(state.hashes(view))
            agreed = {
                (one.shard, one.offset): one.hash
                for shard in now.placement
                for one in state.agreed(view, shard)
            }
        self.open = [*about_log, *about_state]
        if not self.open:
            self._log.ends("nodes_diverged")
            self._judged.clear()
            return
        self._log.begins("nodes_diverged", "; ".join(map(describe, self.open)), level="error")
        hosted = now.hosted
        for dispute in concerning(about_log, self._name, hosted.keys()):
            replica = hosted[dispute.shard]
            digest = replica.digests().get(dispute.offset)
            if digest is not None and digest.hex() == dispute.says(self._name):
                self._judge("log", dispute, now, partial(reread, replica, dispute.offset))
        for dispute in concerning(about_state, self._name, hosted.keys()):
            shard, offset = dispute.shard, dispute.offset
            if self._hashed(shard, offset) == dispute.says(
                self._name
            ):  # not of an earlier copy, long replaced
                self._judge(
                    "state", dispute, now, partial(self._again, agreed.get((shard, offset)), shard, offset)
                )

    def _again(self, twice: str | None, shard: int, offset: int) -> str | None:
        """The state's hash, looked at again. What two nodes have alike is reproduced already: by the other one."""
        return twice or self._refold(shard, offset)

    def _judge(self, kind: str, dispute: Dispute, now: Round, again: Callable[[], str | None]) -> None:
        verdict, looked_s = self._judged.get((kind, dispute), (Verdict.UNKNOWN, -_RECHECK_S))
        said = dispute.says(self._name)
        if said is None or verdict is not Verdict.UNKNOWN or now.now_s - looked_s < _RECHECK_S:
            return
        with self._tracing.span("look_again", shard=dispute.shard, offset=dispute.offset, about=kind):
            try:
                found = again()
            except OnefoldError as error:
                self._log.warning("recheck_failed", about=kind, shard=dispute.shard, error=error)
                found = None
        verdict = judge(said, found)
        self._judged[kind, dispute] = (verdict, now.now_s)
        self._log.warning(
            "recheck_finished", about=kind, shard=dispute.shard, offset=dispute.offset, verdict=verdict.value, said=said,
            found=found,
        )  # fmt: skip
        if verdict is Verdict.WRONG:
            self._halt(
                dispute.shard,
                f"the {kind} of shard {dispute.shard} at offset {dispute.offset} is {said[:16]} here and {str(found)[:16]} when "
                f"looked at again ({describe(dispute)}). This copy is wrong; it is recreated when the node starts again",
            )


def reread(replica: Replica, offset: int) -> str | None:
    """The log's digest at an offset, from that of the digest before and the log itself; None when they cannot be had."""
    digests = replica.digests()
    before = offset - config.DIGEST_EVERY_OFFSETS
    if before > 0 and before not in digests:
        return None
    if before + 1 < replica.log.first:
        return None
    return digest_at(replica.log, before, digests.get(before, b""), offset).hex()


def digest_at(log: Log, start: int, digest: bytes, stop: int) -> bytes:
    """The digest at offset ``stop``, from that at ``start`` and the records between. Raises as ``Log.read``."""
    read = getattr(log, "read_everywhere", log.read)
    while start < stop:
        for entry in read(start + 1, _READ_BYTES)[: stop - start]:
            start, digest = entry.offset, next_digest(digest, entry.data)
    return digest
