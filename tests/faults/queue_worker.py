"""A process for the kill tests of queues and locks: says what it does, line by line, until it is killed.

``put DIR NAME``: puts numbered messages. ``take DIR NAME``: takes and acknowledges. ``lock DIR TTL``: takes the lock, says
so, and leaves the block when a line comes in. ``poison DIR ATTEMPTS``: takes a message and dies of it.
"""

import os
import sys
import threading

import onefold as of


def say(*words):
    os.write(1, " ".join(str(word) for word in words).encode() + b"\n")


def put(db, name):
    q = db.queue("work")

    def go_on(thread):
        number = 0
        while True:
            number += 1
            value = f"{name}-{thread}-{number}"
            say("try", value)
            q.put(
                value,
                key=None if number % 3 else f"{name}-{thread}",
                delay=0.01 if number % 10 == 7 else None,
            )
            say("put", value)

    run(go_on)


def take(db, name):
    q = db.queue("work", lease="60s", max_attempts=1_000_000)

    def go_on(_):
        while True:
            with q.get() as msg:
                say("got", msg.value, msg.attempt)
                say("done", msg.value)
            say("ack", msg.value)

    run(go_on)


def lock(db, name):
    try:
        with db.lock("nightly", ttl=name) as held:
            say("held", held.fencing_token)
            sys.stdin.readline()
        say("left")
    except of.Conflict:
        say("conflict", held.held)


def poison(db, name):
    with db.queue("work", max_attempts=int(name)).get() as msg:
        say("got", msg.value, msg.attempt)
        os.kill(os.getpid(), 9)


def run(work):
    for thread in range(2):
        threading.Thread(target=work, args=(thread,)).start()


if __name__ == "__main__":
    {"put": put, "take": take, "lock": lock, "poison": poison}[sys.argv[1]](
        of.connect(sys.argv[2]), sys.argv[3]
    )
