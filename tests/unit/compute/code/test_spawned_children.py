"""Jobs of children that multiprocessing starts: their functions travel and are named as those of the program itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import dataclasses, multiprocessing, os, sys
import msgspec
import onefold as of
from onefold import agg
from onefold.compute.code import identity

OFFSET = 10

@dataclasses.dataclass
class Point:
    i: "int"

class Row(msgspec.Struct):
    i: "int"

def shifted(record):
    return dataclasses.asdict(Point(Row(record["i"] + OFFSET).i))

def work(folder, digests):
    os.chdir(folder)
    with of.connect("space") as db:
        job = db.read_csv("a.csv").map(shifted).group_by().agg(s=agg.sum("i")).into("t")
        run = job.run(progress=False, workers=1)
        assert run.result().to_polars().rows() == [(145,)]
        fresh = db.read_csv("a.csv").map(shifted).group_by().agg(s=agg.sum("i")).into(f"of_{os.getpid()}")
        assert fresh.run(progress=False, workers=1).result().to_polars().rows() == [(145,)]
        with open(digests, "a") as file:
            file.write(f"{run.progress().reused}\\n")

if __name__ == "__main__":
    folder = sys.argv[1]
    work(folder, folder + "/reused")
    for method in sys.argv[2:]:
        child = multiprocessing.get_context(method).Process(target=work, args=(folder, folder + "/reused"))
        child.start()
        child.join()
        assert child.exitcode == 0, method
"""


@pytest.mark.moving(2)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_job_in_a_child(tmp_path: Path, method: str) -> None:
    (tmp_path / "a.csv").write_text("i\n" + "".join(f"{i}\n" for i in range(10)))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, tmp_path, method], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reused").read_text().split() == ["0", "1"], "the child's task has the same name"
