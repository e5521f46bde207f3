"""A counter with a floor sold by processes of several regions of a folder, whose links are cut and heal meanwhile."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import onefold as of
from onefold.testing import links

SELL = """
import sys
import onefold as of

folder, region, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
import random
rng, sold = random.Random(seed), 0
with of.connect(folder, region=region, timeout="2s") as db:
    stock = db.counters("stock", floor=0)
    while True:
        n = rng.choice((1, 1, 2, 5))
        try:
            stock.add("s", -n)
            sold += n
        except of.BelowFloor as error:
            assert error.definite
            break
print(sold)
"""


def test_processes_of_all_regions_sell_what_there_is_and_no_more(tmp_path: Path) -> None:
    rng = random.Random(7)
    folder = tmp_path / "shop"
    names = ("eu", "us", "ap")
    with (
        of.connect(folder, region="eu") as eu,
        of.connect(folder, region="us") as us,
        of.connect(folder, region="ap") as ap,
    ):
        eu.counters("stock", floor=0).add("s", 200)
        us.counters("stock", floor=0).add("s", 30)
        eu.sync("60s")
        commands = [
            [sys.executable, "-c", SELL, str(folder), name, str(n)] for n in range(2) for name in names
        ]
        sellers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        try:
            while any(seller.poll() is None for seller in sellers):
                links.cut(folder, *rng.sample(names, 2))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    sellers[-1].wait(0.05)
                if rng.random() < 0.5:
                    links.heal(folder)
            outputs = [seller.communicate(timeout=120) for seller in sellers]
        finally:
            for seller in sellers:
                seller.kill()
                seller.wait()
        assert [seller.returncode for seller in sellers] == [0] * len(sellers), outputs
        sold = sum(int(out) for out, _ in outputs)
        links.heal(folder)
        for database in (eu, us, ap):
            database.sync("60s")
        left = [database.counters("stock", floor=0).get("s") for database in (eu, us, ap)]
        assert left == [230 - sold] * 3
        if left[0]:
            assert ap.counters("stock", floor=0).add("s", -left[0]) == 0
