"""Python functions of every kind on real files, the standard library's own sources, against ``collections.Counter``."""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import subprocess
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

import onefold as of
from onefold import agg
from support import parts

SOURCES = sorted(Path(sysconfig.get_path("stdlib"), "asyncio").glob("*.py"))
PATTERN = re.compile(r"[A-Za-z_]\w*")
KEYWORDS = {"def", "class", "return", "self"}


def lines() -> list[str]:
    return [line for path in SOURCES for line in path.read_text(encoding="utf-8").split("\n")]


@functools.cache
def expected() -> Counter[str]:
    return Counter(word for line in lines() for word in PATTERN.findall(line))


@functools.cache
def without_keywords() -> Counter[str]:
    return Counter({word: n for word, n in expected().items() if word not in KEYWORDS})


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as opened:
        yield opened


def count(dataset: of.Dataset, workers: int = 1) -> Counter[str]:
    job = dataset.group_by("value").agg(n=agg.count()).into("words")
    table = job.run(progress=False, workers=workers, target_splits=4).result()
    return Counter(dict(table.to_polars().iter_rows()))


@dataclass(frozen=True)
class Words:
    """A callable object with state."""

    pattern: re.Pattern[str]
    leave_out: frozenset[str] = frozenset()

    def __call__(self, record: dict[str, str]) -> list[str]:
        return [word for word in self.pattern.findall(record["line"]) if word not in self.leave_out]

    def method(self, record: dict[str, str]) -> list[str]:
        return self(record)


def generator(record: dict[str, str]) -> Iterator[str]:
    yield from PATTERN.findall(record["line"])


async def coroutine(record: dict[str, str]) -> list[str]:
    import asyncio

    await asyncio.sleep(0)
    return PATTERN.findall(record["line"])


async def stream(record: dict[str, str]) -> AsyncIterator[str]:
    for word in PATTERN.findall(record["line"]):
        yield word


def filtered(pattern: str, leave_out: set[str], record: dict[str, str]) -> list[str]:
    return [word for word in re.findall(pattern, record["line"]) if word not in leave_out]


def closure() -> Callable[[dict[str, str]], list[str]]:
    settings, leave_out = Words(PATTERN), set(KEYWORDS)

    def words(record: dict[str, str]) -> list[str]:
        return [word for word in settings(record) if word not in leave_out]

    return words


ALL: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda record: re.findall(r"[A-Za-z_]\w*", record["line"]),
    "generator": generator,
    "coroutine": coroutine,
    "callable object": Words(PATTERN),
    "bound method": Words(PATTERN).method,
}
SOME: dict[str, Callable[[Any], Any]] = {
    "closure over a set and a dataclass": closure(),
    "partial": functools.partial(filtered, r"[A-Za-z_]\w*", KEYWORDS),
    "callable object with a set": Words(PATTERN, frozenset(KEYWORDS)),
}


@pytest.mark.parametrize("name", ALL)
def test_functions(db: of.Database, name: str) -> None:
    assert count(db.read_text(SOURCES).flat_map(ALL[name])) == expected()


def test_an_async_generator_is_refused_at_once(db: of.Database) -> None:
    with pytest.raises(of.InvalidArgument, match="async generator"):
        db.read_text(SOURCES).flat_map(stream)


@pytest.mark.parametrize("name", SOME)
def test_functions_with_state(db: of.Database, name: str) -> None:
    assert count(db.read_text(SOURCES).flat_map(SOME[name]), workers=2) == without_keywords()


def test_bare_values_go_from_function_to_function(db: of.Database) -> None:
    data = db.read_text(SOURCES).flat_map(generator).map(str.upper).map(lambda word: {"value": word})
    found = count(data.flat_map(lambda record: [record["value"].lower()]))
    lowered: Counter[str] = Counter()
    for word, n in expected().items():
        lowered[word.lower()] += n
    assert found == lowered


def test_map_batches(db: of.Database) -> None:
    def words(frame: pl.DataFrame) -> pl.DataFrame:
        return (
            frame.select(value=pl.col("line").str.extract_all(PATTERN.pattern)).explode("value").drop_nulls()
        )

    assert count(db.read_text(SOURCES).map_batches(words, batch_rows=500)) == expected()


