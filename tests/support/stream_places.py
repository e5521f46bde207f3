"""Spaces for streams, and their records in forms that compare."""

import pytest

import onefold as of


@pytest.fixture(params=["memory", "folder", "shards"], name="db")
def streams_db(request, tmp_path):
    if request.param == "memory":
        found = of.connect("memory://")
    else:
        found = of.connect(tmp_path / "space", shards=3 if request.param == "shards" else None)
    with found:
        yield found


def rows(records):
    return [(record.partition, record.offset, record.key, record.value) for record in records]


def by_partition(records):
    found = {}
    for record in records:
        found.setdefault(record.partition, []).append((record.offset, record.key, record.value))
    return found
