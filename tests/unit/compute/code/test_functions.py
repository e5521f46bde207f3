"""Functions of the submitting program travel by value to processes that do not have it."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import polars as pl
import pytest

from onefold.compute.code import functions
from onefold.compute.code.user_code import is_user_module
from onefold.errors import InvalidArgument, InvalidValue

Program = Callable[..., ModuleType]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Write modules of a program and import the last one; none of them can be imported by another process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(**files: str) -> ModuleType:
        for name, text in files.items():
            path = tmp_path / Path(name.replace("__", "/")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True, parents=True)
            if path.parent != tmp_path:
                (path.parent / "__init__.py").touch()
            path.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return importlib.import_module(list(files)[-1].replace("__", "."))

    yield write
    for name in set(sys.modules) - before:
        if is_user_module(name):
            del sys.modules[name]


def elsewhere(function: Any, argument: object, tmp_path: Path) -> str:
    """What the function gives in another process, which starts in another folder with no way to the program."""
    blob = tmp_path / "job.bin"
    blob.write_bytes(functions.dump((function, argument)))
    code = (
        "import sys; from onefold.compute.code import functions;"
        "fn, argument = functions.load(open(sys.argv[1], 'rb').read()); print(repr(fn(argument)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(blob)], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_function_with_helpers_in_three_modules(program: Program, tmp_path: Path) -> None:
    job = program(
        ofa_words="STOP = {'the'}\ndef keep(word):\n    return word not in STOP\n",
        ofa_text="import ofa_words\ndef split(line):\n    return [w for w in line.split() if ofa_words.keep(w)]\n",
        ofa_job="from ofa_text import split\ndef job(row):\n    return split(row['line'])\n",
    ).job
    assert elsewhere(job, {"line": "the big cat"}, tmp_path) == "['big', 'cat']"


def test_classes_enums_and_dataclasses_travel(program: Program, tmp_path: Path) -> None:
    job = program(
        ofb_types="""
            import dataclasses, enum, collections, msgspec
            class Colour(enum.Enum):
                RED = 1
            @dataclasses.dataclass
            class Point:
                x: int
                colour: Colour = Colour.RED
                tags: list = dataclasses.field(default_factory=list)
            Pair = collections.namedtuple("Pair", "a b")
            class Base:
                def twice(self): return self.x * 2
            class Shape(Base):
                def __init__(self, x): super().__init__(); self.x = x
            class Record(msgspec.Struct):
                n: int = 3
        """,
        ofb_job="""
            from ofb_types import *
            def job(row):
                point = Point(row["x"])
                assert point.colour is Colour.RED and isinstance(point, Point)
                return point.x, Pair(1, 2).b, Shape(4).twice(), point.tags, Record().n
        """,
    ).job
    assert elsewhere(job, {"x": 5}, tmp_path) == "(5, 2, 8, [], 3)"


def test_structs_travel_with_defaults_methods_and_what_they_name(program: Program, tmp_path: Path) -> None:
    job = program(
        ofk_structs="""
            from __future__ import annotations
            from typing import ClassVar
            import msgspec
            class Base(msgspec.Struct, frozen=True, kw_only=True):
                id: int
                tags: list[str] = msgspec.field(default_factory=list)
            class Node(Base, rename="camel", frozen=True, kw_only=True):
                kinds: ClassVar[int] = 2
                next_one: Node | None = None
                def depth(self): return 1 if self.next_one is None else 1 + Node.depth(self.next_one)
                @property
                def double(self): return self.id * self.kinds
        """,
        ofk_job="""
            import msgspec
            from ofk_structs import Node
            def job(x):
                node = Node(id=x, next_one=Node(id=2, tags=["t"]))
                assert isinstance(node, Node) and hash(Node) is not None
                return msgspec.json.encode(node), node.depth(), node.double, node == Node(id=x)
        """,
    ).job
    expected = b'{"id":1,"tags":[],"nextOne":{"id":2,"tags":["t"],"nextOne":null}}'
    assert elsewhere(job, 1, tmp_path) == repr((expected, 2, 2, False))


def test_imports_inside_functions_are_packed(program: Program, tmp_path: Path) -> None:
    job = program(
        ofc__deep="VALUE = 7\n",
        ofc__late="def late(x):\n    from . import deep\n    return x + deep.VALUE\n",
        ofc_plain="def plain(x):\n    import ofc.late\n    return ofc.late.late(x)\n",
        ofc_job="def job(x):\n    from ofc_plain import plain\n    import json\n    return json.dumps(plain(x))\n",
    ).job
    assert elsewhere(job, 1, tmp_path) == "'8'"


def test_lambdas_closures_partials_methods_and_decorated_functions(program: Program, tmp_path: Path) -> None:
    module = program(
        ofd_job="""
            import functools
            def logged(fn):
                @functools.wraps(fn)
                def wrapper(x):
                    return ("logged", fn(x))
                return wrapper
            @logged
            def wrapped(x): return x + 1
            def make(by):
                def inner(x): return x * by
                return inner
            closure = make(3)
            short = lambda x: helper(x)
            def helper(x): return -x
            class Scaler:
                def __init__(self, by): self.by = by
                def __call__(self, x): return x * self.by
                def method(self, x): return x / self.by
            called, method = Scaler(4), Scaler(2).method
            part = functools.partial(lambda a, b: (a, b), 1)
            @functools.lru_cache
            def cached(x): return helper(x)
            async def later(x): return x
            coroutine = lambda x: later(x).send(None) if False else later.__name__
            def recursive(n): return 1 if n == 0 else n * recursive(n - 1)
        """
    )
    expected = {
        "wrapped": "('logged', 7)", "closure": "18", "short": "-6", "called": "24", "method": "3.0", "part": "(1, 6)",
        "cached": "-6", "coroutine": "'later'", "recursive": "720",
    }  # fmt: skip
    together = [getattr(module, name) for name in expected]
    found = elsewhere(_call_all, (together, 6), tmp_path)
    assert found == repr(list(expected.values()))


def _call_all(given: tuple[list[Callable[[Any], Any]], Any]) -> list[str]:
    calls, argument = given
    return [repr(call(argument)) for call in calls]


def test_a_module_with_a_connection_beside_what_is_used(program: Program, tmp_path: Path) -> None:
    """``import helpers`` must not drag along what the function does not touch."""
    job = program(
        ofe_helpers="import threading\nlock = threading.Lock()\nLIMIT = 2\ndef check(x):\n    return x > LIMIT\n",
        ofe_job="import ofe_helpers\ndef job(x):\n    return ofe_helpers.check(x)\n",
    ).job
    assert elsewhere(job, 3, tmp_path) == "True"


def test_a_function_of_main_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from onefold.compute.code import functions\n"
        "LIMIT = 2\n"
        "def helper(x): return x > LIMIT\n"
        "def job(x): return helper(x)\n"
        "open('job.bin', 'wb').write(functions.dump((job, 3)))\n"
    )
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True)
    fn, argument = functions.load((tmp_path / "job.bin").read_bytes())
    assert fn(argument) is True


def test_expressions_and_plans_travel() -> None:
    expr = pl.col("a").is_in({1, 2}) & (pl.col("b") > pl.lit(3))
    back = functions.load(functions.dump({"expr": expr, "schema": (("a", pl.Int64()),)}))
    assert back["expr"].meta.eq(expr)
    assert back["schema"] == (("a", pl.Int64()),)


def test_libraries_travel_by_name() -> None:
    assert len(functions.dump(textwrap.dedent)) < 200
    assert functions.load(functions.dump(textwrap.dedent)) is textwrap.dedent
    assert functions.load(functions.dump(functions.dump)) is functions.dump


def test_what_cannot_travel_is_named() -> None:
    lock = threading.Lock()

    def helper(row: Any) -> Any:
        with lock:
            return row

    def job(row: Any) -> Any:
        return helper(row)

    with pytest.raises(InvalidArgument) as caught:
        functions.dump({"plan": (1, job)})
    message = str(caught.value)
    assert "helper" in message and "test_functions.py:" in message
    assert "'lock'" in message and "_thread.lock" in message
    assert "inside the function" in message


def test_an_open_file_as_a_default_is_named(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as out:

        def job(row: Any, log: Any = out) -> Any:
            return log.write(row)

        with pytest.raises(InvalidArgument, match=r"'log'.*TextIOWrapper"):
            functions.dump(job)


def test_a_generator_in_a_global_of_another_module_is_named(program: Program) -> None:
    job = program(
        off_state="numbers = (n for n in range(3))\ndef take(x):\n    return next(numbers)\n",
        off_job="from off_state import take\ndef job(x):\n    return take(x)\n",
    ).job
    with pytest.raises(InvalidArgument, match=r"'take' .*'numbers', a builtins\.generator"):
        functions.dump(job)


def test_bytes_of_another_python_version_are_refused() -> None:
    data = bytearray(functions.dump(len))
    data[5] = sys.version_info.minor + 1
    other = f"3.{sys.version_info.minor + 1}"
    with pytest.raises(
        InvalidValue, match=rf"submitted by Python {other}.*Run the workers with Python {other}"
    ):
        functions.load(bytes(data))
    data[3] = 9
    with pytest.raises(InvalidValue, match="format 9"):
        functions.load(bytes(data))
    for broken in (b"", b"1FP", b"something else"):
        with pytest.raises(InvalidValue, match="not a stored job"):
            functions.load(broken)


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "ofg_library.py").write_text("def job(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(folder))
    library = importlib.import_module("ofg_library")
    data = functions.dump(library.job)
    monkeypatch.delitem(sys.modules, "ofg_library")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    with pytest.raises(InvalidValue, match="ofg_library"):
        functions.load(data)


def test_the_registry_of_cloudpickle_is_left_as_it_was(program: Program) -> None:
    module = program(ofh_job="def job(x):\n    return x\n")
    cloudpickle.register_pickle_by_value(module)
    try:
        before = set(cloudpickle.list_registry_pickle_by_value())
        functions.dump(module.job)
        with pytest.raises(InvalidArgument):
            functions.dump(threading.Lock())
        assert set(cloudpickle.list_registry_pickle_by_value()) == before
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_threads_can_dump_at_the_same_time(program: Program) -> None:
    job = program(ofi_job="def helper(x):\n    return x\ndef job(x):\n    return helper(x)\n").job
    expected = functions.dump(job)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: functions.dump(job), range(40)))
    assert all(len(result) == len(expected) for result in results)
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_whose_a_module_is() -> None:
    assert is_user_module("__main__")
    assert is_user_module(__name__)
    for name in (
        "json",
        "os.path",
        "polars",
        "pytest",
        "onefold.compute.code.functions",
        "sys",
        "no_such_module",
        None,
        "",
    ):
        assert not is_user_module(name)


@pytest.mark.parametrize("note", ["n", "a note", "x" * 255])
def test_what_is_noted_is_read_from_the_beginning(note: str) -> None:
    job = {"n": 1}
    data = functions.dump(job, note)
    assert functions.load(data) == job
    assert functions.note_of(data[:1024]) == note and functions.note_of(functions.dump(job)) == ""
    for cut in range(len(note) + 8):
        assert functions.note_of(data[:cut]) in ("", note)
    (modules, plain) = pickle.loads(data[6:])  # as programs of earlier releases do
    assert (modules, plain) == ({}, job)