@pytest.mark.parametrize("kind", ["gz", "zst", "mixed"])
def test_packed_files(db: of.Database, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, path in enumerate(SOURCES):
        data = path.read_bytes()
        packer = kind if kind != "mixed" else ("gz", "zst", "plain")[number % 3]
        match packer:
            case "gz":
                (folder / f"{path.name}.gz").write_bytes(gzip.compress(data))
            case "zst":
                target = io.BytesIO()
                with zstandard.ZstdCompressor().stream_writer(target, closefd=False) as writer:
                    writer.write(data)
                (folder / f"{path.name}.zst").write_bytes(target.getvalue())
            case _:
                (folder / path.name).write_bytes(data)
    words = db.read_text(folder).select(value=pl.col("line").str.extract_all(PATTERN.pattern))
    assert count(words.explode("value")) == expected()


def test_inverted_index(db: of.Database) -> None:
    """Which files an identifier is in: the classic map_reduce."""

    def identifiers(record: dict[str, str]) -> Iterator[tuple[str, str]]:
        for word in set(PATTERN.findall(record["line"])):
            yield word, record["file"].rsplit("/", 1)[-1]

    def files(key: str, values: Any) -> list[str]:
        return sorted(set(values))

    index: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for word in PATTERN.findall(path.read_text(encoding="utf-8")):
            index[word].add(path.name)
    data = db.read_text(SOURCES, include_file_paths="file")
    found = db.map_reduce(data, map=identifiers, reduce=files, into="index", target_splits=5).result()
    assert {key: set(names) for key, names in found.to_polars().iter_rows()} == index
    assert found.get("Future")["value"] == sorted(index["Future"])  # type: ignore[index]


PROGRAM = """
import dataclasses, json, os, re, sys
import onefold as of
from onefold import agg
import helper
from parts.words import Split

@dataclasses.dataclass
class Options:
    least: int

OPTIONS = Options(least=3)
STOP = {"self", "def"}

def long_enough(word):
    return len(word) >= OPTIONS.least and word not in STOP

def words(record):
    return [helper.mark(word) for word in Split()(record["line"]) if long_enough(word)]

db = of.connect(os.environ["SPACE"])
job = db.read_text(os.environ["INPUT"] + "/*.py").flat_map(words).group_by("value").agg(n=agg.count()).into("t")
run = job.run(progress=False, workers=2)
progress = run.progress()
print(json.dumps([dict(run.result().to_polars().iter_rows()), progress.reused, progress.total]))
db.close()
"""


def project(folder: Path) -> Path:
    """A program with a module beside it and a package; its workers cannot import either by chance."""
    (folder / "parts").mkdir(parents=True)
    (folder / "program.py").write_text(PROGRAM)
    (folder / "helper.py").write_text("PREFIX = '<'\n\ndef mark(word):\n    return PREFIX + word\n")
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "__main__.py").write_text(PROGRAM)
    (folder / "parts" / "words.py").write_text(
        "import re\nfrom .rules import PATTERN\n\nclass Split:\n"
        "    def __call__(self, line):\n        return re.findall(PATTERN, line)\n"
    )
    (folder / "parts" / "rules.py").write_text('PATTERN = r"[A-Za-z_]\\w*"\n')
    return folder


CONSOLE = """
import code, sys
console = code.InteractiveConsole({"__name__": "__main__"})
block = ""
for line in open("program.py").read().split("\\n"):
    if block and line and not line.startswith((" ", "class")):
        console.runsource(block, "<console>", "exec")
        block = ""
    block += line + "\\n"
console.runsource(block, "<console>", "exec")
"""
NOTEBOOK = """
import sys, types
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
for number, cell in enumerate(open("program.py").read().split("\\n\\n")):
    exec(compile(cell, f"<cell {number}>", "exec"), main.__dict__)
"""
WAYS = {
    "script": ["program.py"],
    "-c": ["-c", PROGRAM],
    "-m package": ["-m", "parts"],
    "-m module": ["-m", "program"],
    "console": ["-c", CONSOLE],
    "notebook": ["-c", NOTEBOOK],
}


def test_programs_without_a_guard_however_they_are_started(tmp_path: Path) -> None:
    """Compiled whole, they name their tasks alike: in a shared space all but the first find the work done."""
    folder = project(tmp_path / "project")
    wanted = {
        "<" + word: n for word, n in expected().items() if len(word) >= 3 and word not in ("self", "def")
    }
    for way, arguments in [("script", WAYS["script"]), *parts.todays([*WAYS.items()][1:], 3)]:
        for number, space in enumerate((tmp_path / way.replace(" ", "_"), tmp_path / "shared")):
            environment = {"SPACE": str(space), "INPUT": str(SOURCES[0].parent), "PATH": "/usr/bin:/bin"}
            ended = subprocess.run(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert ended.returncode == 0 and ended.stdout.count("\n") == 1, (way, ended.stderr)
            counts, reused, total = json.loads(ended.stdout)
            assert counts == wanted, way
            if way in ("console", "notebook"):
                continue  # statement by statement Python compiles calls into modules otherwise
            assert reused == (total if number == 1 and way != "script" else 0), (way, number)
