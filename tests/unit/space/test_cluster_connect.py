"""Connecting to a cluster, as far as it needs no server: URLs, places, arguments, and what is said when nobody is there."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

import onefold as of
from onefold import config
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.space import open_cluster as cluster
from onefold.space.open_shard import open_shard

INFO = SpaceInfo("shop", "i_1", 2, 3)


@pytest.fixture
def nobody(monkeypatch):
    """A port where nobody listens."""
    monkeypatch.setattr(config, "CONNECT_TIMEOUT_S", 2.0)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_replicas_live_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("ONEFOLD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cluster.replica_directory(INFO, 1) == Path("/home/somebody/.cache/onefold/shop-i_1/1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cluster.replica_directory(INFO, 0) == tmp_path / "xdg/onefold/shop-i_1/0"
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "own"))
    assert cluster.replica_directory(INFO, 0) == tmp_path / "own/shop-i_1/0"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nats://h", "the name of the space is missing"),
        ("nats:///space", "host:port"),
        ("nats://h:99999/space", "port"),
        ("tls://h:4222/a space", "name of a space"),
        ("nats://me:hush@h:x/space", "port"),
        ("nats://h/space?token=1", "options are"),
    ],
)
def test_urls_that_name_no_space(url, problem):
    with pytest.raises(of.InvalidArgument, match=problem) as caught:
        of.connect(url)
    assert "hush" not in str(caught.value)


def test_unknown_engines_are_told_without_what_may_be_a_secret():
    with pytest.raises(of.InvalidArgument, match="nats://host:port/SPACE") as caught:
        of.connect("redis://me:hush@h/0")
    assert "hush" not in str(caught.value)


def test_arguments_of_a_cluster_are_checked_before_anybody_is_asked(tmp_path):
    with pytest.raises(of.InvalidArgument, match="replicas must be 'local' or 'remote'"):
        of.connect("nats://h/s", replicas="both")
    with pytest.raises(of.InvalidArgument, match="region must be text"):
        of.connect("nats://h/s", region=5)
    with pytest.raises(of.InvalidArgument, match="shards"):
        of.connect("nats://h/s", shards=0)
    with of.connect(tmp_path / "space", replicas="local", region="eu") as db:
        db.map("m")["k"] = 1  # the same program runs without a cluster
        assert db.map("m")["k"] == 1


def test_only_a_cluster_has_nodes_to_read_from(tmp_path):
    for url, place in ((tmp_path / "space", "in a folder"), ("memory://", "in memory")):
        with pytest.raises(of.InvalidArgument, match=f"replicas='remote' .* {place}: leave replicas out"):
            of.connect(url, replicas="remote")
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize(
    "url", ["{}/\ud800", "sqlite://{}/\ud800", "memory://\ud800", "nats://me:hush@h/\ud800"]
)
def test_a_url_that_has_no_utf8_is_refused(tmp_path, url):
    with pytest.raises(of.InvalidArgument, match="url must be text that UTF-8 can encode") as caught:
        of.connect(url.format(tmp_path))
    assert "hush" not in str(caught.value)
    str(caught.value).encode()
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_cannot_be_reached_is_unavailable_and_no_secret_is_told(nobody):
    url = f"nats://me:hush@127.0.0.1:{nobody}/space"
    for options in ({}, {"replicas": "remote"}, {"create": False}, {"read_only": True}):
        with pytest.raises(of.Unavailable) as caught:
            of.connect(url, **options)
        assert str(nobody) in str(caught.value) and "hush" not in str(caught.value)
        assert caught.value.definite


def test_what_needs_a_folder_says_so():
    with pytest.raises(of.SpaceError, match="a space on a cluster"):
        open_shard("nats://h/s", [])
