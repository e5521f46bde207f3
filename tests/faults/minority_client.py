"""A program on the minority side: does what it is told on stdin, and says as JSON what came of it."""

import json
import sys
import time

import onefold as of
from onefold.errors import OnefoldError
from onefold.fold.nodes.state import read_nodes

TIMEOUT_S = 3.0
PATIENT_S = 60.0
"""For what has to succeed: a busy machine answers late."""


def tried(do):
    began = time.monotonic()
    try:
        found = ["ok", do()]
    except OnefoldError as error:
        found = [type(error).__name__, error.definite]
    return [*found, time.monotonic() - began]


def look(db, patient, number):
    m, weak = db.map("m"), patient.map("m")
    return {
        "prefix": tried(lambda: weak.get("before", consistency="prefix")),
        "eventual": tried(lambda: weak.get("before", consistency="eventual")),
        "session": tried(lambda: weak.get("before", consistency="session")),
        "strong": tried(lambda: m.get("before")),
        # By now what the replica knows is older than the bound, if the read before it was in vain.
        "bounded": tried(lambda: m.get("before", consistency="bounded:0.5s")),
        "write": tried(lambda: m.put(f"number {number}", number) and None),
    }


def settle(db):
    """Wait until every node has applied, and said so, all that any connection of this program was shown."""
    db.map("m").get("before")  # after a barrier the replica has all that was answered before
    space, end = db._shards[0], time.monotonic() + PATIENT_S
    target = space.applied
    while True:
        with space.view() as view:
            members = [node for node in read_nodes(view) if node.member]
        if all(dict(node.state.hosted).get(0, 0) >= target for node in members):
            return "settled"
        assert time.monotonic() < end, f"a node does not come to offset {target}"
        space.wait(space.applied, 1)


def main():
    url = sys.argv[1]
    with (
        of.connect(url, timeout=TIMEOUT_S) as local,
        of.connect(url, replicas="remote", timeout=TIMEOUT_S) as remote,
        of.connect(url, timeout=PATIENT_S) as patient_local,
        of.connect(url, replicas="remote", timeout=PATIENT_S) as patient_remote,
    ):
        patient_local.map("m").put("before", 1)
        for db in (patient_local, patient_remote, remote, local):
            db.session.merge(patient_local.session.token)
        for db in (patient_local, patient_remote):  # what lags is waited for
            assert db.map("m").get("before", consistency="session") == 1
        print(json.dumps("ready"), flush=True)
        for number, line in enumerate(sys.stdin):
            if line.strip() == "settle":
                print(json.dumps(settle(patient_local)), flush=True)
                continue
            db, patient = {"local": (local, patient_local), "remote": (remote, patient_remote)}[line.strip()]
            print(json.dumps(look(db, patient, number)), flush=True)


main()
