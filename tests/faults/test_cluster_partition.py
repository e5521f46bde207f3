"""On the minority side of a partition strong reads and writes say that they cannot, in time, and weaker reads go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kit.cluster import hosts
from kit.environment import with_tests

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 3.0
SLACK_S = 30.0
"""A busy machine answers later than it was asked to; what hangs takes much longer."""

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.faults,
    pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing())),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    command = [sys.executable, "tests/faults/minority_side.py", str(tmp_path_factory.mktemp("stand"))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False, env=with_tests()
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.moving(2)
@pytest.mark.parametrize("which", ["local", "remote"])
@pytest.mark.parametrize("level", ["prefix", "eventual", "session"])
def test_weaker_reads_go_on(seen, which, level):
    assert seen["cut"][which][level][:2] == ["ok", 1]


@pytest.mark.parametrize("which", ["local", "remote"])
def test_a_strong_read_says_that_it_cannot_within_the_timeout(seen, which):
    name, definite, seconds = seen["cut"][which]["strong"]
    assert (name, definite) == ("Unavailable", True)
    assert seconds < TIMEOUT_S + SLACK_S


@pytest.mark.parametrize("which", ["local", "remote"])
def test_a_bounded_read_says_how_stale_it_would_be(seen, which):
    name, definite, _ = seen["cut"][which]["bounded"]
    assert (name, definite) == ("TooStale", True)


@pytest.mark.parametrize("which", ["local", "remote"])
def test_a_write_ends_with_an_error(seen, which):
    name, _, _ = seen["cut"][which]["write"]
    assert name in {"Unavailable", "Timeout", "AppendUnknown"}


@pytest.mark.parametrize("when", ["before", "healed"])
@pytest.mark.parametrize("which", ["local", "remote"])
def test_all_is_well_before_and_after(seen, which, when):
    assert [seen[when][which][level][:2] for level in ("strong", "session", "prefix")] == [["ok", 1]] * 3
