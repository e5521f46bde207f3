"""Makes a space of two shards with every kind of shared state, and a file that says how each of them reads.

Run by hand with the release that is to be kept below ``tests/assets``, which no later program can do again:

    PYTHONPATH=src python tests/support/space_of_state.py tests/assets/space-0.2-state

``test_stored_state.py`` reads what it made with the present program.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import onefold as of

VALUES = {
    "none": None,
    "bool": True,
    "big": -(2**80),
    "float": 0.1,
    "text": "ß",
    "bytes": b"\x00\xff",
    "nested": {"a": [1, {"b": None}]},
    "datetime": datetime(2026, 11, 29, 12, 0, 0, 5, tzinfo=UTC),
    "date": date(2026, 11, 29),
    "timedelta": timedelta(days=1, microseconds=3),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=5),
}


def shown(db: of.Database) -> dict[str, Any]:
    """All that can be read of it, as JSON has it. Changes nothing."""
    queue = db.queue("work")
    clicks = sorted((record.key, record.value) for record in db.stream("clicks").read())
    return {
        "kinds": {key: repr(value) for key, value in sorted(db.map("kinds").items())},
        "keys": sorted([repr(key), value] for key, value in db.map("keys").items()),
        "accounts": dict(sorted(db.map("accounts").items())),
        "range": [[list(key), value] for key, value in db.map("places").scan(prefix=("eu",))],
        "expires": str(db.map("lives").get_item("long").expires_at),
        "counts": list(queue.counts()),
        "dead": [[letter.value, letter.error] for letter in queue.dead()],
        "clicks": [list(click) for click in clicks],
        "outcomes": [db.outcome(f"move-{number}") for number in range(4)],
    }


def fill(db: of.Database) -> str:
    """Put everything into it; a session's token from before the transfers."""
    db.map("kinds").update(VALUES)
    keys = [None, b"x", "x", ("eu", 1), ("eu", ("nested", None)), 0, -1, 2**70, False, True]
    for number, key in enumerate(keys):
        db.map("keys")[key] = number
    db.map("places").put_many({("eu", "se"): 1, ("eu", "fi"): 2, ("us", "ny"): 3})
    db.map("lives").put("long", 1, ttl="36500d")
    db.map("lives").put("short", 1, ttl="1ms")
    db.map("accounts").update(dict.fromkeys(("ann", "bob", "eve", "dan"), 100))
    token = db.session.token

    def move(tx: of.Transaction) -> None:
        accounts = tx.map("accounts")
        accounts["ann"] -= 5
        accounts["dan"] += 5
        tx.queue("work").put({"job": "moved"})

    for number in range(3):
        db.run_transaction(move, request_id=f"move-{number}")
    db.map("accounts").increment("hits", 2.5)
    db.map("accounts")["late"] = 1
    del db.map("accounts")["late"]
    queue = db.queue("work", max_attempts=1)
    broken = queue.take(timeout=0)
    assert broken is not None
    broken.nack(error="ValueError: broken")
    for number in range(1, 4):
        queue.put({"job": number}, key="same")
    queue.put({"job": "later"}, delay="36500d")
    clicks = db.stream("clicks", partitions=3)
    for number in range(10):
        clicks.append(number, key=f"u{number % 3}")
    with db.stream("clicks").consumer("group", timeout="1s") as consumer:
        for _ in range(4):
            next(consumer)
        with db.transaction() as tx:
            tx.map("seen")["n"] = 4
            tx.commit(consumer)
    with db.lock("free"):
        pass
    return token


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        space = Path(made) / "space"
        with of.connect(space, shards=2) as db:
            token = fill(db)
            expected = shown(db) | {
                "token": token,
                "digests": [one.state_digest() for one in db._shards],
                "version": of.__version__,
            }
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        with tarfile.open(target / "space.tar.gz", "w:gz") as archive:
            for path in sorted(space.iterdir()):
                archive.add(path, path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
