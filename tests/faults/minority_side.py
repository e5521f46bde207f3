"""Cuts a server, its node and a client off from the others and prints what the client meets. In a process of its own: it moves
into the network of its hosts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from kit.cluster.stand import Stand

WELL_S = 120.0


def well(ask):
    """What the client meets once strong reads succeed: a busy machine, or one that was cut off, may need a while."""
    end = time.monotonic() + WELL_S
    while True:
        found = {which: ask(which) for which in ("local", "remote")}
        if time.monotonic() > end or all(each["strong"][0] == "ok" for each in found.values()):
            return found


def main():
    with Stand(Path(sys.argv[1]), client_hosts=1) as stand:
        stand.start()
        command = [
            *stand.hosts["client1"].prefix,
            sys.executable,
            "tests/faults/minority_client.py",
            stand.url(),
        ]
        environment = os.environ | {"ONEFOLD_CACHE": str(stand.directory / "cache")}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as client:

            def ask(which):
                client.stdin.write(which + "\n")
                client.stdin.flush()
                return json.loads(client.stdout.readline())

            found = {}
            assert json.loads(client.stdout.readline()) == "ready"
            found["before"] = well(ask)
            # Another node may have answered, and the one of that side lag behind: what it is not sent in time it cannot tell.
            assert ask("settle") == "settled"
            stand.hosts.split(["server1", "client1"], ["server2", "server3"])
            found["cut"] = {which: ask(which) for which in ("local", "remote")}
            stand.hosts.heal()
            found["healed"] = well(ask)
            client.stdin.close()
            client.wait(60)
        print(json.dumps(found))


main()
