"""A process in one region of a folder, which does what it reads and says what came of it, one line of JSON for each.

``region_worker.py FOLDER REGION [DIE]``: with DIE it kills itself when it comes to that place, ``FUNCTION:before`` or ``:after``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from onefold.regions import folder as opening
from onefold.regions import making
from support.region_folder import Folder, get, known, put

PLACES = (
    "making.reach_version",
    "making.decide",
    "making.make",
    "making.open_shards",
    "making.first_ops",
    "making.sync_tree",
    "making._build",
    "making._note",
    "opening.wake_others",
    "opening.open_shards",
    "opening.apply_decisions",
)


def die_at(place: str) -> None:
    function, _, when = place.partition(":")
    owner, _, name = function.partition(".")
    module: Any = {"making": making, "opening": opening}[owner]
    real = getattr(module, name)

    def killed(*args: Any, **options: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, killed)


def main(path: str, name: str, *die: str) -> None:
    for place in die:
        die_at(place)
    folder = Folder(path)  # type: ignore[arg-type]
    region = folder.open(name)

    def said(command: str, *args: Any) -> Any:
        match command:
            case "put":
                return put(region, *args).seq
            case "get":
                return get(region, *args)
            case "known":
                return [
                    [known(region, shard).have(), known(region, shard).content.hex()]
                    for shard in range(len(region.shards))
                ]
            case "pulls":
                return sorted(region._exchange._pullers)
            case "links":
                assert region.peers is not None
                return [link.state for link in region.peers.links()]
            case "number":
                return region.number
        raise AssertionError(command)

    print(json.dumps(region.number), flush=True)
    for line in sys.stdin:
        region.look()
        print(json.dumps(said(*json.loads(line))), flush=True)
    folder.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
