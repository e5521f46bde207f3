"""Frames that do not compress are cut into pieces; only a row that is too large by itself is refused, with all the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.state.streams import frames as stream_frames


def noise(rows: int) -> pl.DataFrame:
    drawn = np.random.default_rng(rows)
    return pl.DataFrame({"a": drawn.random(rows), "b": drawn.random(rows)})


@pytest.mark.parametrize("rows", [60_000, 100_000, 300_000])
def test_noise_without_a_key(tmp_path: Path, rows: int) -> None:
    frame = noise(rows)
    pieces = list(stream_frames.cut_frame(frame, None))
    assert sum(count for count, _ in pieces) == rows
    assert max(len(data) for _, data in pieces) <= config.VALUE_BYTES_MAX
    with of.connect(tmp_path / "space") as db:
        db.stream("s").append_many(frame)
        back = pl.concat(
            part.select("_partition", "_offset", "a", "b") for part in db.stream("s").read_frames()
        )
        assert back.sort("_partition", "_offset").select("a", "b").equals(frame)
    assert pl.concat(stream_frames.decode_frame(data)[1] for _, data in pieces).equals(frame)


def test_one_row_that_is_too_large_refuses_all(tmp_path: Path) -> None:
    large = np.random.default_rng(1).bytes(config.VALUE_BYTES_MAX + 1)
    frame = pl.DataFrame({"v": [b"small"] * 50 + [large] + [b"small"] * 50})
    with of.connect(tmp_path / "space") as db:
        stream = db.stream("s")
        stream.append({"v": 1})
        with pytest.raises(of.TooLarge, match="a row takes"):
            stream.append_many(frame)
        assert [record.value for record in stream.read()] == [{"v": 1}]
