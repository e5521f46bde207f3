"""Processes for the kill tests of shared state. All that they do and were answered goes to standard output, one JSON line each.

``work DIR NAME SEED FIRST``: repeats the requests on standard input (one JSON list), then does a seeded mix of operations,
numbered from FIRST on, until it is killed. ``crash``: for each command on standard input, a forked process does some
operations and kills itself at a named place of the commit path, the nth time that it comes by. ``put DIR NAME SECONDS``: when
a line comes in, puts as fast as it can, and says how long each put took and at which offset it is. ``sync FILE NAME SECONDS``:
the same of ``fdatasync`` alone.
"""

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import time

import onefold as of
from onefold.log.sqlite.engine import SqliteLog
from onefold.log.sqlite.file import SqliteFile
from onefold.machine.flock import WriteLock
from onefold.machine.wake import Notifier
from onefold.shard.embedded import EmbeddedShard
from onefold.store.replica import Replica

ACCOUNTS = [("acc", n) if n % 2 else f"acc{n}" for n in range(6)]
REGISTERS = ["r0", "r1", "r2"]
BALANCE = 100


def say(word, **what):
    """Times are of CLOCK_MONOTONIC, which all processes of a machine share. One write, so no line is torn by a kill."""
    os.write(1, json.dumps({"say": word, "t": time.monotonic(), **what}).encode() + b"\n")


def set_up(db):
    db.map("bank").put_many(dict.fromkeys(ACCOUNTS, BALANCE), request_id="set up")
    db.stream("audit", partitions=4).create()


# -- what an operation is, and how it is done: plain data, so that another process can repeat it


def transfer(db, op):
    def move(tx):
        bank = tx.map("bank")
        source, target = ACCOUNTS[op["source"]], ACCOUNTS[op["target"]]
        bank[source] -= op["amount"]
        bank[target] += op["amount"]
        tx.map("moves")[op["id"]] = op["amount"]
        tx.queue("mail").put(op["id"])
        tx.stream("audit").append(op["id"], key=op["id"])
        tx.map("counts").increment("moves")

    db.run_transaction(move, attempts=200, request_id=op["id"])


def balances(db, op):
    def read(tx):
        return [tx.map("bank")[account] for account in ACCOUNTS]

    return db.run_transaction(read, attempts=200, read_only=True)


def put_many_named(db, op):
    version = db.map("named many").put_many({(k, op["id"]): op["id"] for k in range(3)}, request_id=op["id"])
    # Repeated over several shards, it tells of those that remember it: not the same answer, by contract.
    return str(version) if len(db._shards) == 1 else None


def swap(db, op):
    """Compare and set, by version: values are unique, so it is the same as by value."""
    item = db.map("registers").get_item(op["key"])
    say("expects", id=op["id"], value=None if item is None else item.value)
    try:
        if item is None:
            db.map("registers").put(op["key"], op["id"], if_absent=True)
        else:
            db.map("registers").put(op["key"], op["id"], if_version=item.version)
    except of.Conflict:
        return False
    return True


# What is taken is the process's own, so these cannot be repeated by another.
HELD = {}


def take(db, op):
    HELD["message"] = db.queue("work", lease="1h", max_attempts=1 << 40).take(timeout=0)


def acquire(db, op):
    HELD["lock"] = db.lock("lock", ttl="1h")
    HELD["lock"].acquire()


def withdraw(db, op):
    """Wait for a lock that somebody else has, and give up."""
    with contextlib.suppress(of.Timeout):
        db.lock("lock", ttl="1h").acquire(timeout=0.01)


TAKES = {
    "take": take,
    "ack": lambda db, op: HELD["message"].ack(),
    "nack": lambda db, op: HELD["message"].nack(error="refused"),
    "give back": lambda db, op: HELD["message"].give_back(),
    "extend": lambda db, op: HELD["message"].extend("2h"),
    "acquire": acquire,
    "release": lambda db, op: HELD["lock"].release(),
    "withdraw": withdraw,
}
DO = {
    "put": lambda db, op: str(db.map("plain").put(op["id"], op["id"])),
    "delete": lambda db, op: db.map("plain").delete(op["key"]),
    "many": lambda db, op: str(db.map("many").put_many({(k, op["id"]): op["id"] for k in range(3)})),
    "count": lambda db, op: db.map("counts").increment("plain"),
    "named put": lambda db, op: str(db.map("named").put(op["id"], op["id"], request_id=op["id"])),
    "named many": put_many_named,
    "named count": lambda db, op: db.map("counts").increment("named", request_id=op["id"]),
    "named message": lambda db, op: db.queue("named").put(op["id"], request_id=op["id"]),
    "named record": lambda db, op: str(
        db.stream("named").append(op["id"], key=op["id"], request_id=op["id"])
    ),
    "transfer": transfer,
    "balances": balances,
    "write": lambda db, op: str(db.map("registers").put(op["key"], op["id"])),
    "read": lambda db, op: db.map("registers").get(op["key"]),
    "cas": swap,
}
REPEATABLE = ("named put", "named many", "named count", "named message", "named record", "transfer")
WEIGHTS = {"transfer": 4, "balances": 2, "read": 2, "cas": 2}


