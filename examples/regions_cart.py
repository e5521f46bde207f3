"""A cart that two data centers change while they are cut off from each other: nothing that was put in is lost.

python examples/regions_cart.py [SPACE]
"""

import sys
import tempfile
from collections.abc import Sequence

import onefold as of
from onefold.testing import links

Cart = dict[str, int]


def together(carts: Sequence[Cart]) -> Cart:
    """Of each thing as many as the fullest cart has. It is called when reading, and gives the same for any order."""
    names = sorted({name for cart in carts for name in cart})
    return {name: max(cart.get(name, 0) for cart in carts) for name in names}


def main(space: str) -> None:
    with of.connect(space, region="eu") as eu, of.connect(space, region="us") as us:
        at_eu = eu.map("carts", mode="available", merge=together)
        at_us = us.map("carts", mode="available", merge=together)
        at_eu["alice"] = {"tea": 1}
        us.sync()  # everything that eu has acknowledged is here
        print("us sees", at_us["alice"])

        links.cut(space, "eu", "us")
        at_eu["alice"] = {"tea": 1, "milk": 2}
        at_us["alice"] = {"tea": 3}
        print("cut off: eu has", at_eu["alice"], "and us has", at_us["alice"])

        links.heal(space)
        eu.sync()
        us.sync()
        item = at_us.get_item("alice")
        assert item is not None
        assert item.siblings is not None
        print("healed:", len(item.siblings), "carts are kept, and read as", at_us["alice"])
        assert at_eu["alice"] == at_us["alice"]

        at_us["alice"] = at_us["alice"]  # replaces all that us holds: one cart again
        eu.sync()
        item = at_eu.get_item("alice")
        assert item is not None
        assert item.siblings is not None
        print("put again:", len(item.siblings), "cart,", at_eu["alice"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
