"""A writer process for the kill tests: says what it tries and what was acknowledged, and goes on until it is killed."""

import os
import sys
import threading

from kit.ledger import Ledger, entry
from onefold.space.open_shard import open_shard


def main(directory, name):
    space = open_shard(directory, [Ledger()])

    def write(thread):
        number = 0
        while True:
            number += 1
            token = f"{name}-{thread}-{number}"
            os.write(1, f"try {token}\n".encode())
            outcome = space.submit([entry(token.encode(), request_id=token)])[0]
            os.write(1, f"ack {token} {outcome.decode()}\n".encode())

    for thread in range(3):
        threading.Thread(target=write, args=(thread,)).start()


main(sys.argv[1], sys.argv[2])
