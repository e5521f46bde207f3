"""Count words over real text: Python's own documentation and library, which every Python has.

python examples/word_count.py [SPACE]
"""

import sys
import sysconfig
import tempfile

import polars as pl

import onefold as of
from onefold import agg


def main(space: str) -> None:
    library = sysconfig.get_path("stdlib")
    with of.connect(space) as db:
        words = (
            db.read_text([f"{library}/*.py", f"{library}/pydoc_data/*.py"], errors="replace")
            .select(pl.col("line").str.to_lowercase().str.extract_all(r"[a-z]{4,}").alias("word"))
            .explode("word")
            .group_by("word")
            .agg(n=agg.count())
            .into("word_counts")
        )
        run = words.run()  # live on a terminal; the table can be read meanwhile, from here or another process
        table = run.result()

        progress = run.progress()
        print(f"{len(table)} words in {progress.rows} lines, {progress.total} tasks")
        for word, n in table.top(10, by="n").iter_rows():
            print(f"{n:8} {word}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else scratch)
