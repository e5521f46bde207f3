"""The log engine with the credentials that production gives out: each user can do what it needs, and is told what it may not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.cluster.log_ground import SOON_S, record, until, wait_for
from onefold.cluster.servers import LocalServers
from onefold.errors import SpaceError
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.spaces import SpaceInfo


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("servers"), 3, spaces=["main", "other"])
    yield found
    found.stop(delete=True)


@pytest.fixture(scope="module")
def links(servers: LocalServers) -> Iterator[dict[str, Link]]:
    found = {user: Link(parse_address(servers.url("main", user))) for user in ("app", "node", "admin")}
    yield found
    for link in found.values():
        link.close()


@pytest.fixture(scope="module")
def info(links: dict[str, Link]) -> SpaceInfo:
    return until(lambda: admin.make_space(links["admin"], "main", 2))


def test_the_admin_makes_and_everybody_reads(links: dict[str, Link], info: SpaceInfo) -> None:
    for link in links.values():
        assert admin.read_space(link) == info
    assert admin.list_spaces(links["admin"]) == [info]
    assert admin.leftover_streams(links["admin"]) == []
    assert admin.make_space(links["admin"], "main", 7) == info, "it is there already"


def test_an_app_appends_reads_and_follows(links: dict[str, Link], info: SpaceInfo) -> None:
    one, two = JetStreamLog(links["app"], info, 0), JetStreamLog(links["node"], info, 0)
    try:
        before = two.last
        offset = until(lambda: one.append(record(1)))
        assert two.wait(before, SOON_S) >= offset
        assert two.read(offset)[0].data == record(1)
    finally:
        one.close()
        two.close()


def test_only_nodes_trim(links: dict[str, Link], info: SpaceInfo) -> None:
    logs = {user: JetStreamLog(link, info, 1) for user, link in links.items()}
    try:
        for number in range(1, 6):
            until(lambda number=number: logs["app"].append(record(number)))
        with pytest.raises(SpaceError, match="may not publish") as error:
            logs["app"].trim(3)
        assert error.value.definite and logs["app"].first == 1
        wait_for(lambda: logs["node"].last == 5)
        until(lambda: logs["node"].trim(3))
        assert logs["node"].first == 3
    finally:
        for log in logs.values():
            log.close()


def test_an_app_makes_nothing_and_deletes_nothing(links: dict[str, Link], info: SpaceInfo) -> None:
    for refused in (
        lambda: admin.make_log(links["app"], info, 0),
        lambda: admin.delete_space(links["app"], info),
    ):
        with pytest.raises(SpaceError, match="may not publish"):
            refused()


def test_nobody_forges_deliveries_or_hears_of_another_space(
    links: dict[str, Link], info: SpaceInfo, servers: LocalServers
) -> None:
    log = JetStreamLog(links["app"], info, 0)
    with pytest.raises(SpaceError, match="may not publish"):
        links["app"].request(log.names.tail, record(1), timeout=SOON_S)
    other = Link(parse_address(servers.url("other", "app")))
    try:
        with pytest.raises(SpaceError, match="may not subscribe"):
            other.subscribe(log.names.tail, lambda msg: None)
        with pytest.raises(SpaceError, match="may not publish"):
            JetStreamLog(other, info, 0).append(record(1))
    finally:
        other.close()
    assert admin.find_space(links["admin"], "main") == info


def test_a_wrong_credential(servers: LocalServers, tmp_path: Path) -> None:
    import nkeys

    seed = bytes(nkeys.encode_seed(bytes(range(32)), prefix=nkeys.PREFIX_BYTE_USER))
    strange = tmp_path / "strange.nk"
    strange.write_bytes(seed)
    hosts = servers.url("main").partition("?")[0]
    for url in (f"{hosts}?nkey={strange}", hosts, hosts.replace("nats://", "nats://ann:hunter2@")):
        with pytest.raises(SpaceError, match="wrong credential") as error:
            Link(parse_address(url, {}))
        assert seed.decode() not in str(error.value) and "hunter2" not in str(error.value)
    with pytest.raises(SpaceError, match="no TLS"):
        Link(parse_address(servers.url("main") + "&tls=1", {}))
