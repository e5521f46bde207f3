"""What a receipt says of a submission that was given up while it was appended."""

from __future__ import annotations

import threading
import time

import pytest

from onefold import config
from onefold.codec import Op
from onefold.env import SYSTEM
from onefold.errors import Timeout
from onefold.shard.appender import Appender, _Submission
from onefold.shard.receipts import Receipt

WAIT_S = 60


def test_an_append_that_is_put_back_was_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the receipt is asked at the moment when the append of its batch fails for now: nobody answers it any more."""
    monkeypatch.setattr(config, "APPEND_RETRY_S", 10 * WAIT_S)
    appender = Appender(lambda ops, _: [b""] * len(ops), SYSTEM)
    mine = _Submission(appender, (Op("x", b""),), 1, SYSTEM.boot_s() + 1)
    receipt = Receipt()
    receipt.submission = mine
    assert mine.take()
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(receipt.outcomes()), daemon=True)
    asking.start()
    end = time.monotonic() + WAIT_S
    while not mine.gone and time.monotonic() < end:
        time.sleep(0.001)
    assert asking.is_alive(), "it is being appended"
    mine.put_back(Timeout("not now", definite=True))
    asking.join(WAIT_S)
    assert found == [None]
    assert not mine.take(), "it is not appended any more"
