"""The pytest plugin: what a user's tests get, in a pytest of their own."""

import os
import re
import subprocess
import sys

import pytest

RUN_AGAIN = re.compile(r"run it again: pytest '(.*)' (--onefold-seed \d+)")


def run_pytest(folder, text, *options, ini=""):
    (folder / "test_program.py").write_text(text)
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers\n{ini}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "onefold.testing.plugin", *options],
        cwd=folder,
        env=dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


TRANSFERS = """
import onefold as of

def test_transfers(onefold_sim):
    sim = onefold_sim
    sim.setup(lambda db: db.map("accounts").update({"a": 100, "b": 0}))

    def teller(db):
        def move(tx):
            accounts = tx.map("accounts")
            accounts["a"] -= 1
            accounts["b"] += 1
        for _ in range(5):
            db.run_transaction(move)

    sim.clients(2, teller)
    sim.run(faults="all", seconds=20)
    with sim.healed() as db:
        assert sum(db.map("accounts").values()) == 100
"""


def test_a_simulated_test_runs_once_for_each_seed(tmp_path):
    assert "4 passed" in run_pytest(tmp_path, TRANSFERS, "--onefold-seeds", "4")
    assert "2 passed" in run_pytest(tmp_path, TRANSFERS, ini="onefold_seeds = 2")
    assert "1 passed" in run_pytest(tmp_path, TRANSFERS, "--onefold-seed", "17")


def test_a_failure_names_its_seed_and_the_command_that_runs_it_again(tmp_path):
    text = """
def test_it(onefold_sim):
    def program(db):
        onefold_sim.log("here I am")
        if onefold_sim.seed == 3:
            raise ZeroDivisionError("a bug")
    onefold_sim.client(program)
    onefold_sim.run()
"""
    out = run_pytest(tmp_path, text, "--onefold-seeds", "5")
    assert "1 failed, 4 passed" in out
    assert "ZeroDivisionError: a bug" in out
    assert "here I am" in out
    test, seed = RUN_AGAIN.search(out).groups()
    assert "1 failed" in run_pytest(tmp_path, text, test, *seed.split())


def test_an_assertion_of_the_test_itself_comes_with_the_seed_too(tmp_path):
    text = """
def test_it(onefold_sim):
    onefold_sim.run()
    assert onefold_sim.seed != 1
"""
    out = run_pytest(tmp_path, text, "--onefold-seeds", "3")
    assert "1 failed, 2 passed" in out
    assert "failed with seed 1" in out


def test_options_of_the_simulation_are_given_by_a_mark(tmp_path):
    text = """
import pytest

@pytest.mark.onefold(shards=3)
def test_it(onefold_sim):
    assert len(onefold_sim.servers) == 3
"""
    assert "2 passed" in run_pytest(tmp_path, text, "--onefold-seeds", "2")


def test_a_number_of_seeds_that_is_none_is_refused(tmp_path):
    text = "def test_it(onefold_sim): pass"
    assert "1 or more" in run_pytest(tmp_path, text, "--onefold-seeds", "0")
    assert "whole number" in run_pytest(tmp_path, text, ini="onefold_seeds = many")


def test_databases_and_a_clock(tmp_path):
    text = """
def test_each_test_has_an_empty_database(onefold_db):
    assert not onefold_db.map("m")
    onefold_db.map("m")["a"] = 1

def test_again(onefold_db):
    assert not onefold_db.map("m")

def test_time_passes_when_told(onefold_db, onefold_clock):
    m = onefold_db.map("m")
    m.put("a", 1, ttl="1h")
    onefold_clock.advance("59m")
    assert m["a"] == 1
    onefold_clock.advance("2m")
    assert "a" not in m

def test_a_lease_ends(onefold_db, onefold_clock):
    q = onefold_db.queue("q", lease="30s")
    q.put("job")
    first = q.take(timeout=0)
    assert first.value == "job"
    assert q.take(timeout="10s") is None
    assert q.take(timeout="1h").value == "job"
"""
    assert "4 passed" in run_pytest(tmp_path, text)


@pytest.mark.parametrize("module", ["apsw", "msgspec", "polars", "onefold.db", "onefold.testing.sim"])
def test_the_plugin_costs_nothing_to_tests_that_do_not_use_it(tmp_path, module):
    text = f"import sys\ndef test_it(): assert {module!r} not in sys.modules"
    assert "1 passed" in run_pytest(tmp_path, text)
