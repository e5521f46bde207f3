"""What a path, a directory or a glob stands for, and the errors for those that stand for nothing."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import pytest

from onefold.compute import sources
from onefold.errors import InvalidArgument


def listed(kind: str, paths: object, base: Path) -> list[str]:
    source = sources.make_source(kind, paths)  # type: ignore[arg-type]
    return [os.path.relpath(info.path, base) for info in sources.listing.list_files(source)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.txt",
        "b.csv",
        "sub/c.txt",
        "sub/deep/d.txt",
        ".hid/e.txt",
        "_x/f.csv",
        "sub/.g.txt",
        "s p/é[1].txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x,y\n1,2\n")
    return tmp_path


def test_directories(tree: Path) -> None:
    every = sorted(os.path.relpath(p, tree) for p in tree.rglob("*") if p.is_file())
    assert sorted(listed("text", tree, tree)) == every
    assert sorted(listed("files", [tree], tree)) == every
    assert listed("csv", tree, tree) == ["b.csv"]


@pytest.mark.parametrize(
    "pattern",
    [
        "*.txt",
        "**/*.txt",
        "*/*.txt",
        "**",
        "sub/**",
        "**/deep/*",
        "[ab].*",
        "?.txt",
        "sub/*/d.txt",
        "**/**/d.txt",
        ".hid/*",
        "s p/*",
    ],
)
def test_globs_mean_what_they_mean_in_python(tree: Path, pattern: str) -> None:
    expected = {
        p
        for p in glob.glob(str(tree / pattern), recursive=True)  # noqa: PTH207
        if Path(p).is_file()
    }
    assert listed("text", str(tree / pattern), tree) == sorted(os.path.relpath(p, tree) for p in expected)


def test_real_names_with_glob_characters(tree: Path) -> None:
    assert listed("text", tree / "s p" / "é[1].txt", tree) == ["s p/é[1].txt"]
    assert sources.resolve(sources.make_source("text", str(tree / "s p" / "é[1].txt"))).files[0].size == 8


def test_each_file_once_and_sorted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    paths = [
        "sub",
        "./sub/../a.txt",
        str(tree / "*.txt"),
        "sub/c.txt",
        f"file://{tree}/a.txt",
        "sub/**/*.txt",
    ]
    assert listed("text", paths, tree) == ["a.txt", "sub/.g.txt", "sub/c.txt", "sub/deep/d.txt"]


def test_file_urls_are_unquoted(tree: Path) -> None:
    assert listed("text", (tree / "s p" / "é[1].txt").as_uri(), tree) == ["s p/é[1].txt"]
    with pytest.raises(InvalidArgument, match="names the host"):
        sources.make_source("text", "file://elsewhere/x")


def test_links(tree: Path) -> None:
    (tree / "loop").symlink_to(tree)
    (tree / "sub" / "up").symlink_to(tree / "sub")
    (tree / "dangling").symlink_to(tree / "nowhere")
    (tree / "self").symlink_to(tree / "self")
    (tree / "link.txt").symlink_to(tree / "a.txt")
    found = listed("text", tree, tree)
    assert "link.txt" in found and len(found) == 9
    assert listed("text", str(tree / "**" / "*.txt"), tree) == [
        "a.txt", "link.txt", "s p/é[1].txt", "sub/c.txt", "sub/deep/d.txt",
    ]  # fmt: skip
    assert listed("text", tree / "loop" / "sub", tree) == [
        "loop/sub/.g.txt",
        "loop/sub/c.txt",
        "loop/sub/deep/d.txt",
    ]
    with pytest.raises(InvalidArgument, match=r"no such file or directory.*dangling"):
        listed("text", tree / "dangling", tree)
    with pytest.raises(InvalidArgument, match=r"cannot read.*self"):
        listed("text", tree / "self", tree)


def test_nothing_there(tree: Path) -> None:
    for path, message in (
        (tree / "nope.txt", r"no such file or directory: .*nope.txt"),
        (tree / "a.txt" / "x", "no such file or directory"),
        (tree / "*.nope", r"no file matches .*\*\.nope"),
        (tree / "nope" / "**", "no file matches"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            listed("text", path, tree)
    (tree / "empty").mkdir()
    with pytest.raises(InvalidArgument, match=r"no files in the directory .*empty"):
        listed("text", tree / "empty", tree)
    with pytest.raises(InvalidArgument, match=r"no \*\.parquet/\*\.pq files in the directory"):
        listed("parquet", tree, tree)


def test_special_files(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    assert "pipe" not in listed("text", tree, tree)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        listed("text", tree / "pipe", tree)


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
def test_permissions() -> None:
    """In a process of its own that gives up root, since root may read everything; so in a folder that others may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret.txt").write_text("x")
        (folder / "secret.txt").chmod(0)
        (folder / "closed").mkdir(mode=0)
        program = """
import os, sys
from onefold.compute import sources
from onefold.errors import InvalidArgument
import onefold.compute.sources.listing as listing
os.geteuid() == 0 and os.setuid(65534)
for path in sys.argv[1:]:
    try:
        listing.list_files(sources.make_source("text", path))
    except InvalidArgument as error:
        print(error)
"""
        names = [str(folder / "secret.txt"), str(folder / "closed"), str(folder / "*.txt")]
        done = subprocess.run(
            [sys.executable, "-c", program, *names], capture_output=True, text=True, check=True
        )
        assert done.stdout.count("permission denied") == 3, done
        assert "secret.txt" in done.stdout and "closed" in done.stdout
        (folder / "closed").chmod(0o755)


def test_files_kind(tree: Path) -> None:
    source = sources.make_source("files", [tree / "a.txt", tree / "sub"])
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1, min_units=100)
    assert len(units) == 4 and all(u.start == 0 and u.stop == u.size for u in units)
    frame = sources.scan(source, resolved.schema, units)
    assert frame.collect_schema() == pl.Schema({"path": pl.String, "size": pl.Int64, "data": pl.Binary})
    for path, size, data in frame.collect().rows():
        assert (Path(path).stat().st_size, Path(path).read_bytes()) == (size, data)
    (tree / "a.txt").unlink()
    assert frame.select("path").collect().height == 4  # names need no reading
    assert [b.height for b in sources.batches(source, resolved.schema, units[1], 10)] == [1]
    assert sources.locate(source, units[1], 0).endswith("sub/.g.txt")


def test_memory_urls_are_refused() -> None:
    for url in ("memory://x/y.csv", "simplecache::memory://x"):
        with pytest.raises(InvalidArgument, match="other processes"):
            sources.make_source("csv", url)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(InvalidArgument, match=r'pip install "onefold\[s3\]"'):
        sources.resolve(sources.make_source("text", "s3://bucket/x.txt"))
    with pytest.raises(InvalidArgument, match="nosuch"):
        sources.resolve(sources.make_source("text", "nosuch://bucket/x.txt"))


def test_importing_is_light() -> None:
    program = "import sys, onefold.compute.sources; print([m for m in ('polars', 'numpy', 'fsspec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
