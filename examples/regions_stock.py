"""Stock that is sold from two data centers at once, also while they are cut off, and never below zero.

python examples/regions_stock.py [SPACE]
"""

import sys
import tempfile

import onefold as of
from onefold.testing import links


def sell(stock: of.Counters, sku: str, pieces: int) -> int:
    """Sell one at a time until this region may take no more; how many were sold."""
    for sold in range(pieces):
        try:
            stock.add(sku, -1)
        except of.BelowFloor as error:
            print(f"{error.here} may be sold here, and {error.value} are left as far as is known here")
            return sold
    return pieces


def main(space: str) -> None:
    with (
        of.connect(space, region="eu", timeout="2s") as eu,
        of.connect(space, region="us", timeout="2s") as us,
    ):
        at_eu, at_us = eu.counters("stock", floor=0), us.counters("stock", floor=0)
        at_eu.add("teapot", 10)  # who adds has the right to take
        at_eu.move("teapot", 4, to="us")
        us.sync()
        print("eu may sell", at_eu.here("teapot"), "and us", at_us.here("teapot"), "by itself")

        links.cut(space, "eu", "us")
        print("cut off: eu sold", sell(at_eu, "teapot", 3))
        print("cut off: us sold", sell(at_us, "teapot", 6))  # us asks eu for more, and gets no answer

        links.heal(space)
        print("healed: us sold", sell(at_us, "teapot", 2))  # now eu gives some of its own
        eu.sync()
        print("left:", at_eu.get("teapot"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
