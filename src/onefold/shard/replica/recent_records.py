"""The last records that were applied: a writer whose record was acknowledged compares its own with the one applied there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onefold import config
from onefold.log.api import Entry

_RECORDS_MAX: Final = 256


class RecentRecords:
    """At most 256 records and ``config.REPLICA_RECENT_BYTES_MAX`` bytes. Used by the one thread that applies; reads are safe."""

    def __init__(self) -> None:
        self._data: dict[int, bytes] = {}
        self._bytes = 0

    def add(self, entries: Sequence[Entry]) -> None:
        """These were read to be applied; the oldest ones are dropped for them."""
        for entry in entries[-_RECORDS_MAX:]:
            if entry.offset not in self._data:
                self._data[entry.offset] = entry.data
                self._bytes += len(entry.data)
        while len(self._data) > _RECORDS_MAX or self._bytes > config.REPLICA_RECENT_BYTES_MAX:
            self._bytes -= len(self._data.pop(next(iter(self._data))))

    def get(self, offset: int) -> bytes | None:
        """The record at that offset; None when it is not among the last."""
        return self._data.get(offset)
