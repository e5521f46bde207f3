"""Object stores, against a real local S3 server (moto) over HTTP."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from onefold import config
from onefold.compute import sources
from onefold.compute.sources import reading, remote
from onefold.errors import InvalidArgument, InvalidValue

moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def options(server: str) -> dict[str, Any]:
    return {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": server, "region_name": "eu-central-1"},
    }


@pytest.fixture
def bucket(options: dict[str, Any]) -> Iterator[Any]:
    import s3fs

    fs = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    fs.mkdir("data")
    yield fs
    fs.invalidate_cache()
    fs.rm("data", recursive=True)


def prepared(kind: str, url: object, min_units: int, **options: Any):
    source = sources.make_source(kind, url, **options)  # type: ignore[arg-type]
    resolved = sources.resolve(source)
    return source, resolved, sources.units_of(source, resolved, split_bytes=1 << 40, min_units=min_units)


def test_text_in_ranges(bucket: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 1000)
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 700)
    lines = [f"line {i} é" for i in range(1000)]
    bucket.pipe("data/t/a.txt", "\n".join(lines).encode())
    bucket.pipe("data/t/deep/b.txt.gz", gzip.compress(b"packed\n"))
    source, resolved, units = prepared(
        "text", "s3://data/t", 8, storage_options=options, include_file_paths="p"
    )
    assert [f.path for f in resolved.files] == ["s3://data/t/a.txt", "s3://data/t/deep/b.txt.gz"]
    assert len(units) > 5
    frame = sources.scan(source, resolved.schema, units).collect()
    assert frame["line"].to_list() == [*lines, "packed"]
    assert frame["p"][-1] == "s3://data/t/deep/b.txt.gz"
    assert [x for u in units for x in sources.scan(source, resolved.schema, [u]).collect()["line"]] == [
        *lines,
        "packed",
    ]
    assert sources.locate(source, units[0], 16) == "s3://data/t/a.txt: line 17"


def test_csv_jsonl_parquet_files(bucket: Any, options: dict[str, Any]) -> None:
    bucket.pipe("data/a.csv", b'x,y\n1,"a\nb"\n')
    bucket.pipe("data/b.csv", b"x,y\n2,c\n")
    bucket.pipe("data/a.jsonl", b'{"a":1}\n')
    for i in range(2):
        buffer = io.BytesIO()
        pl.DataFrame({"v": range(10)}).write_parquet(buffer, row_group_size=5)
        bucket.pipe(f"data/p/day={i}/x.parquet", buffer.getvalue())
    source, resolved, units = prepared("csv", "s3://data/*.csv", 1, storage_options=options)
    assert sources.scan(source, resolved.schema, units).collect().rows() == [(1, "a\nb"), (2, "c")]
    source, resolved, units = prepared("jsonl", "s3://data/a.jsonl", 1, storage_options=options)
    assert sources.scan(source, resolved.schema, units).collect().rows() == [(1,)]
    source, resolved, units = prepared(
        "parquet", "s3://data/p", 1, storage_options=options, include_file_paths="f"
    )
    frame = sources.scan(source, resolved.schema, units).collect()
    assert frame.schema == pl.Schema({"v": pl.Int64, "day": pl.Int64, "f": pl.String})
    assert frame["v"].to_list() == list(range(10)) * 2
    assert frame["f"].unique().sort().to_list() == [
        "s3://data/p/day=0/x.parquet",
        "s3://data/p/day=1/x.parquet",
    ]
    source, resolved, units = prepared("files", "s3://data/*.csv", 1, storage_options=options)
    assert sources.scan(source, resolved.schema, units).collect()["size"].to_list() == [12, 8]


@pytest.mark.parametrize("native", [True, False])
def test_parquet_range(
    bucket: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """Read by Polars' own S3 client, and downloaded whole where the options mean nothing to it."""
    whole: list[str] = []
    read_all = remote.read_all
    monkeypatch.setattr(remote, "read_all", lambda s, u: whole.append(u) or read_all(s, u))
    if not native:
        options = {**options, "default_cache_type": "none"}
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 10)
    buffer = io.BytesIO()
    pl.DataFrame({"v": range(100)}).write_parquet(buffer, row_group_size=10)
    bucket.pipe("data/x.parquet", buffer.getvalue())
    source, resolved, units = prepared("parquet", "s3://data/x.parquet", 100, storage_options=options)
    assert len(units) == 10
    assert sources.scan(source, resolved.schema, units[3:5]).collect()["v"].to_list() == list(range(30, 50))
    assert (whole == []) == native
    assert [b.height for b in sources.batches(source, resolved.schema, units[0], 4)] == [4, 4, 2]


def test_changed_and_missing(bucket: Any, options: dict[str, Any]) -> None:
    bucket.pipe("data/a.txt", b"one\n")
    source, resolved, units = prepared("text", "s3://data/a.txt", 1, storage_options=options)
    bucket.pipe("data/a.txt", b"two\n")
    with pytest.raises(InvalidValue, match=r"s3://data/a\.txt changed while the job ran"):
        sources.scan(source, resolved.schema, units).collect()
    bucket.rm("data/a.txt")
    with pytest.raises(InvalidValue, match="it is gone"):
        sources.scan(source, resolved.schema, units).collect()
    for url in ("s3://data/nope.txt", "s3://data/*.nope", "s3://nobucket/x"):
        with pytest.raises(InvalidArgument, match=r"no (such )?file"):
            sources.resolve(sources.make_source("text", url, storage_options=options))
