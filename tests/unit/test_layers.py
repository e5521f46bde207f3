"""The import contracts of pyproject.toml catch what they are there for.

Into a copy of the sources one import against each contract is planted: from each layer into the one above it, between parts
that must not know each other, and of a clock into each pure package. The contract must see each one alone, whether it stands
at the top of a file, inside a function or under TYPE_CHECKING.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import cycle, pairwise, permutations
from pathlib import Path

import pytest

import onefold

read_configuration = pytest.importorskip(
    "importlinter.api", reason="the linters are not installed"
).read_configuration

PROJECT = Path(__file__).parents[2]
FORMS = (
    "\nimport {0}\n",
    "\ndef planted():\n    import {0}\n",
    "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {0}\n",
)
CHECK = """
import json, sys
import grimp
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.api import read_configuration

TYPES = {"layers": LayersContract, "forbidden": ForbiddenContract}
config = read_configuration(sys.argv[1])
planted = json.load(sys.stdin)
graph = grimp.build_graph(
    "onefold",
    include_external_packages=True,
    exclude_type_checking_imports=str(config["session_options"].get("exclude_type_checking_imports")) == "True",
    cache_dir=None,
)
seen = {
    (importer, imported): graph.direct_import_exists(importer=importer, imported=imported)
    for _, importer, imported in planted
}
contracts = {
    one["name"]: TYPES[one["type"]](one["name"], config["session_options"], one) for one in config["contracts_options"]
}
for importer, imported in seen:
    graph.remove_import(importer=importer, imported=imported)
verdicts = []
for name, contract in contracts.items():
    verdicts.append([name, "as it is", "", contract.check(graph, False).kept])
for name, importer, imported in planted:
    graph.add_import(importer=importer, imported=imported)
    kept = contracts[name].check(graph, False).kept or not seen[importer, imported]
    graph.remove_import(importer=importer, imported=imported)
    verdicts.append([name, importer, imported, kept])
for name, contract in contracts.items():
    for container in getattr(contract, "containers", ()):
        new = f"{container.expression}.of_no_layer"
        graph.add_module(new)
        verdicts.append([name, new, "", contract.check(graph, False).kept])
        graph.remove_module(new)
print(json.dumps(verdicts))
"""


def forbidden_pairs(contract: dict[str, object]) -> list[tuple[str, str]]:
    """(lower, upper): imports that the contract must not let pass."""
    if contract["type"] == "forbidden":
        forbidden: list[str] = contract["forbidden_modules"]  # type: ignore[assignment]
        return list(zip(contract["source_modules"], cycle(forbidden)))  # type: ignore[call-overload]
    (container,) = contract["containers"]  # type: ignore[misc]
    lines: list[str] = contract["layers"]  # type: ignore[assignment]
    assert not any(":" in line for line in lines), (
        "parts of one layer that may import each other are a circle"
    )
    layers = [[f"{container}.{name.strip()}" for name in line.split("|")] for line in lines]
    upward = [(low, high) for above, below in pairwise(layers) for low in below for high in above]
    apart = [
        pair
        for line, layer in zip(lines, layers, strict=True)
        if "|" in line
        for pair in permutations(layer, 2)
    ]
    return upward + apart


def test_pure_modules_import_no_clock_chance_or_outside_world() -> None:
    """Said here too: what is planted is read from the contract."""
    contracts = read_configuration(str(PROJECT / "pyproject.toml"))["contracts_options"]
    (pure,) = [one for one in contracts if one["type"] == "forbidden" and "pure" in one["name"]]
    wanted = {"asyncio", "time", "random", "socket", "sqlite3", "apsw", "nats"}
    assert wanted <= set(pure["forbidden_modules"])
    folds = {"onefold.fold", "onefold.state.fold", "onefold.compute.jobs", "onefold.compute.plan"}
    assert folds <= set(pure["source_modules"])


def plant(sources: Path, module: str, text: str) -> None:
    """Add the text to the module, or to the ``__init__`` of the package."""
    path = sources / Path(*module.split("."))
    with (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).open("a") as file:
        file.write(text)


def test_an_import_against_the_layers_breaks_its_contract(tmp_path: Path) -> None:
    shutil.copytree(
        Path(onefold.__file__).parent, tmp_path / "onefold", ignore=shutil.ignore_patterns("__pycache__")
    )
    config = str(PROJECT / "pyproject.toml")
    contracts = read_configuration(config)["contracts_options"]
    planted = [(one["name"], *pair) for one in contracts for pair in forbidden_pairs(one)]
    for (_, low, high), form in zip(planted, cycle(FORMS), strict=False):
        plant(tmp_path, low, form.format(high))
    found = subprocess.run(
        [sys.executable, "-c", CHECK, config],
        input=json.dumps(planted),
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    verdicts = json.loads(found.stdout)
    assert [one for one in verdicts if one[1] == "as it is" and not one[3]] == []
    assert [one for one in verdicts if one[1] != "as it is" and one[3]] == []
    assert len(verdicts) > 60
