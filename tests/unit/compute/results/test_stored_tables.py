"""Tables outlive the Python that made them, and one that cannot be read hides no other."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import lru_cache
from pathlib import Path

import msgspec
import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import renames
from onefold.compute.aggregates.base import Aggregate
from onefold.compute.code import functions, trailers
from onefold.compute.code import needs as requirements
from onefold.compute.frames import data_types
from onefold.compute.jobs import state
from onefold.compute.plan import nodes as plan
from onefold.compute.results import aggregate_data, description, earlier
from support.command_line import ask
from support.table_reading import read_all

ASSETS = Path(__file__).parents[3] / "assets"
MADE = sorted(path.name for path in ASSETS.glob("space-*-tables-*"))
HERE = f"{sys.version_info.major}{sys.version_info.minor}"


def unpacked(made: Path, folder: Path) -> tuple[Path, dict]:
    with tarfile.open(made / "space.tar.gz") as archive:
        archive.extractall(folder / "space", filter="data")
    return folder / "space", json.loads((made / "expected.json").read_text())["tables"]


@pytest.fixture(scope="module")
def made_now(tmp_path_factory) -> Path:
    """The same space as this program makes it."""
    folder = tmp_path_factory.mktemp("made") / "space"
    script = Path(__file__).parents[3] / "support" / "space_of_tables.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=120)
    return folder


def plan_of(db, table: str) -> str:
    with db._engine.shard.view() as view:
        return state.read_run(view, state.read_table(view, table).head).plan


@pytest.mark.parametrize("name", MADE)
def test_all_tables_of_the_earlier_release_read(name, tmp_path):
    read_all(*unpacked(ASSETS / name, tmp_path), name[-3:])


def test_there_are_spaces_of_two_pythons():
    assert {name[-3:] for name in MADE} >= {"311", "312"}


# -- under the other interpreters of this machine

OTHERS = [f"3.{minor}" for minor in (11, 12, 13) if minor != sys.version_info.minor]
PROBE = "import apsw, cloudpickle, google_crc32c, msgspec, polars, sys; print(sys.executable, sys.version_info[1])"


@lru_cache(maxsize=8)
def interpreter(version: str) -> tuple[str | None, str]:
    """(an interpreter of this version that has the packages, why there is none)."""
    named = os.environ.get("ONEFOLD_PYTHON_" + version.replace(".", ""))
    found = named or shutil.which(f"python{version}")
    if found is None:
        return None, f"no python{version} on PATH, nor in ONEFOLD_PYTHON_{version.replace('.', '')}"
    done = subprocess.run([found, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return (
            None,
            f"{found} cannot be used: {said}. `{found} -m pip install onefold` gives it what it needs",
        )
    executable, minor = done.stdout.split()
    return (executable, "") if minor == version[2:] else (None, f"{found} is Python 3.{minor}")


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("maker", ["present", *MADE])
def test_another_python_reads_them(maker, version, tmp_path, request):
    python, why = interpreter(version)
    if python is None:
        pytest.skip(why)
    support = Path(__file__).parents[3]
    if maker == "present":
        (folder, expected), made_by = unpacked(request.getfixturevalue("made_now"), tmp_path), HERE
    else:
        (folder, expected), made_by = unpacked(ASSETS / maker, tmp_path), maker[-3:]
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    program = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from support.table_reading import read_all\n"
        "read_all(Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()), sys.argv[4])\n"
    )
    arguments = [str(support), str(folder), str(tmp_path / "expected.json"), made_by]
    source = {**os.environ, "PYTHONPATH": str(Path(of.__file__).parent.parent)}
    done = subprocess.run(
        [python, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=source,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- what is stored


def some_space(folder: Path, tmp_path: Path):
    (tmp_path / "a.csv").write_text("word,amount\na,1\nb,2\na,3\n")
    db = of.connect(folder)
    csv = db.read_csv(str(tmp_path / "a.csv"))
    csv.group_by("word").agg(n=agg.count(), q=agg.approx_quantile("amount", 0.5)).into("groups").run(
        progress=False, workers=1
    )
    csv.map(lambda r: {"w": r["word"] * 2}).into("mapped").run(progress=False, workers=1)
    csv.into("rows").run(progress=False, workers=1)
    return db


def test_reading_loads_no_pickle(tmp_path, monkeypatch):
    some_space(tmp_path / "s", tmp_path).close()

    def forbidden(*_, **__):
        raise AssertionError("a reader has unpickled a plan")

    monkeypatch.setattr(functions, "load", forbidden)
    monkeypatch.setattr(renames, "loads", forbidden)
    monkeypatch.setattr(earlier, "describe", forbidden)
    with of.connect(tmp_path / "s") as db:
        assert db.table("groups").to_polars().rows() == [("a", 2, 3.0), ("b", 1, 2.0)]
        assert db.table("groups").estimate("n")["value"].to_list() == [2, 1]
        assert db.table("groups").get("b") == {"word": "b", "n": 1, "q": 2.0}
        assert db.table("mapped").to_polars()["w"].to_list() == ["aa", "bb", "aa"]
        assert db.table("rows").scan().collect().height == 3
        assert any("group_by" in line for line in db.explain("groups"))
    assert ask("tables", "--json", url=tmp_path / "s").returncode == 0


def damaged(db, table, tmp_path, how):
    """Do something to the blob with a table's plan, or to what stands in it."""
    path = db._engine.blobs.path(plan_of(db, table))
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["missing", "damaged", "empty"])
def test_one_unreadable_table_hides_no_other(how, tmp_path):
    db = some_space(tmp_path / "s", tmp_path)
    damaged(db, "mapped", tmp_path, how)
    db.close()
    with of.connect(tmp_path / "s") as db:
        assert [table.name for table in db.tables()] == ["groups", "mapped", "rows"]
        assert db.table("mapped").status.exact and len(db.runs()) == 3
        with pytest.raises((of.InvalidValue, of.Unavailable), match=r"damaged|missing"):
            db.table("mapped").to_polars()
        assert db.table("groups").to_polars().height == 2
        assert db.explain("mapped")
    listed = {one["name"]: one for one in json.loads(ask("tables", "--json", url=tmp_path / "s").stdout)}
    assert listed["mapped"]["error"] and (listed["mapped"]["done"], listed["mapped"]["total"]) == (1, 1)
    assert listed["groups"]["error"] is None and listed["groups"]["key_columns"] == ["word"]
    shown = ask("tables", url=tmp_path / "s").stdout
    assert "unreadable" in shown and "groups" in shown and "rows" in shown


