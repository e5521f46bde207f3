"""Backups, restores and the doctor know the blobs of large frames."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import onefold as of
from onefold import config
from onefold.backup.backup import backup, restore
from onefold.cli.app import app
from onefold.doctor.embedded import Check, check_blobs
from onefold.folds import all_blob_tables, blob_tables, folds


@pytest.fixture(autouse=True)
def most_frames_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 20_000)


def noise(seed: int = 1) -> pl.DataFrame:
    return pl.DataFrame({"v": np.random.default_rng(seed).random(4000)})


def checks(db: of.Database, *, fix: bool = False, deep: bool = False) -> dict[str, Any]:
    return {check.name: check for check in check_blobs(db._shards, all_blob_tables(), fix=fix, deep=deep)}  # type: ignore[arg-type]


def read(db: of.Database) -> pl.DataFrame:
    return db.stream("s").to_polars().select("v")


def test_a_restored_space_has_them(tmp_path: Path) -> None:
    with of.connect(tmp_path / "a") as db:
        db.stream("s").append_many(noise())
        at_ms = db._shard.env.wall_ms()
        time.sleep(0.01)
        db.stream("s").append_many(noise(2))
        made = backup(db._shards, tmp_path / "b", blob_tables=blob_tables())
        assert sum(name.startswith("blobs/") for name in made.files) == 2 and not made.missing_blobs
    whole, before = tmp_path / "c", tmp_path / "d"
    assert not restore(tmp_path / "b", whole, folds, blob_tables=blob_tables()).missing_blobs
    assert not restore(tmp_path / "b", before, folds, to_ms=at_ms, blob_tables=blob_tables()).missing_blobs
    with of.connect(whole) as db:
        assert read(db).equals(pl.concat([noise(), noise(2)])) and checks(db)["blobs"].status == "ok"
    with of.connect(before) as db:
        assert read(db).equals(noise())


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("as_json", [False, True])
def test_backups_and_restores_name_the_records_that_are_lost(tmp_path: Path, how: str, as_json: bool) -> None:
    space, kept, again = (str(tmp_path / name) for name in ("a", "b", "c"))
    with of.connect(space, shards=2) as db:
        stream = db.stream("s", partitions=3)
        stream.append(1, key="k")
        at = stream.append_many(noise().with_columns(k=pl.lit("k")), key="k").offsets
        ((partition, _),) = at.items()
        (name,) = db._engine.blobs.names()
        lose(db, name, how)
    called = ["--json"] if as_json else []
    for result in (
        CliRunner().invoke(app, ["backup", "--url", space, kept, *called]),
        CliRunner().invoke(app, ["restore", "--url", again, kept, *called]),
    ):
        assert result.exit_code == 1, result.output
        assert f"stream 's', partition {partition}, offsets 1 to 4000: lost" in result.output
        assert (name in result.output) == as_json
    with of.connect(again) as db:
        assert len(db.stream("s")) == 4001


def lose(db: of.Database, name: str, how: str) -> None:
    path = db._engine.blobs.path(name)
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "damaged":
        data[-20] ^= 1
        path.write_bytes(data)


def test_the_doctor_says_what_is_missing_and_removes_what_nothing_names(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").append_many(noise())
        (name,) = db._engine.blobs.names()
        left = db._engine.blobs.put(b"1FF" + bytes(13) + b"a frame whose writer died")
        assert checks(db, fix=True)["orphans"].status == "ok" and db._engine.blobs.exists(left)
        for blob in (name, left):
            os.utime(db._engine.blobs.path(blob), (time.time() - config.ORPHAN_BLOB_AGE_S - 60,) * 2)
        assert checks(db)["orphans"].status == "warn"
        assert checks(db, fix=True)["orphans"].status == "ok" and not db._engine.blobs.exists(left)
        assert read(db).equals(noise())
        db._engine.blobs.delete(name)
        found = checks(db)["blobs"]
        assert found.status == "problem" and "large records of streams" in found.found


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_the_doctor_names_the_records_that_are_lost(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path, shards=2) as db:
        db.stream("s").append(1)
        db.stream("s").append_many(noise())
        (name,) = db._engine.blobs.names()
        assert checks(db)["blobs"].found.endswith("are there, and whole")
        lose(db, name, how)
        found = checks(db)["blobs"]
        assert found.status == "problem" and f"({how})" in found.found
        assert "stream 's', partition 0, offsets 1 to 4000" in found.found and "backup" in found.advice
        if how == "damaged":
            monkeypatch.setattr(config, "DOCTOR_BLOBS_BYTES_MAX", 1000)
            found = checks(db)["blobs"]
            assert found.status == "ok" and "1 (0 MB) was not compared (use --deep)" in found.found
            assert checks(db, deep=True)["blobs"].status == "problem"


def test_the_doctor_of_a_cluster_says_that_it_did_not_look_at_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onefold.cli.cluster.describing.cluster_url", lambda _: "nats://here")
    monkeypatch.setattr("onefold.doctor.cluster.examine", lambda *_, **__: iter(()))
    for check in ("_nodes", "_nodes_only"):
        monkeypatch.setattr(
            f"onefold.cli.cluster.describing.{check}", lambda *_: Check("nodes", "ok", "well")
        )
    with of.connect(tmp_path) as db:
        db.stream("s").append_many(noise())
        (name,) = db._engine.blobs.names()
        lose(db, name, "missing")
    found = CliRunner().invoke(app, ["doctor", "--url", str(tmp_path)])
    assert found.exit_code == 0 and "blobs: not looked at (use --deep)" in found.output
    assert "all that was looked at is well; skipped: blobs" in found.output
    found = CliRunner().invoke(app, ["doctor", "--deep", "--url", str(tmp_path)])
    assert found.exit_code == 1 and "stream 's', partition 0, offsets 0 to 3999" in found.output
