"""Blobs that machines share, over each kind of backend: a directory, an object store over HTTP, JetStream on a real server."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onefold import config
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.compute.blobs.backends import DirectoryBackend, check_place, open_backend
from onefold.compute.blobs.jetstream import JetStreamBackend
from onefold.compute.blobs.shared import Backend, SharedBlobs
from onefold.compute.blobs.store import BlobMissing, BlobsUnavailable, blob_name
from onefold.errors import InvalidArgument
from onefold.log.jetstream import names
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link

KINDS = ["dir", "s3", "jetstream"]


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    import s3fs

    s3fs.S3FileSystem(
        key="k", secret="s", endpoint_url=endpoint, client_kwargs={"region_name": "eu-central-1"}
    ).mkdir("blobs")
    yield endpoint
    running.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("server"), 1, spaces=["main"])
    set_up_space(found.url("main", "admin"), replicas=1)
    yield found
    found.stop(delete=True)


Opener = Callable[[], Backend]


@pytest.fixture
def opener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opener]:
    """Opens the backend of one kind again and again, as different machines do. Nodes' credentials, who may delete."""
    opened: list[Backend] = []
    links: list[Link] = []
    kind = request.param

    def open_it() -> Backend:
        backend: Backend
        if kind == "dir":
            backend = open_backend(f"dir:{tmp_path / 'shared'}")
        elif kind == "s3":
            endpoint = request.getfixturevalue("object_store")
            backend = open_backend(
                f"s3://blobs/{tmp_path.name}?endpoint_url={endpoint}&region_name=eu-central-1"
            )
        else:
            links.append(Link(parse_address(request.getfixturevalue("server").url("main", "node"))))
            backend = JetStreamBackend(links[-1], "main")
        opened.append(backend)
        return backend

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    if kind == "dir":
        (tmp_path / "shared").mkdir()
    yield open_it
    for backend in opened:
        backend.close()
    for link in links:
        link.close()


every_kind = pytest.mark.parametrize("opener", KINDS, indirect=True)


def machine(tmp_path: Path, name: str, backend: Backend, **options: Any) -> SharedBlobs:
    return SharedBlobs(tmp_path / name, backend, **options)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}/{seed}").randbytes(size)


@pytest.mark.moving(3)
@every_kind
@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, config.BLOB_CHUNK_BYTES, 3_000_001])
def test_what_one_machine_stores_another_has(opener: Opener, tmp_path: Path, size: int) -> None:
    one, two = machine(tmp_path, "one", opener()), machine(tmp_path, "two", opener())
    data = content(size)
    name = one.put(data)
    assert name == blob_name(data) == one.put(data)  # again: nothing changes
    assert two.exists(name)
    assert two.get(name) == data
    assert two.open_path(name).read_bytes() == data
    assert two.path(name).exists()  # kept for the next time
    assert two.missing([name, blob_name(b"nothing")]) == {blob_name(b"nothing")}
    assert list((tmp_path / "two" / "tmp").iterdir()) == []


@every_kind
def test_files_and_scratch(opener: Opener, tmp_path: Path) -> None:
    one, two = machine(tmp_path, "one", opener()), machine(tmp_path, "two", opener())
    path = one.temporary()
    path.write_bytes(content(100_000))
    name = one.put_file(path)
    assert not path.exists() and two.get(name) == content(100_000)
    mine = one.scratch.put(content(50_000))
    assert one.get(mine) == content(50_000)
    assert not two.backend.exists(mine)  # nobody else's
    assert one.share(mine) == mine
    assert two.get(mine) == content(50_000)