def test_a_description_of_a_later_release_is_refused_by_name():
    later = msgspec.msgpack.encode([description.VERSION + 1, "whatever"])
    with pytest.raises(of.InvalidValue, match=r"format 2.*later one.*update"):
        description.decode(later)
    with pytest.raises(of.InvalidValue, match="damaged"):
        description.decode(later[:1])
    sealed = requirements.seal(trailers.appended(b"x", later, b"1FD"), requirements.Requirements("3.11", ()))
    with pytest.raises(of.InvalidValue, match="later one"):
        description.found(sealed)
    unknown = aggregate_data.AggregateData("x", "sum", {}, 2)
    with pytest.raises(of.InvalidValue, match=r"agg\.sum.*format 2"):
        aggregate_data.from_data(unknown)
    with pytest.raises(of.InvalidValue, match="later release"):
        data_types.from_data(["Point", 2])


def test_golden_description_stays():
    """The bytes of a released format are read for ever."""
    made = [
        1, 0, "groups", "keys", ["word"], [["n", "count", {}, 1], ["q", "approx_quantile", {"q": 0.5, "k": 64}, 1]],
        ["word", "n", "q"], [["String"], ["UInt32"], ["Float64"]], ["read_csv a.csv"], ["3.11.7", "0.1.0", "2.1.0"],
    ]  # fmt: skip
    found = description.decode(msgspec.msgpack.encode(made))
    assert msgspec.msgpack.decode(description.encode(found)) == made
    more = description.decode(msgspec.msgpack.encode([*made, "a field of a later release"]))
    assert more == found


