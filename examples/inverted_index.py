"""A classic MapReduce: which files of Python's library use a word? Any Python function maps, any reduces.

python examples/inverted_index.py [SPACE]
"""

import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onefold as of


def words_of(file: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each word of a file once, with the file's name."""
    path = Path(file["path"])
    name = f"{path.parent.name}/{path.name}"
    for word in set(re.findall(r"[a-z_]{3,}", file["data"].decode("utf-8", "replace").lower())):
        yield word, name


def files_of(_word: str, names: Iterable[str]) -> list[str]:
    """All files with the word, in order."""
    return sorted(names)


def main(space: str) -> None:
    library = sysconfig.get_path("stdlib")
    with of.connect(space) as db:
        files = db.read_files(
            [f"{library}/{package}/*.py" for package in ("asyncio", "email", "http", "json")]
        )
        run = db.map_reduce(files, map=words_of, reduce=files_of, into="index")
        index = run.result()

        print(f"{len(index)} words")
        for word in ("cookie", "deadline", "surrogateescape"):
            row = index.get(word)
            print(f"{word}: {', '.join(row['value']) if row else 'nowhere'}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else scratch)
