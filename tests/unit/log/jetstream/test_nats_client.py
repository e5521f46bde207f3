"""What of nats-py is overridden and used is there, and another release of it is noticed."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from nats.aio.client import Client

from onefold.errors import SpaceError
from onefold.log.jetstream.client import connection, wire
from onefold.log.jetstream.client.connection import Connection
from support.wire_peer import play, silent


@pytest.mark.parametrize(
    "name", ["_process_info", "_process_err", "_process_op_err", "_connect_command", "_send_ping"]
)
def test_what_is_overridden_is_there(name: str) -> None:
    assert inspect.isfunction(getattr(Client, name))


def test_names_that_are_used_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wire.check_names()
    source = inspect.getsource(wire) + inspect.getsource(connection)
    for name in (*wire._METHODS, *wire._ATTRIBUTES):
        assert source.count(name) > 1, f"{name} is not used"

    class Renamed(Client):
        def __init__(self) -> None:
            super().__init__()
            self._pings_sent = self.__dict__.pop("_pings_outstanding")

    monkeypatch.setattr(wire, "Client", Renamed)
    with pytest.raises(
        SpaceError, match=r"nats-py 2\.\S+ cannot be used: it has no \S+_pings_outstanding\. "
    ):
        wire.check_names()


@pytest.mark.parametrize("name", sorted(vars(Client())))
def test_every_attribute_that_is_used_is_checked(name: str) -> None:
    used = re.search(rf"self\.{name}\b", inspect.getsource(wire.Wire)) is not None
    assert used == (name in wire._ATTRIBUTES)


def test_the_versions_that_are_named_are_those_that_are_installed() -> None:
    project = Path(__file__).parents[4] / "pyproject.toml"
    assert wire.NATS_PY in tomllib.loads(project.read_text())["project"]["dependencies"]


@pytest.mark.parametrize(
    "error", [AttributeError("'Wire' object has no attribute '_old'"), TypeError("tls=")]
)
@pytest.mark.parametrize("kind", [None, "nkey", "creds"])
def test_another_release_of_nats_py_is_not_taken_for_a_wrong_credential(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str | None, error: Exception
) -> None:
    async def connect(*args: object, **options: object) -> None:
        raise error

    async def use(connection: Connection) -> None:
        raise AssertionError

    monkeypatch.setattr(Client, "connect", connect)
    (tmp_path / "secret").write_text("hunter2")
    with pytest.raises(SpaceError, match=r"nats-py 2\.") as raised:
        play(silent, use, **({} if kind is None else {kind: str(tmp_path / "secret")}))
    assert str(error) in str(raised.value) and wire.NATS_PY in str(raised.value)
