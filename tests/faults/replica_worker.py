"""Processes with a replica, for the tests that kill and stop them. Each builds the same log in its own memory.

``crash``: for each command on standard input a forked process opens a replica, applies the log, and kills itself at the nth
line of the replica's code that it comes by, on any thread. ``hold DIR COUNT AT``: applies, and waits for a line in the middle of
the transaction, after the record at offset AT; then goes on, and answers each further line with its digest. ``decide DIR``: holds
the lock under which copies are chosen, until a line comes.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from kit.ledger import Ledger, entry
from onefold.codec import Record, encode_record
from onefold.env import SYSTEM, SeededEnv
from onefold.fold import system
from onefold.ids import client_id
from onefold.log.memory import MemoryLog
from onefold.log.sqlite import pooled_file
from onefold.machine import flock, wake
from onefold.shard.replica import copies as replica_copies
from onefold.shard.replica import copy as replica_copy
from onefold.shard.replica import file as replica_file
from onefold.shard.replica import holder as replica_holder
from onefold.shard.replica import shard as replica_space
from onefold.shard.replica.copies import Copies
from onefold.shard.replica.shard import LocalReplica
from onefold.store.replica import Replica

OF_REPLICAS = {
    module.__file__
    for module in (
        replica_copies,
        replica_copy,
        replica_file,
        replica_holder,
        replica_space,
        flock,
        pooled_file,
        wake,
    )
}
DONE_S = 60


def build_log(count):
    """The same records, incarnation and stamps in every process."""
    env = SeededEnv(1)
    log = MemoryLog(env=env)
    client = client_id(0, env)
    for number in range(1, count + 1):
        ops = (
            (system.system_op(system.Register(("ledger",))),)
            if number == 1
            else (entry(b"t%d" % (number % 40), request_id=f"r{number}"), entry(b"u%d" % number))
        )
        log.append(encode_record(Record(client, number, env.wall_ms() + number, ops)))
    return log


def open_replica(directory, log):
    return LocalReplica(log, [Ledger()], SYSTEM, directory=Path(directory), url="nats://here/space")


def die_at_line(count):
    """Kill this process at the nth line of the replica's code from now on. Gives what counts them."""
    left = [count]

    def lines(frame, event, _):
        if event == "line":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return lines

    def trace(frame, event, _):
        return lines if frame.f_code.co_filename in OF_REPLICAS else None

    threading.settrace(trace)
    sys.settrace(trace)
    return left


def crash():
    """Forks before anything is open, so each process starts within a few milliseconds."""
    for line in sys.stdin:
        command = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            log = build_log(command["count"])
            die_at_line(command["line"])
            space = open_replica(command["directory"], log)
            assert space.reach(command["count"], DONE_S)
            space.close()
            os.write(writer, b"done")
            os._exit(0)
        os.close(writer)
        said = os.read(reader, 10)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"done": said == b"done", "killed": killed, "status": status}), flush=True)


def hold(directory, count, at):
    apply = Replica.apply

    def held(self, item, *args):
        applied = apply(self, item, *args)
        if item.offset == int(at):
            print("held", flush=True)
            sys.stdin.readline()
        return applied

    Replica.apply = held
    space = open_replica(directory, build_log(int(count)))
    assert space.reach(int(count), DONE_S)
    for _ in sys.stdin:
        print(json.dumps({"digest": space.state_digest(), "copy": space._holder.copy.path.name}), flush=True)


def decide(directory):
    with Copies(Path(directory), SYSTEM).deciding(DONE_S) as decided:
        assert decided
        print("held", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    {"crash": crash, "hold": hold, "decide": decide}[sys.argv[1]](*sys.argv[2:])
