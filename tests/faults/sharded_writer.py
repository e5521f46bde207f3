"""A program for the kill tests: transfers between accounts of a space of several shards, until it is killed.

Each transfer marks the two shards that it writes; ``try`` and ``ack`` lines say which were begun and acknowledged.
"""

import os
import random
import sys
import threading

import onefold as of
from onefold.errors import Conflict, Unavailable
from onefold.state.core.consistency import STRONG
from onefold.state.encoding import values
from onefold.state.encoding.keys import encode_key
from onefold.state.fold import rows
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Read, Span
from onefold.state.transactions.over_shards import ShardPart, commit_over_shards, snapshot_read

ACCOUNTS = [encode_key(f"a{number}") for number in range(12)]
BALANCE = 100
MAP, MARKS = "accounts", "marks"


def open_accounts(client):
    for key in ACCOUNTS:
        client.commit(client.shard_of(key), (Put(MAP, ((key, values.encode_value(BALANCE)),)),))


def read_account(client, key):
    with client.view(client.shard_of(key), STRONG) as view:
        row = rows.read_row(view.get(rows.map_table(MAP), key))
    return values.decode_value(row.value), Read(MAP, key, row.offset, row.index)


def transfer(client, source, target, amount, mark, request_id=None):
    parts = {}
    for key, change in ((source, -amount), (target, amount)):
        number, read = read_account(client, key)
        puts = (
            Put(MAP, ((key, values.encode_value(number + change)),)),
            Put(MARKS, ((encode_key(mark), b"\xc3"),)),
        )
        parts[client.shard_of(key)] = ShardPart((read,), (), puts)
    return commit_over_shards(client, parts, request_id)


def read_all(client):
    def read():
        found, parts = {}, {}
        for shard in range(client.shard_count):
            with client.view(shard, STRONG) as view:
                pairs = list(view.scan(rows.map_table(MAP)))
                parts[shard] = ShardPart(spans=(Span(MAP, b"", b"\xff", view.offset),))
            found |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
        return found, parts

    def read_at(offsets):
        found = {}
        for shard, offset in offsets.items():
            with client.shards[shard].view(at=offset) as view:
                pairs = list(view.scan(rows.map_table(MAP)))
            found |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
        return found

    return snapshot_read(client, read, read_at)


def random_pair(client, rng):
    while True:
        source, target = rng.sample(ACCOUNTS, 2)
        if client.shard_of(source) != client.shard_of(target):
            return source, target


def main(directory, name):
    client = of.connect(directory)._state

    def work(thread):
        rng, number = random.Random(f"{name}-{thread}"), 0
        while True:
            number += 1
            mark = f"{name}-{thread}-{number}"
            request_id = mark if rng.random() < 0.3 else None
            os.write(1, f"try {mark} {int(request_id is not None)}\n".encode())
            try:
                transfer(client, *random_pair(client, rng), rng.randrange(1, 9), mark, request_id)
            except (Conflict, Unavailable):
                os.write(1, f"no {mark}\n".encode())
            else:
                os.write(1, f"ack {mark}\n".encode())

    for thread in range(2):
        threading.Thread(target=work, args=(thread,)).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
