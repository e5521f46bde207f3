"""Likes that are counted in two data centers: no addition is lost, and none is counted twice.

python examples/regions_likes.py [SPACE]
"""

import sys
import tempfile

import onefold as of
from onefold.testing import links


def main(space: str) -> None:
    with of.connect(space, region="eu") as eu, of.connect(space, region="us") as us:
        at_eu, at_us = eu.counters("likes"), us.counters("likes")
        links.cut(space, "eu", "us")
        for visitor in range(30):
            # With a request id a repeat counts once, though the answer to the first try was lost.
            at_eu.add("song", request_id=f"eu-{visitor}")
            at_eu.add("song", request_id=f"eu-{visitor}")
        at_us.add("song", 12)
        print("cut off: eu counts", at_eu.get("song"), "and us counts", at_us.get("song"))

        links.heal(space)
        eu.sync()
        us.sync()
        print("healed:", at_eu.get("song"), "and", at_us.get("song"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
