"""Databases for transactions: in memory, in a file and over several shards."""

import pytest

import onefold as of


def opened(engine, folder):
    if engine == "memory":
        return of.connect("memory://")
    return of.connect(folder / "space", shards=1 if engine == "sqlite" else 3)


@pytest.fixture(params=["memory", "sqlite", "shards"], name="db")
def transaction_db(request, tmp_path):
    with opened(request.param, tmp_path) as database:
        yield database


@pytest.fixture(params=["memory", "sqlite"], name="one_shard")
def db_of_one_shard(request, tmp_path):
    with opened(request.param, tmp_path) as database:
        yield database


@pytest.fixture(name="memory")
def db_in_memory():
    with of.connect("memory://") as database:
        yield database
