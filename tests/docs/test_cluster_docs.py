"""What docs/cluster.md lists is what the program has: limits with their values, options, variables, events, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from kit.cluster.nemesis import FAULTS
from onefold import config
from onefold.cli.app import app
from onefold.cluster.permissions import USERS
from onefold.node.telemetry.logging import former_event

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "onefold"
CLUSTER = (ROOT / "docs" / "cluster.md").read_text("utf-8")
FAULTS_DOCUMENT = (ROOT / "docs" / "faults.md").read_text("utf-8")
REGION_FAULTS = (ROOT / "docs" / "regions-faults.md").read_text("utf-8")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
BINARY_UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30}
_LIMIT = r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


def section(heading: str, text: str = CLUSTER) -> str:
    """What stands below a heading, up to the next one of its level."""
    level = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert level is not None, f"there is no heading {heading!r}"
    rest = text[level.end() :]
    return re.split(rf"^#{{1,{len(level[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's lines, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def is_said(text: str, value: float) -> bool:
    """Whether a text such as ``0.3 s``, ``1,024``, ``70 %`` or ``64 MB`` says a value."""
    number, _, unit = text.partition(" ")
    amount = float(number.replace(",", ""))
    if unit == "%":
        return abs(amount / 100 - value) < 1e-9
    if unit in UNITS:
        return value in (amount * UNITS[unit], amount * BINARY_UNITS[unit])
    return amount == value


# -- limits


def test_the_table_of_limits() -> None:
    table = rows(section("Sizes and limits"))
    assert len(table) > 15
    for names, values, _ in table:
        said = re.split(r", (?!\d{3}\b)", values)
        limits = code(names)
        assert len(said) == len(limits), (names, values)
        for name, text in zip(limits, said, strict=True):
            assert is_said(text, getattr(config, name)), f"{name} is {getattr(config, name)}, not {text}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_limit_that_is_named_with_its_value_has_it(path: Path) -> None:
    """``120 s (`NODE_STUCK_S`)`` and ``(`TAIL_BUFFER_BYTES_MAX`, 64 MB)``, in any document."""
    text = path.read_text("utf-8")
    said = re.findall(rf"(\d[\d,.]*(?: (?:s|ms|%|KB|MB|GB))?) \(`({_LIMIT})`", text)
    said += [
        (value, name) for name, value in re.findall(rf"`({_LIMIT})`, (\d[\d,.]*(?: (?:s|KB|MB|GB)\b)?)", text)
    ]
    for value, name in said:
        if hasattr(config, name):
            assert is_said(value.rstrip(",."), getattr(config, name)), (name, value, getattr(config, name))


def test_limits_that_are_named_exist() -> None:
    for path in DOCUMENTS:
        for name in re.findall(rf"`({_LIMIT})`", path.read_text("utf-8")):
            known = name.startswith(("ONEFOLD_", "OTEL_", "XDG_", "CLOCK_")) or hasattr(config, name)
            assert known, f"{path.name} names {name}, and config.py has no such limit"


# -- options, variables, events, metrics


def test_environment_variables() -> None:
    pattern = re.compile(r"ONEFOLD_[A-Z_]+[A-Z]")
    used = set().union(*(pattern.findall(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")))
    # Some are put together: ONEFOLD_NATS_ and CA, CERT, KEY.
    used = (used - {"ONEFOLD_NATS"}) | {"ONEFOLD_NATS_CA", "ONEFOLD_NATS_CERT", "ONEFOLD_NATS_KEY"}
    told = {name for cells in rows(section("Environment variables")) for name in code(cells[0])}
    assert told == used


def options(command: str) -> set[str]:
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {option for parameter in found.params for option in parameter.opts if option.startswith("--")}


def test_the_options_of_a_node() -> None:
    told = {code(cells[0])[0] for cells in rows(section("Nodes").split("###")[0])}
    assert told | {"--url"} == options("node")


@pytest.mark.parametrize("command", ["up", "down", "init", "node", "doctor", "run", "status"])
def test_options_of_commands_exist(command: str) -> None:
    text = CLUSTER + FAULTS_DOCUMENT + (ROOT / "README.md").read_text("utf-8")
    for line in re.findall(rf"onefold {command}\b([^`\n#]*)", text):
        assert set(re.findall(r"(?<![\w-])--[a-z-]+", line)) <= options(command) | {"--json", "--url"}, line


def test_events() -> None:
    events, renamed = section("Logs and traces").split("Events that were renamed")
    told = {name for cells in rows(events) for name in code(cells[0])}
    said: set[str] = set()
    parts = ("node", "cluster", "doctor")
    for path in (path for part in parts for path in (SOURCE / part).rglob("*.py")):
        calls = re.findall(r"log\.(?:info|warning|error|begins)\(\s*\"([a-z_]+)\"", path.read_text("utf-8"))
        said.update(calls)
    worker = (SOURCE / "compute" / "node_worker.py").read_text("utf-8")
    said.update(re.findall(r"_tell\(\s*\"([a-z_]+)\"", worker))
    for path in (SOURCE / "compute" / "upkeep" / f"{name}.py" for name in ("keeper", "duties")):
        events_of_keepers = re.findall(r"note\(\s*\"([a-z_]+)\"", path.read_text("utf-8"))
        said.update(name.removesuffix("_over") for name in events_of_keepers)
    assert len(said) > 30
    parts = {
        "authority_stalled",
        "leaders_stalled",
        "snapshots_stalled",
        "divergence_check_stalled",
        "trimming_stalled",
        "shard_N_stalled",
        "decisions_stalled",
        "region_R_shard_N_unreachable",
        "region_R_shard_N_alarm",
        "region_beats_N_failed",
    }
    assert told == said | parts
    former = {
        name: was for cells in rows(renamed) for name, was in zip(code(cells[0]), code(cells[1]), strict=True)
    }
    assert former == {name: was for name in told if (was := former_event(name)) is not None}


def test_metrics() -> None:
    text = (SOURCE / "node" / "metrics.py").read_text("utf-8")
    of_regions = (SOURCE / "node" / "regions" / "metrics.py").read_text("utf-8")
    names = set(re.findall(r"\"(onefold_[a-z_]+)\"", text + of_regions))
    entry = re.compile(r"^ +\(\"((?!onefold)[a-z_]+)\", \"", re.MULTILINE)
    names |= {f"onefold_region_{name}" for name in entry.findall(of_regions)}
    before, live = text.split("def _about_live_jobs")
    live, after = live.split("    def ", 1)
    entry = re.compile(r"^ +\(\"((?!onefold)[a-z_]+)\", \"", re.MULTILINE)
    of_shards, of_live = entry.findall(before + after), entry.findall(live)
    names |= {f"onefold_shard_{name}" for name in of_shards} | {f"onefold_live_{name}" for name in of_live}
    assert len(of_shards) > 5 and len(of_live) > 10
    metrics = "| metric" + section("HTTP").split("| metric")[1]
    told = {name for cells in rows(metrics) for name in code(cells[0])}
    assert {name.removesuffix("_total") for name in told if name.startswith("onefold_")} == names


def test_users() -> None:
    told = [code(cells[0])[0] for cells in rows(section("Users and what they may do"))]
    assert told == [*USERS, "system"]


# -- faults


def test_every_fault_of_the_suite_is_in_the_table() -> None:
    told = [
        code(cells[0])[0]
        for cells in rows(section("Under load, with the histories checked", FAULTS_DOCUMENT))
    ]
    assert sorted(told) == sorted(FAULTS)


def test_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", FAULTS_DOCUMENT + REGION_FAULTS)
    assert len(named) > 30
    for path, test in named:
        text = (ROOT / path).read_text("utf-8")
        assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE), f"{path} has no {test}"


# -- links


def anchors(path: Path) -> set[str]:
    """The places in a document that can be linked to, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, place = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name} links to {link}, which is not there"
        assert not place or place in anchors(file), f"{path.name} links to {link}: there is no such heading"


def test_every_document_is_linked_from_another_one() -> None:
    linked: set[Path] = set()
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
            linked.add((path.parent / link).resolve())
    for path in (ROOT / "docs").glob("*.md"):
        assert path in linked, f"nothing leads to {path.name}"