TYPES = [
    pl.Boolean(), pl.Int8(), pl.Int128(), pl.UInt128(), pl.Float16(), pl.Float32(), pl.String(), pl.Binary(), pl.Date(),
    pl.Time(), pl.Null(), pl.Object(), pl.Unknown(), pl.Datetime("ns"), pl.Datetime("us", "Europe/Zurich"),
    pl.Datetime("ms", "UTC"), pl.Duration("ms"), pl.Decimal(38, 7), pl.Enum(["b", "a", ""]), pl.Enum([]), pl.Categorical(),
    pl.Categorical(pl.Categories("c", "ns", physical=pl.UInt8)), pl.List(pl.List(pl.Int16)), pl.Array(pl.Int16, 2),
    pl.Array(pl.Int8, (2, 3)), pl.Struct({}), pl.Struct({"a": pl.List(pl.Struct({"b": pl.Time()}))}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_data_types_come_back_exactly(dtype):
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(data_types.to_data(dtype)))
    found = data_types.from_data(stored)
    assert found == dtype and str(found) == str(dtype)
    assert type(found) is type(dtype)


def aggregates_of_every_kind() -> dict[str, Aggregate]:
    return {
        "count": agg.count(), "sum": agg.sum("x"), "mean": agg.mean("x"), "min": agg.min("x"), "max": agg.max("x"),
        "var": agg.var("x", ddof=0), "std": agg.std("x", ddof=2), "first": agg.first("x"), "last": agg.last("x", by="x"),
        "approx_n_unique": agg.approx_n_unique("x"), "approx_quantile": agg.approx_quantile("x", 0.9, k=16),
        "most_frequent": agg.most_frequent("x", 3), "fold": agg.fold(int, max, max, dtype=pl.List(pl.Int8)),
    }  # fmt: skip


def test_every_aggregate_is_described_with_all_that_it_depends_on():
    every = aggregates_of_every_kind()
    kinds = {cls.kind for cls in subclasses(Aggregate) if hasattr(cls, "kind")}
    assert set(every) == {kind for kind in kinds if kind in dir(agg)} == set(aggregate_data._KINDS) | {"fold"}
    for kind, one in every.items():
        data = aggregate_data.to_data("c", one)
        assert aggregate_data.needs_code(data) == (kind == "fold")
        if kind == "fold":
            assert data.parameters == {"dtype": ["List", ["Int8"]]}
            continue
        back = aggregate_data.from_data(msgspec.msgpack.decode(msgspec.msgpack.encode(data), type=type(data)))
        assert type(back) is type(one) and back.options() == one.options()


def subclasses(cls):
    for one in cls.__subclasses__():
        yield one
        yield from subclasses(one)


# -- modules that have moved since


def stored_elsewhere(tmp_path, monkeypatch) -> bytes:
    """A stored job as a release wrote it in which ``plan`` was called ``earlier_plan``, and which wrote no description."""
    db = some_space(tmp_path / "s", tmp_path)
    data = db._engine.blobs.get(plan_of(db, "groups"))
    db.close()
    job = functions.load(data)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onefold.compute.earlier_plan", plan)
        for cls in vars(plan).values():
            if isinstance(cls, type) and cls.__module__ == plan.__name__:
                patch.setattr(cls, "__module__", "onefold.compute.earlier_plan")
        pickled = functions.dump(job)
    assert b"onefold.compute.earlier_plan" in pickled
    return requirements.seal(pickled, requirements.of_job(job))


def test_a_module_that_moved_is_found_under_its_present_name(tmp_path, monkeypatch):
    data = stored_elsewhere(tmp_path, monkeypatch)
    assert description.found(data) is None
    for read in (functions.load, earlier.describe):
        with pytest.raises(of.InvalidValue, match="earlier_plan"):
            read(data)
    monkeypatch.setitem(renames.MODULES, "onefold.compute.earlier_plan", "onefold.compute.moved_twice")
    monkeypatch.setitem(renames.MODULES, "onefold.compute.moved_twice", "onefold.compute.plan.nodes")
    assert isinstance(functions.load(data).job, plan.Job)
    assert isinstance(functions.load(data, code="reference").job, plan.Job)
    described = earlier.describe(data)
    assert described.keys == ("word",) and [one.kind for one in described.aggregates] == [
        "count",
        "approx_quantile",
    ]


def test_renames_lead_to_modules_that_are_there():
    for former in renames.MODULES:
        importlib.import_module(renames.present(former))
