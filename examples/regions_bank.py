"""Accounts of a bank: a consistent map and transactions. What happens to money in an available map is shown too.

python examples/regions_bank.py [SPACE]
"""

import sys
import tempfile

import onefold as of
from onefold.testing import links


def withdraw(db: of.Database, amount: int) -> str:
    """From a consistent map: what was read still holds when the transaction commits, in whatever region others write."""

    def attempt(tx: of.Transaction) -> str:
        accounts = tx.map("accounts")
        if accounts["alice"] < amount:
            return "refused"
        accounts["alice"] -= amount
        return "paid"

    return db.run_transaction(attempt)


def withdraw_wrongly(db: of.Database, amount: int) -> str:
    """From an available map: a check of what this region knows, which says nothing of the others."""
    accounts = db.map("wrong", mode="available")
    if accounts["alice"] < amount:
        return "refused"
    accounts["alice"] -= amount
    return "paid"


def main(space: str) -> None:
    with of.connect(space, region="eu") as eu, of.connect(space, region="us") as us:
        eu.map("accounts")["alice"] = 100
        eu.map("wrong", mode="available")["alice"] = 100
        us.sync()

        links.cut(
            space, "eu", "us"
        )  # consistent collections have a majority, on one side; here both sides reach it
        print("consistent:", withdraw(eu, 80), withdraw(us, 80), eu.map("accounts")["alice"], "left")
        print("available:", withdraw_wrongly(eu, 80), withdraw_wrongly(us, 80))

        links.heal(space)
        eu.sync()
        print("healed:", eu.map("wrong", mode="available")["alice"], "left of 100, after 160 were paid")

        try:
            with eu.transaction() as tx:
                tx.map("accounts")["alice"] -= 1
                tx.map("wrong", mode="available")["alice"] = 0
        except of.TransactionError as error:
            print(type(error).__name__, "for both kinds in one transaction; nothing was written")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
