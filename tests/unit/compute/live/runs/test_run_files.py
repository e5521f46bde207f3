"""Run files: what was written is read, with its lanes; what is damaged is refused."""

from __future__ import annotations

import polars as pl
import pytest

import onefold as of
from onefold.compute.live.runs import run_file
from onefold.compute.live.runs.rows import ADD, LANE, with_lanes, with_operation
from onefold.compute.live.runs.run_file import decode_run, encode_run, read_footer
from onefold.state.fold.live.lanes import numbers_of


def run(rows: int, lanes: int = 64) -> pl.DataFrame:
    frame = pl.DataFrame(
        {"k": pl.arange(0, rows, eager=True), "n:n": pl.arange(0, rows, dtype=pl.UInt64, eager=True)}
    )
    return with_operation(with_lanes(frame, ["k"], lanes), ADD).sort(LANE, "k")


def test_a_run_comes_back_exactly() -> None:
    frame = run(1000)
    data = encode_run(frame)
    found, _ = decode_run(data)
    assert found.equals(frame)
    assert found.schema == frame.schema
    footer = read_footer(data)
    assert footer.rows == 1000
    assert dict(footer.lanes) == dict(frame[LANE].value_counts().iter_rows())


@pytest.mark.parametrize("lanes", [1, 7, 64, 1024])
def test_a_run_of_several_blocks_tells_its_lanes(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "BLOCK_ROWS", 50)
    frame = run(1000, lanes)
    data = encode_run(frame)
    found, there = decode_run(data)
    assert found.equals(frame)
    assert list(numbers_of(there)) == frame[LANE].unique().sort().to_list()
    assert len(read_footer(data).blocks) == 20


def test_an_empty_run_has_its_columns() -> None:
    frame = run(0)
    found, there = decode_run(encode_run(frame))
    assert found.schema == frame.schema
    assert there == 0


@pytest.mark.parametrize("keep", [0, 1, 8, 20, -1])
def test_a_run_that_is_cut_short_is_refused(keep: int) -> None:
    data = encode_run(run(100))
    with pytest.raises(of.InvalidValue, match="run of a live job cannot be read"):
        decode_run(data[:keep])
