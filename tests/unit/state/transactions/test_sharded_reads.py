"""Reads of several shards at once, while others write: all as of one moment."""

import threading

import pytest

import onefold as of

NAMES = [f"n{number}" for number in range(12)]
TOTAL = 100 * len(NAMES)


@pytest.fixture(params=["memory", "sqlite"])
def busy(request, tmp_path):
    """A space whose accounts two threads shift money between, and an event that ends them."""
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    over = threading.Event()
    with of.connect(url, shards=3) as db:
        accounts = db.map("accounts")
        accounts.update(dict.fromkeys(NAMES, 100))

        def shift(at):
            def move(tx):
                a = tx.map("accounts")
                a[NAMES[at % 12]] -= 1
                a[NAMES[(at * 5 + 1) % 12]] += 1

            while not over.is_set():
                try:
                    db.run_transaction(move)
                except of.Conflict:
                    pass
                at += 1

        threads = [threading.Thread(target=shift, args=(at,)) for at in (0, 7)]
        for thread in threads:
            thread.start()
        yield db
        over.set()
        for thread in threads:
            thread.join()


def test_get_many_is_of_one_moment(busy):
    accounts = busy.map("accounts")
    for _ in range(15):
        assert sum(accounts.get_many(NAMES).values()) == TOTAL


def test_a_read_only_transaction_is_of_one_moment_and_gets_through(busy):
    def total(tx):
        return sum(tx.map("accounts").values())

    for _ in range(10):
        assert busy.run_transaction(total, read_only=True) == TOTAL


def test_keys_that_are_not_there_are_of_that_moment_too(busy):
    found = busy.map("accounts").get_many([*NAMES, "nobody", ("no", "body")])
    assert set(found) == set(NAMES)
