"""The pytest plugin: fixtures for testing programs that use Onefold. Installed with the package, nothing to configure.

- ``onefold_db``: an empty database in memory, closed after the test. In a test that also asks for ``onefold_clock`` it lives
  by that clock.
- ``onefold_clock``: a ``FakeClock``: time passes when the test says so.
- ``onefold_sim``: a ``Simulation``: the test runs once for each of ``--onefold-seeds`` seeds (default 20; in the configuration
  file ``onefold_seeds``). A failure names its seed; ``--onefold-seed 17`` runs that one alone. Options of the simulation by
  a mark: ``@pytest.mark.onefold(shards=3)``, or ``regions=("eu", "us")``.

Onefold itself is imported when a test uses one of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.testing.clock import FakeClock
    from onefold.testing.sim import Simulation

_SEEDS_DEFAULT = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("onefold", "Onefold")
    group.addoption(
        "--onefold-seeds",
        type=int,
        metavar="N",
        help=f"run each simulated test with the seeds 0 to N-1 (default: the ini option onefold_seeds, else {_SEEDS_DEFAULT})",
    )
    group.addoption(
        "--onefold-seed",
        type=int,
        action="append",
        metavar="SEED",
        help="run simulated tests with this seed only",
    )
    parser.addini(
        "onefold_seeds", "how many seeds each simulated test runs with", default=str(_SEEDS_DEFAULT)
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "onefold(**options): options of the test's onefold_sim, such as shards=3; see onefold.testing.Simulation",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "onefold_sim" in metafunc.fixturenames:
        seeds = _seeds(metafunc.config)
        metafunc.parametrize("onefold_sim", seeds, ids=[f"seed{seed}" for seed in seeds], indirect=True)


def _seeds(config: pytest.Config) -> list[int]:
    chosen: list[int] | None = config.getoption("onefold_seed")
    if chosen:
        return chosen
    count: int | None = config.getoption("onefold_seeds")
    if count is None:
        given = str(config.getini("onefold_seeds"))
        if not given.isdecimal():
            raise pytest.UsageError(f"onefold_seeds must be a whole number; got {given!r}")
        count = int(given)
    if count < 1:
        raise pytest.UsageError(f"the number of seeds must be 1 or more; got {count}")
    return list(range(count))


@pytest.fixture
def onefold_clock() -> FakeClock:
    """A clock that moves when told: ``onefold_clock.advance("1h")``. ``onefold_clock.connect()`` gives databases that live by it,
    and so does the fixture ``onefold_db`` in the same test."""
    from onefold.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def onefold_db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database in memory, on the test's ``onefold_clock`` if it has one. Closed afterwards."""
    if "onefold_clock" in request.fixturenames:
        database: Database = request.getfixturevalue("onefold_clock").connect()
    else:
        from onefold.db import connect

        database = connect("memory://")
    with database, pure_merges():
        yield database


@pytest.fixture
def onefold_sim(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    """A simulated cluster, from the seed of this run of the test; see ``onefold.testing.Simulation``."""
    from onefold.testing.sim import Simulation

    seed: int = request.param
    marker = request.node.get_closest_marker("onefold")
    options: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
    test = request.node.nodeid.partition("[")[0]
    simulation = Simulation(seed, rerun=f"pytest '{test}' --onefold-seed {seed}", **options)
    try:
        with pure_merges():
            yield simulation
    finally:
        simulation.close()


@contextmanager
def pure_merges() -> Iterator[None]:
    """A ``with`` block in which merge functions of available maps are called twice for each read. MergeFailed is raised for one
    that then makes two different values."""
    from onefold.state.available.maps.merges import KeepBoth

    before, KeepBoth.calls_twice = KeepBoth.calls_twice, True
    try:
        yield
    finally:
        KeepBoth.calls_twice = before


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    simulation = getattr(item, "funcargs", {}).get("onefold_sim")
    if simulation is None or call.when != "call" or not report.failed:
        return
    told = simulation.report()
    if told.partition("\n")[0] not in str(
        report.longrepr
    ):  # it stands in the note of the exception otherwise
        report.sections.append(("onefold simulation", told))
