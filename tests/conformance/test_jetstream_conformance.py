"""The JetStream engine keeps the log contract, on a real cluster of three servers."""

import itertools
import threading

import pytest

from onefold.cluster.servers import LocalServers
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.testing import check_log

RECORD_BYTES_MAX = 8 * 1024 * 1024 - 1024
_numbers = itertools.count()


class _Opened(JetStreamLog):
    """A log that closes its share of the link with itself."""

    def __init__(self, link, info):
        super().__init__(link, info, 0)
        self._mine = link

    def close(self):
        super().close()
        if self._mine is not None:
            self._mine.close()
            self._mine = None


class _Cluster:
    """Opens logs on the servers of this module: a directory is a space."""

    servers: LocalServers
    lock = threading.Lock()

    def open(self, path):
        with self.lock:
            name = path / "space"
            if not name.exists():
                name.write_text(f"c{next(_numbers)}")
            link = Link.shared(parse_address(self.servers.url(name.read_text())))
            try:
                return _Opened(link, admin.make_space(link, name.read_text()))
            except BaseException:
                link.close()
                raise


CLUSTER = _Cluster()


@pytest.fixture(scope="module", autouse=True)
def servers(tmp_path_factory):
    CLUSTER.servers = LocalServers.start(tmp_path_factory.mktemp("servers"), 3, secure=False)
    yield
    CLUSTER.servers.stop(delete=True)


CHECKS = check_log(CLUSTER.open, shared=True, durable=True, record_bytes_max=RECORD_BYTES_MAX, delayed=True)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_jetstream(check, tmp_path):
    check(tmp_path)
