"""What is below deploy/ works: servers with its configuration run, a space is made on them, and a node serves it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer

from onefold import config
from onefold.cli.app import app
from onefold.cluster import certificates, server_config
from onefold.cluster.credentials import make
from onefold.cluster.server_binary import server_program
from onefold.cluster.server_plan import free_ports

DEPLOY = Path(__file__).parents[2] / "deploy"
SITES = ("az:dc1", "az:dc2", "az:dc3")
WAIT_S = 90.0
_END_S = 30.0


def made_accounts(keys: Path) -> str:
    """What the script prints for a space ``main``."""
    command = [sys.executable, DEPLOY / "accounts.py", keys, "main"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def server_check(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Whether a server takes ``nats.conf`` of a folder."""
    command = [server_program(), "-t", "-c", folder / "nats.conf"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def variables(password: str, ports: list[int], name: str = "nats-1", site: str = SITES[0]) -> dict[str, str]:
    routes = {f"ROUTE_{n}": f"nats://route:{password}@127.0.0.1:{port}" for n, port in enumerate(ports, 1)}
    return {"SERVER_NAME": name, "SITE": site, "ROUTE_PASSWORD": password, **routes}


def await_state(what: Callable[[], object], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def started(stack: ExitStack, command: list[Any], output: Path, environment: dict[str, str]) -> None:
    with output.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def end() -> None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Three servers with the configuration as it is, but for addresses and folders: their hosts, and the folder of the seeds."""
    folder = tmp_path_factory.mktemp("deploy")
    accounts = made_accounts(folder / "keys")
    password = (folder / "keys" / "routes.password").read_text()
    ports = free_ports(6)
    template = (DEPLOY / "nats.conf").read_text()
    with ExitStack() as stack:
        for at, site in enumerate(SITES):
            home = folder / f"s{at}"
            home.mkdir()
            text = template.replace("0.0.0.0:4222", f"127.0.0.1:{ports[at]}")
            text = text.replace("0.0.0.0:6222", f"127.0.0.1:{ports[3 + at]}")
            (home / "nats.conf").write_text(text.replace("/var/lib/nats", str(home / "data")))
            (home / "accounts.conf").write_text(accounts)
            environment = variables(password, ports[3:], f"nats-{at + 1}", site)
            assert server_check(home, environment).returncode == 0
            started(stack, [server_program(), "-c", home / "nats.conf"], home / "log", environment)
        yield ",".join(f"127.0.0.1:{port}" for port in ports[:3]), folder / "keys"


def onefold(*arguments: object, user: str, cluster: tuple[str, Path]) -> subprocess.CompletedProcess[str]:
    hosts, keys = cluster
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    environment |= {
        "ONEFOLD_URL": f"nats://{hosts}/main?inbox=_INBOX_{user}",
        "ONEFOLD_NATS_NKEY": str(keys / f"main.{user}.nk"),
        "ONEFOLD_NATS_SYSTEM_NKEY": str(keys / "system.nk"),
        "ONEFOLD_CACHE": str(keys.parent / "cache"),
    }
    command = [sys.executable, "-m", "onefold.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_passwords_are_read_as_they_are_written(tmp_path: Path) -> None:
    """The server parses the value of a variable: what begins with a digit is a number to it, or a mistake."""
    (tmp_path / "nats.conf").write_text((DEPLOY / "nats.conf").read_text())
    (tmp_path / "accounts.conf").write_text(made_accounts(tmp_path / "keys"))
    for number in range(20):
        make(tmp_path / f"keys-{number}", [])
        password = (tmp_path / f"keys-{number}" / "routes.password").read_text()
        assert server_check(tmp_path, variables(password, [1, 2, 3])).returncode == 0


def test_a_space_is_made_served_and_found_well(cluster: tuple[str, Path], tmp_path: Path) -> None:
    made: list[subprocess.CompletedProcess[str]] = []

    def make() -> bool:
        made.append(onefold("init", "--json", user="admin", cluster=cluster))
        return made[-1].returncode == 0

    await_state(make, lambda: made[-1].stderr)  # the servers elect their first leader meanwhile
    assert json.loads(made[-1].stdout)["replicas"] == 3
    hosts, keys = cluster
    (port,) = free_ports(1)
    with ExitStack() as stack:
        command = [sys.executable, "-m", "onefold.cli", *unit_arguments(tmp_path, port)]
        environment = os.environ | {
            "ONEFOLD_URL": f"nats://{hosts}/main?inbox=_INBOX_node",
            "ONEFOLD_NATS_NKEY": str(keys / "main.node.nk"),
        }
        started(stack, command, tmp_path / "log", environment)
        await_state(lambda: answers(port, "/ready"), (tmp_path / "log").read_text)
        put = onefold("put", "m", "k", "1", user="app", cluster=cluster)
        assert put.returncode == 0, put.stderr
        checked = onefold("doctor", "--json", user="admin", cluster=cluster)
    found = json.loads(checked.stdout)
    assert checked.returncode == 0, found
    statuses = {check["name"]: check["status"] for check in found["checks"]}
    assert {
        name: statuses[name] for name in ("sync", "disks", "max_payload", "places", "copies", "records")
    } == dict.fromkeys(("sync", "disks", "max_payload", "places", "copies", "records"), "ok"), found


def unit_arguments(folder: Path, port: int) -> list[str]:
    """The arguments in the unit of systemd, with another folder and port."""
    (line,) = re.findall(r"^ExecStart=\S+ (.*)$", (DEPLOY / "node.service").read_text(), re.MULTILINE)
    line = (
        line.replace("%H", "n1")
        .replace("/var/lib/onefold", str(folder))
        .replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    )
    return str(line).split()


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_nats_conf_says_what_a_cluster_of_this_machine_has() -> None:
    """The template has the settings of ``onefold up``, which the other tests run on."""
    text = (DEPLOY / "nats.conf").read_text()
    plan = server_config.ClusterPlan("c", [server_config.ServerPlan("s1", 1, 2, "dc1")], 1, spaces=[])
    written = json.loads(
        server_config.server_config(
            plan, plan.servers[0], Path("/f"), server_config.Secrets("p", {"system": "k"})
        )
    )
    for name in (
        "ping_interval",
        "ping_max",
        "write_deadline",
        "lame_duck_duration",
        "lame_duck_grace_period",
    ):
        assert re.search(rf'^{name}: "?{written[name]}"?(\s|$)', text, re.MULTILINE), name
    for name in ("max_payload", "max_pending"):
        assert re.search(rf"^{name}: {written[name] // 2**20}MB(\s|$)", text, re.MULTILINE), name
    for name in ("sync_interval", "unique_tag"):
        assert re.search(rf'^  {name}: "?{written["jetstream"][name]}"?(\s|$)', text, re.MULTILINE), name


def test_nats_conf_with_certificates(tmp_path: Path) -> None:
    files = certificates.make(tmp_path / "tls", ["127.0.0.1"])
    text = (DEPLOY / "nats.conf").read_text()
    assert text.count("#tls ") == 2
    for name in ("ca.pem", "server.pem", "server.key"):
        text = text.replace(f"/etc/nats/{name}", str(Path(files.ca).parent / name))
    (tmp_path / "nats.conf").write_text(text.replace("#tls ", "tls "))
    (tmp_path / "accounts.conf").write_text(made_accounts(tmp_path / "keys"))
    checked = server_check(tmp_path, variables("secret", [7001, 7002, 7003]))
    assert checked.returncode == 0, checked.stderr


def test_the_accounts_hold_no_secret(tmp_path: Path) -> None:
    printed = made_accounts(tmp_path)
    assert printed == made_accounts(tmp_path), "keys that are there stay"
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text().strip() not in printed


def as_nats_config(value: object) -> str:
    """The configuration as the chart writes it: ``<< x >>`` without quotes, ``…$include`` as an include."""
    text = re.sub(r'"[^"]*\$include": "(.*)",?', r"include \1;", json.dumps(value, indent=2))
    return re.sub(r'"<<\s+(.*?)\s+>>"', r"\1", text)


def test_helm_values(tmp_path: Path) -> None:
    """The servers take what the chart makes of the values, and it is what ``nats.conf`` says."""
    yaml = pytest.importorskip("yaml")
    values = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text())["config"]
    stream = values["jetstream"]
    written: dict[str, Any] = {
        "server_name": "nats-0",
        "port": values.get("nats", {}).get("port", 4222),
        "cluster": {
            "name": "nats",
            "port": 6222,
            "routes": ["nats://route:secret@nats-0.nats-headless:6222"],
        },
        "jetstream": {
            "store_dir": str(tmp_path / "data"),
            "max_file_store": f"<< {stream['fileStore']['maxSize']} >>",
            "max_memory_store": f"<< {stream['memoryStore']['maxSize']} >>",
            **stream["merge"],
        },
        "lame_duck_duration": "30s",
        **values["merge"],
    }
    (tmp_path / "nats.conf").write_text(as_nats_config(written))
    (tmp_path / "accounts.conf").write_text(made_accounts(tmp_path / "keys"))
    checked = server_check(tmp_path, {})
    assert checked.returncode == 0, checked.stderr
    assert values["cluster"]["replicas"] == 3 and stream["merge"] == {"sync_interval": "always"}
    template = (DEPLOY / "nats.conf").read_text()
    for name, value in values["merge"].items():
        if "$include" not in name:
            plain = str(value).removeprefix("<< ").removesuffix(" >>")
            assert re.search(rf'^{name}: "?{plain}"?(\s|$)', template, re.MULTILINE), name


def node_options() -> set[str]:
    command = typer.main.get_command(app).commands["node"]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


def test_kubernetes() -> None:
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    sets = [one for one in documents if one["kind"] == "StatefulSet"]
    pod = sets[0]["spec"]["template"]["spec"]
    (node,) = pod["containers"]
    assert node["command"] == ["onefold", "node"]
    assert {word for word in node["args"] if word.startswith("--")} <= node_options()
    probes = {kind: node[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/live", "liveness": "/live", "readiness": "/ready"}
    assert pod["terminationGracePeriodSeconds"] >= 2 * config.DRAIN_TIMEOUT_S
    names = {one["metadata"]["name"] for one in documents}
    assert names == {sets[0]["spec"]["serviceName"]}
    labels = sets[0]["spec"]["template"]["metadata"]["labels"]
    assert sets[0]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    volumes = {one["name"] for one in pod["volumes"]} | {
        one["metadata"]["name"] for one in sets[0]["spec"]["volumeClaimTemplates"]
    }
    assert {mount["name"] for mount in node["volumeMounts"]} == volumes


def test_the_unit_of_systemd(tmp_path: Path) -> None:
    text = (DEPLOY / "node.service").read_text()
    assert {word for word in unit_arguments(tmp_path, 1) if word.startswith("--")} <= node_options()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(seconds) >= 2 * config.DRAIN_TIMEOUT_S
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here; the rest is checked")
    unit = tmp_path / "onefold-node.service"
    unit.write_text(
        text.replace("/opt/onefold/bin/onefold", shutil.which("true") or "/bin/true").replace(
            "User=onefold\n", ""
        )
    )
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert "node.service" not in checked.stderr, checked.stderr
