"""What goes wrong in a run of the fault suite, on real processes: each fault begins, lasts, and is healed.

The nemesis chooses from a seed. A fault that a machine cannot show (no root, no namespaces, no ``strace``) is
named with its reason, never passed over in silence.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kit.cluster.stand import Stand

Heal = Callable[[], None]
_ATTACH_S = 10.0


@dataclass(frozen=True)
class Fault:
    """One kind of fault. ``begin`` does it and returns what ends it."""

    name: str
    begin: Callable[[Stand, random.Random], Heal]
    lasts_s: tuple[float, float] = (2.0, 6.0)
    needs: Callable[[Stand], str | None] = lambda _: None
    """Why it cannot be shown on this stand, or None."""


@dataclass(frozen=True)
class Happened:
    """A fault of a run; times of ``time.monotonic``."""

    name: str
    began: float
    healed: float


# -- processes


def _kill_leader(stand: Stand, rng: random.Random) -> Heal:
    at = stand.leader(rng.randrange(stand.shards))
    stand.servers.kill(at)
    return lambda: stand.servers.restart(at)


def _stop_leader(stand: Stand, rng: random.Random) -> Heal:
    at = stand.leader(rng.randrange(stand.shards))
    stand.servers.stop_server(at)
    return lambda: stand.servers.cont(at)


def _restart_all(stand: Stand, rng: random.Random) -> Heal:
    order = list(range(len(stand.servers.servers)))
    rng.shuffle(order)
    for at in order:
        stand.servers.kill(at, signal.SIGTERM)
        stand.servers.restart(at)
    return lambda: None


def _kill_all(stand: Stand, rng: random.Random) -> Heal:
    for at in range(len(stand.servers.servers)):
        stand.servers.kill(at)

    def heal() -> None:
        stand.servers.start_missing()

    return heal


def _kill_node(stand: Stand, rng: random.Random) -> Heal:
    name = rng.choice(sorted(stand.nodes))
    stand.nodes[name].kill(signal.SIGKILL)
    return lambda: stand.start_node(name)


def _stop_node(stand: Stand, rng: random.Random) -> Heal:
    node = stand.nodes[rng.choice(sorted(stand.nodes))]
    node.kill(signal.SIGSTOP)
    return lambda: node.kill(signal.SIGCONT)


def _drain_node(stand: Stand, rng: random.Random) -> Heal:
    name = rng.choice(sorted(stand.nodes))
    stand.nodes[name].kill(signal.SIGTERM)
    return lambda: stand.start_node(name)


def _kill_client(stand: Stand, rng: random.Random) -> Heal:
    client = rng.choice(stand.clients)
    client.process.kill(signal.SIGKILL)
    return lambda: stand.replace_client(client)


def _stop_client(stand: Stand, rng: random.Random) -> Heal:
    client = rng.choice(stand.clients)
    client.process.kill(signal.SIGSTOP)
    return lambda: client.process.kill(signal.SIGCONT)


# -- the network


def _with_hosts(stand: Stand) -> str | None:
    return None if stand.hosts is not None else stand.no_hosts


def _cut_server(stand: Stand, rng: random.Random) -> Heal:
    """One server alone on its side, with the node and clients of its host."""
    assert stand.hosts is not None
    alone = rng.choice(stand.server_hosts)
    stand.hosts.split([alone], [name for name in stand.hosts.hosts if name != alone])
    return stand.hosts.heal


def _cut_leader(stand: Stand, rng: random.Random) -> Heal:
    assert stand.hosts is not None
    alone = stand.server_hosts[stand.leader(rng.randrange(stand.shards))]
    stand.hosts.split([alone], [name for name in stand.hosts.hosts if name != alone])
    return stand.hosts.heal


def _unplug_client(stand: Stand, rng: random.Random) -> Heal:
    assert stand.hosts is not None
    stand.hosts.unplug(rng.choice(stand.client_hosts))
    return stand.hosts.heal


def _one_way(stand: Stand, rng: random.Random) -> Heal:
    """What the leader sends to one of the others is lost."""
    assert stand.hosts is not None
    leader = stand.server_hosts[stand.leader(rng.randrange(stand.shards))]
    stand.hosts.deafen(leader, rng.choice([name for name in stand.server_hosts if name != leader]))
    return stand.hosts.heal


# -- clock and disk


def _clock_jump(stand: Stand, rng: random.Random) -> Heal:
    """The wall clock of one node is wrong for a while. (Its other clocks count on: nothing but a wall clock jumps.)"""
    name = rng.choice(sorted(stand.clock_files))
    file = stand.clock_files[name]
    file.write_text(str(rng.choice((-3600, -30, 30, 3600))))

    def heal() -> None:
        file.write_text("0")

    return heal


def _with_strace(stand: Stand) -> str | None:
    if shutil.which("strace") is None:
        return "a slow disk is made with strace's delay injection (Debian: strace)"
    if os.geteuid() != 0:
        return "slowing down another process's syscalls needs root"
    try:
        _end(_delay_syncs(stand.servers.servers[0].pid, 1))
    except OSError as error:
        return f"syscalls of another process cannot be slowed down here: {error}"
    return None


def _slow_disk(stand: Stand, rng: random.Random) -> Heal:
    """Every sync of one server takes 20 to 80 ms more."""
    server = stand.servers.servers[rng.randrange(len(stand.servers.servers))]
    tracer = _delay_syncs(server.pid, rng.choice((20_000, 80_000)))

    def heal() -> None:
        _end(tracer)

    return heal


def _delay_syncs(pid: int | None, delay_us: int) -> subprocess.Popen[str]:
    """Attach to a process; what does it. Returns once it is attached. Raises OSError with what strace says when it cannot."""
    assert pid is not None, "the server does not run"
    inject = f"inject=fsync,fdatasync:delay_enter={delay_us}"
    command = ["strace", "-f", "-q", "-p", str(pid), "-e", "trace=fsync,fdatasync", "-e", inject]
    tracer = subprocess.Popen(
        [*command, "-o", "/dev/null"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    status, end = Path(f"/proc/{pid}/status"), time.monotonic() + _ATTACH_S
    while f"TracerPid:\t{tracer.pid}\n" not in status.read_text():
        if tracer.poll() is not None or time.monotonic() > end:
            raise OSError(_end(tracer) or f"strace has not attached to process {pid} within {_ATTACH_S:g} s")
        time.sleep(0.01)
    return tracer


def _end(tracer: subprocess.Popen[str]) -> str:
    """Detach; what strace complained about."""
    tracer.terminate()
    return tracer.communicate()[1].strip()


def _on_tmpfs(stand: Stand) -> str | None:
    return None if stand.small_disk is not None else stand.no_small_disk


def _full_disk(stand: Stand, rng: random.Random) -> Heal:
    """The disk of one server is full; it may stop its JetStream and has to be started again with space."""
    assert stand.small_disk is not None
    at, folder = stand.small_disk
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass

    def heal() -> None:
        ballast.unlink()
        stand.servers.kill(at)
        stand.servers.restart(at)

    return heal


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("kill-leader", _kill_leader),
        Fault("stop-leader", _stop_leader, (6.0, 14.0)),
        Fault("restart-all", _restart_all, (0.0, 0.5)),
        Fault("kill-all", _kill_all, (0.5, 2.0)),
        Fault("kill-node", _kill_node),
        Fault("stop-node", _stop_node, (2.0, 14.0)),
        Fault("drain-node", _drain_node),
        Fault("kill-client", _kill_client, (0.0, 1.0)),
        Fault("stop-client", _stop_client),
        Fault("cut-server", _cut_server, (4.0, 12.0), _with_hosts),
        Fault("cut-leader", _cut_leader, (6.0, 14.0), _with_hosts),
        Fault("unplug-client", _unplug_client, (2.0, 8.0), _with_hosts),
        Fault("one-way", _one_way, (6.0, 14.0), _with_hosts),
        Fault("clock-jump", _clock_jump, (2.0, 6.0)),
        Fault("slow-disk", _slow_disk, (4.0, 8.0), _with_strace),
        Fault("full-disk", _full_disk, (3.0, 6.0), _on_tmpfs),
    )
}


class Nemesis:
    """Lets the faults happen one after the other, and waits after each until writes get through again."""

    def __init__(self, stand: Stand, seed: int, *, recovery_s: float = 60.0) -> None:
        """``recovery_s``: a stand that takes no write for longer than this after a fault has healed has failed."""
        self._stand = stand
        self._random = random.Random(f"nemesis {seed}")
        self._recovery_s = recovery_s
        self.happened: list[Happened] = []

    def run(self, names: Sequence[str]) -> None:
        """One round of each of these faults. Raises AssertionError when the cluster does not come back."""
        for name in names:
            fault = FAULTS[name]
            began = time.monotonic()
            self._stand.log(f"fault {name}")
            heal = fault.begin(self._stand, self._random)
            try:
                self._pass(self._random.uniform(*fault.lasts_s))
            finally:
                heal()
            healed = time.monotonic()
            self.happened.append(Happened(name, began, healed))
            self._stand.log(f"healed {name}")
            self._stand.await_progress(self._recovery_s)

    def _pass(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._stand.check_clients()
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))
