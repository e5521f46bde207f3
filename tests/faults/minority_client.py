"""A program on the minority side: does what it is told on stdin, and says as JSON what came of it."""

import json
import sys
import time

import onefold as of
from onefold.errors import OnefoldError

TIMEOUT_S = 3.0


def tried(do):
    began = time.monotonic()
    try:
        found = ["ok", do()]
    except OnefoldError as error:
        found = [type(error).__name__, error.definite]
    return [*found, time.monotonic() - began]


def look(db, number):
    m = db.map("m")
    return {
        "prefix": tried(lambda: m.get("before", consistency="prefix")),
        "eventual": tried(lambda: m.get("before", consistency="eventual")),
        "session": tried(lambda: m.get("before", consistency="session")),
        "strong": tried(lambda: m.get("before")),
        # By now what the replica knows is older than the bound, if the read before it was in vain.
        "bounded": tried(lambda: m.get("before", consistency="bounded:0.5s")),
        "write": tried(lambda: m.put(f"number {number}", number) and None),
    }


def main():
    url = sys.argv[1]
    with (
        of.connect(url, timeout=TIMEOUT_S) as local,
        of.connect(url, replicas="remote", timeout=TIMEOUT_S) as remote,
    ):
        local.map("m").put("before", 1)
        remote.session.merge(local.session.token)
        assert remote.map("m").get("before", consistency="session") == 1
        print(json.dumps("ready"), flush=True)
        for number, line in enumerate(sys.stdin):
            db = {"local": local, "remote": remote}[line.strip()]
            print(json.dumps(look(db, number)), flush=True)


main()
