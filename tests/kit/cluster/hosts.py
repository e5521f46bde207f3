"""Hosts of one machine: network namespaces joined by a bridge, so that a partition is what a cable or a router would do to it.

Everything lives in namespaces of its own, the bridge too (in the *hub*), so nothing of the machine's network is touched and no
packet leaves it. It needs root and ``ip`` (Debian: iproute2); ``missing`` says what is not there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

_NET = "10.77.0"
_FIRST_HOST = 11
_HOSTS_MAX = 200


def missing() -> str | None:
    """Why namespaces cannot be made here, or None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the tool `ip` is missing (Debian: iproute2)"
    probe = f"onefold-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


def namespaces(count: int) -> list[str]:
    """The names of all that ``Hosts`` of this process makes for so many hosts, the hub included, and of the probe."""
    return [f"onefold-probe-{os.getpid()}", f"{_tag()}-hub", *(f"{_tag()}-{at}" for at in range(count - 1))]


def _tag() -> str:
    return f"of{os.getpid()}"


class Host:
    """One namespace: an address, and how to run a program there."""

    def __init__(self, name: str, namespace: str, address: str, port_in_hub: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.port_in_hub = port_in_hub
        """The hub's end of its cable."""

    @property
    def prefix(self) -> list[str]:
        """What comes before a command so that it runs there."""
        return ["ip", "netns", "exec", self.namespace]

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"


class Hosts:
    """A small network. Use it as a context manager: its namespaces go at the end; end the processes in them before."""

    def __init__(self, names: Sequence[str]) -> None:
        """One host for each name. Raises RuntimeError with what ``ip`` said when it cannot be made."""
        if len(names) > _HOSTS_MAX:
            raise ValueError(f"at most {_HOSTS_MAX} hosts")
        tag = _tag()
        self.hub = Host("hub", f"{tag}-hub", f"{_NET}.1", "")
        self.hosts: dict[str, Host] = {}
        try:
            _ip("netns", "add", self.hub.namespace)
            _ip("-n", self.hub.namespace, "link", "set", "lo", "up")
            _ip("-n", self.hub.namespace, "link", "add", "br0", "type", "bridge")
            _ip("-n", self.hub.namespace, "addr", "add", f"{self.hub.address}/24", "dev", "br0")
            _ip("-n", self.hub.namespace, "link", "set", "br0", "up")
            for at, name in enumerate(names):
                self._add(name, f"{tag}-{at}", f"{_NET}.{_FIRST_HOST + at}", f"v{at}")
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    # -- faults

    def unplug(self, name: str) -> None:
        """Take the host's cable out: nothing comes in or out, and its connections do not notice."""
        _ip("-n", self.hub.namespace, "link", "set", self.hosts[name].port_in_hub, "down")

    def plug(self, name: str) -> None:
        """Put it in again."""
        _ip("-n", self.hub.namespace, "link", "set", self.hosts[name].port_in_hub, "up")

    def deafen(self, source: str, target: str) -> None:
        """What ``source`` sends to ``target`` is lost from now on; the other way still works."""
        _ip(
            "-n", self.hosts[source].namespace, "route", "replace", "blackhole", f"{self._address(target)}/32"
        )

    def split(self, *sides: Iterable[str]) -> None:
        """Cut the network: hosts of different sides cannot reach each other. Hosts that are named nowhere reach everybody."""
        groups = [list(side) for side in sides]
        for at, side in enumerate(groups):
            for other in (host for group in groups[at + 1 :] for host in group):
                for name in side:
                    self.deafen(name, other)
                    self.deafen(other, name)

    def heal(self) -> None:
        """All cables in, no route lost."""
        for host in self.hosts.values():
            self.plug(host.name)
            listed = _ip("-n", host.namespace, "route", "show", "type", "blackhole")
            for line in listed.splitlines():
                _ip("-n", host.namespace, "route", "del", "blackhole", line.split()[1])

    # -- life

    def close(self) -> None:
        """Remove the namespaces. Processes that still run there keep theirs until they end."""
        for host in (*self.hosts.values(), self.hub):
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", host.namespace)
        self.hosts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside

    def _add(self, name: str, namespace: str, address: str, port: str) -> None:
        hub = self.hub.namespace
        _ip("netns", "add", namespace)
        self.hosts[name] = Host(name, namespace, address, port)
        _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", hub, "link", "set", port, "master", "br0", "up")
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")

    def _address(self, name: str) -> str:
        return self.hub.address if name == self.hub.name else self.hosts[name].address


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