@every_kind
def test_all_blobs_of_the_place_are_listed(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onefold.compute.blobs.jetstream._SUBJECTS_PAGE", 2)
    one, two = machine(tmp_path, "one", opener()), machine(tmp_path, "two", opener())
    data = [content(size, 9) for size in (5, 20_000, config.BLOB_CHUNK_BYTES + 1)]
    before = time.time()
    blobs = [one.put(each) for each in data]
    one.hide(blobs[0])
    found = list(two.everywhere())
    assert set(blobs[1:]) <= set(found) and blobs[0] not in found and len(found) == len(set(found))
    for name, each in zip(blobs[1:], data[1:], strict=True):
        assert two.begins(name, 100) == each[:100]
        stored_at = two.stored_at(name)
        assert stored_at is not None and before - 3 < stored_at < time.time() + 3
    absent = blob_name(b"nothing")
    assert (two.stored_at(absent), two.begins(absent, 9)) == (None, b"")
    assert not list(two.names()), "nothing was fetched for it"


@every_kind
def test_a_blob_that_was_deleted_is_missing_everywhere(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "BLOB_ABSENT_S", 0.1)
    one, two = machine(tmp_path, "one", opener()), machine(tmp_path, "two", opener())
    name = one.put(content(700_000))
    one.delete(name)
    one.delete(name)
    for store in (one, two):
        assert not store.exists(name)
        with pytest.raises(BlobMissing, match="has to run again"):
            store.open_path(name)
        with pytest.raises(BlobMissing):
            store.get(name)
    # A machine that still has a copy stores it again when it makes it again.
    assert two.put(content(700_000)) == name
    assert two.backend.exists(name)
    one.backend.delete(name)
    assert two.exists(name) and two.put(content(700_000)) == name and one.get(name) == content(700_000)


@every_kind
def test_many_are_fetched_at_a_time(opener: Opener, tmp_path: Path) -> None:
    one, two = machine(tmp_path, "one", opener()), machine(tmp_path, "two", opener())
    stored = [one.put(content(30_000, seed)) for seed in range(20)]
    two.prefetch([*stored, blob_name(b"nothing")])
    assert all(two.path(name).exists() for name in stored)
    three = machine(tmp_path, "three", opener())
    threads = [threading.Thread(target=three.get, args=(stored[0],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert three.get(stored[0]) == content(30_000, 0)


@every_kind
def test_what_is_not_what_its_name_says_is_missing(opener: Opener, tmp_path: Path) -> None:
    backend = opener()
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"x" * 30_000)
    name = blob_name(b"y" * 30_000)
    backend.put(name, wrong)
    store = machine(tmp_path, "one", opener())
    with pytest.raises(BlobMissing):
        store.get(name)
    assert not store.path(name).exists() and not store.path(blob_name(b"x" * 30_000)).exists()


# -- the cache


def test_the_cache_is_bounded_and_keeps_what_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    backend = DirectoryBackend(tmp_path / "shared")
    monkeypatch.setattr(config, "BLOB_CACHE_KEEP_S", 100.0)
    store = machine(tmp_path, "cache", backend, cache_bytes_max=1_000_000)
    stored = [store.put(content(100_000, seed)) for seed in range(15)]
    assert store.tidy() == 0  # more than the limit, but all of it was just used
    old = time.time() - 1000
    for number, name in enumerate(stored):
        os.utime(store.path(name), (old + number, old + number))
    store.open_path(stored[0])  # in use again
    freed = store.tidy()
    assert freed == 700_000
    here = [name for name in stored if store.path(name).exists()]
    assert here == [stored[0], *stored[8:]]  # those that were used longest ago went
    assert all(store.get(name) == content(100_000, seed) for seed, name in enumerate(stored))  # fetched again


def test_what_comes_in_tidies_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(config, "BLOB_CACHE_KEEP_S", -1.0)
    store = machine(tmp_path, "cache", DirectoryBackend(tmp_path / "shared"), cache_bytes_max=1_000_000)
    for seed in range(100):
        store.put(content(100_000, seed))
        assert sum(store.path(name).stat().st_size for name in store.names()) <= 1_300_000


# -- a store that does not answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BLOB_RETRY_S", 0.5)
    monkeypatch.setattr(config, "ENGINE_REQUEST_TIMEOUT_S", 0.3)
    monkeypatch.setattr(config, "APPEND_ACK_TIMEOUT_S", 0.3)


def test_a_share_that_is_not_mounted_has_lost_nothing(tmp_path: Path) -> None:
    store = machine(tmp_path, "one", DirectoryBackend(tmp_path / "absent"))
    for do in (store.exists, store.get):
        with pytest.raises(BlobsUnavailable, match=r"is not there; mount it"):
            do(blob_name(b"x"))


def test_an_object_store_that_does_not_answer(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # it has pauses of its own
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # nobody else gets it meanwhile, and nobody listens
        store = machine(
            tmp_path, "one", open_backend(f"s3://b/p?endpoint_url=http://127.0.0.1:{port}&region_name=r")
        )
        with pytest.raises(BlobsUnavailable, match="check endpoint, bucket and credentials") as caught:
            store.put(b"x" * 100)
    assert "topsecret" not in str(caught.value) and caught.value.definite


def test_a_bucket_that_is_not_there_says_so(
    tmp_path: Path, object_store: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    place = f"s3://nosuchbucket/p?endpoint_url={object_store}&region_name=eu-central-1"
    with pytest.raises(BlobsUnavailable, match="bucket"):
        machine(tmp_path, "one", open_backend(place)).put(b"x" * 100)


def test_servers_that_hang_and_come_back(
    tmp_path: Path, server: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(parse_address(server.url("main", "node")))
    store = machine(tmp_path, "one", JetStreamBackend(link, "main"))
    other = machine(tmp_path, "two", JetStreamBackend(link, "main"))
    name = store.put(content(2_000_000, 7))
    try:
        with monkeypatch.context() as quick:
            quick.setattr(config, "BLOB_RETRY_S", 0.5)
            quick.setattr(config, "ENGINE_REQUEST_TIMEOUT_S", 0.3)
            quick.setattr(config, "APPEND_ACK_TIMEOUT_S", 0.3)
            server.stop_server(0)
            with pytest.raises(BlobsUnavailable, match="onefold doctor"):
                store.put(content(2_000_000, 8))
            with pytest.raises(BlobsUnavailable):
                other.get(name)
        stored: list[str] = []
        waiting = threading.Thread(target=lambda: stored.append(store.put(content(2_000_000, 8))))
        waiting.start()  # patient enough now
        server.cont(0)
        waiting.join(60)
        assert stored == [blob_name(content(2_000_000, 8))]
        assert other.get(stored[0]) == content(2_000_000, 8)
        assert other.get(name) == content(2_000_000, 7)
    finally:
        server.cont(0)
        link.close()


def test_programs_may_store_and_not_delete(tmp_path: Path, server: LocalServers, impatient: None) -> None:
    link = Link(parse_address(server.url("main", "app")))
    store = machine(tmp_path, "one", JetStreamBackend(link, "main"))
    name = store.put(content(40_000, 9))
    with pytest.raises(BlobsUnavailable):
        store.delete(name)
    assert store.backend.exists(name)
    link.close()


def test_a_head_without_its_chunks_is_missing(
    tmp_path: Path, server: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "BLOB_ABSENT_S", 0.1)
    link = Link(parse_address(server.url("main", "node")))
    store = machine(tmp_path, "one", JetStreamBackend(link, "main"))
    name = store.put(content(1_500_000, 10))
    gone = b'{"filter":"$O.%s.C.%s.1"}' % (names.blobs_bucket("main").encode(), name.encode())
    link.request(names.STREAM_PURGE + names.blobs_stream("main"), gone, timeout=5)
    with pytest.raises(BlobMissing):
        machine(tmp_path, "two", JetStreamBackend(link, "main")).get(name)
    link.close()


# -- where blobs are kept


@pytest.mark.parametrize(
    "place", ["jetstream", "dir:/a/b", "s3://bucket/prefix", "s3://b?endpoint_url=http://h:1"]
)
def test_places(place: str) -> None:
    assert check_place(place) == place


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "cannot be kept"),
        ("dir:relative", "from the root"),
        ("/a/b", "cannot be kept"),
        ("memory://x", "cannot be kept"),
        ("s3://key:secret@bucket/p", "do not belong"),
        ("s3://bucket/p?key=abc", "unknown option 'key'"),
    ],
)
def test_what_names_no_place(place: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        check_place(place)
    assert "secret" not in str(caught.value)


@every_kind
@pytest.mark.parametrize("size", [10, 16 * 1024 + 1])
@pytest.mark.moving(2)
def test_a_hidden_blob_comes_back_or_goes(
    opener: Opener, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "BLOB_ABSENT_S", 0.2)
    sweeper = machine(tmp_path, "sweeper", opener())
    data = content(size)
    name = sweeper.put(data)
    ticket = sweeper.hide(name)
    assert sweeper.hidden() == {(name, ticket)}
    assert sweeper.unhide(name, ticket)  # it was named again
    assert sweeper.hidden() == set()
    assert machine(tmp_path, "a", opener()).get(name) == data
    ticket = sweeper.hide(name)
    writer = machine(tmp_path, "writer", opener())
    assert writer.put(data) == name  # again, since it is hidden
    assert sweeper.hidden() == {(name, ticket)}
    sweeper.drop(name, ticket)
    assert sweeper.hidden() == set()
    assert writer.keeps(name) and machine(tmp_path, "b", opener()).get(name) == data
    sweeper.drop(name, sweeper.hide(name))
    assert not sweeper.backend.exists(name)
    with pytest.raises(BlobMissing):
        machine(tmp_path, "c", opener()).get(name)
    assert writer.keeps(name)  # it has a copy, and stores it again
    assert machine(tmp_path, "d", opener()).get(name) == data