def do(db, op):
    """Do it and say so; a definite error is an answer too, of an indefinite one nothing is known."""
    say("try", **op)
    try:
        result = (DO.get(op["op"]) or TAKES[op["op"]])(db, op)
    except of.OnefoldError as error:
        say("failed" if error.definite else "unknown", id=op["id"], error=f"{type(error).__name__}: {error}")
    else:
        say("ack", id=op["id"], result=result)


def choose(rng, name, number, own):
    kind = rng.choices(list(DO), [WEIGHTS.get(kind, 1) for kind in DO])[0]
    op = {"id": f"{name}-{number}", "op": kind}
    if kind == "put":
        own.append(op["id"])
    elif kind == "delete":
        if not own:
            return {**op, "op": "count"}
        op["key"] = own.pop(rng.randrange(len(own)))
    elif kind in ("write", "read", "cas"):
        op["key"] = rng.choice(REGISTERS)
    elif kind == "transfer":
        op["source"], op["target"] = rng.sample(range(len(ACCOUNTS)), 2)
        op["amount"] = rng.randint(1, 5)
    return op


def work(directory, name, seed, first):
    faulthandler.register(signal.SIGUSR1)
    repeat = json.loads(sys.stdin.readline())
    db = of.connect(directory)
    set_up(db)
    for op in repeat:
        do(db, op)
    say("ready")
    rng, number, own = random.Random(f"{seed} {name} {first}"), int(first), []
    while True:
        number += 1
        do(db, choose(rng, name, number, own))


# -- dying on the line before and on the line after


def before(function):
    def wrapper(arm, *args, **kwargs):
        arm()
        return function(*args, **kwargs)

    return wrapper


def after(function):
    def wrapper(arm, *args, **kwargs):
        result = function(*args, **kwargs)
        arm()
        return result

    return wrapper


PLACES = {
    "before the lock": (WriteLock, "acquire", before),
    "after the lock": (WriteLock, "acquire", after),
    "before the log": (SqliteLog, "append_in", before),
    "after the log": (SqliteLog, "append_in", after),
    "before the fold": (Replica, "apply", before),
    "before COMMIT": (Replica, "apply", after),
    "after COMMIT": (WriteLock, "release", before),
    "after the unlock": (WriteLock, "release", after),
    "before the tip": (SqliteFile, "note_tip", before),
    "after the tip": (SqliteFile, "note_tip", after),
    "before the notifier": (Notifier, "notify", before),
    "after the notifier": (Notifier, "notify", after),
    "before the answer": (EmbeddedShard, "submit", after),
}
"""In the order in which a commit comes by them."""
COMMITTED_FROM = list(PLACES).index("after COMMIT")


def die_at(place, times):
    """Kill this process when it comes by that place for the nth time from now on."""
    owner, name, wrap = PLACES[place]
    left = [times]

    def arm():
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    wrapped = wrap(getattr(owner, name))
    setattr(owner, name, lambda *args, **kwargs: wrapped(arm, *args, **kwargs))


def crash():
    """Forks before anything is open, so each process starts within a few milliseconds."""
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if pid == 0:
            db = of.connect(command["directory"])
            DO["balances"](db, None)  # what is imported late is imported
            for op in command["first"]:
                do(db, op)
            die_at(command["place"], command["times"])
            for op in command["ops"]:
                do(db, op)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        say("ended", signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None, status=status)


# -- how long a write takes


def timed(step, seconds):
    took, results, begin = [], [], time.monotonic()
    end = begin + seconds
    while begin < end:
        results.append(step(len(took)))
        now = time.monotonic()
        took.append(now - begin)
        begin = now
    return took, results


def put_step(db, name):
    m = db.map("m")
    return lambda n: m.put((name, n % 100), n).in_shard(0)[0]


def when_told(step, seconds):
    step(0)
    say("ready")
    sys.stdin.readline()
    took, results = timed(step, float(seconds))
    say("done", took=took, offsets=results)


def put(directory, name, seconds):
    with of.connect(directory) as db:
        when_told(put_step(db, name), seconds)


def sync(path, _, seconds):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)

    def step(n):
        os.pwrite(fd, b"x" * 4096, n % 100 * 4096)
        os.fdatasync(fd)

    when_told(step, seconds)


if __name__ == "__main__":
    {"work": work, "crash": crash, "put": put, "sync": sync}[sys.argv[1]](*sys.argv[2:])
