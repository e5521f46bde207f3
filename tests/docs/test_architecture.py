"""docs/architecture.md names modules and packages that are there, and all of them on its map."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "onefold"
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_every_module_that_is_named_exists():
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", TEXT)) | set(
        re.findall(r"`((?:[a-z_]+/)+[a-z_]*)`", TEXT)
    )
    assert len(named) > 60
    beside = {"state/transactions"}  # `reads.py` there
    missing = [
        name
        for name in named
        if not (SOURCE / name).exists() and not any((SOURCE / place / name).exists() for place in beside)
    ]
    assert [name for name in missing if "<" not in name] == []


def test_every_package_is_on_the_map():
    table = TEXT.split("## The map of the house")[1].split("## ")[0]
    on_map = set(re.findall(r"`([a-z_]+)`", table))
    there = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert there - on_map - {"__init__", "__pycache__", "_version", "testing", "py"} == set()


def test_a_folder_has_at_most_about_fifteen_files():
    allowed = {"testing": 40}
    for folder in [SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir())]:
        name = folder.relative_to(SOURCE).as_posix()
        files = list(folder.glob("*.py"))
        assert len(files) <= allowed.get(name, 16), name


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return (function.end_lineno or 0) - (first.end_lineno or 0)
    return (function.end_lineno or 0) - first.lineno + 1


def test_a_function_has_at_most_sixty_lines() -> None:
    functions = [
        (path.name, node)
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 4000
    longer = [f"{name}: {node.name}" for name, node in functions if _body_lines(node) > 60]
    assert not longer, longer


def test_a_file_has_at_most_five_hundred_lines():
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        assert len(path.read_text().splitlines()) <= 500, name


def test_a_file_of_tests_has_at_most_five_hundred_lines():
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path


def test_every_package_says_what_lives_there_and_what_it_may_import():
    for init in SOURCE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text())) or ""
        assert "ay import" in text or init.parent == SOURCE, init
        if "\n====" in text:  # a table of all that is in the package
            there = {path.stem for path in init.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
            missing = there - set(re.findall(r"^``(\w+)``", text, re.MULTILINE)) - {"__init__", "__pycache__"}
            assert not missing, (init, missing)


def imports_of(sources):
    """``sources``: text by module. What each imports of the package, deferred and for types too."""
    found = {}
    for module, text in sources.items():
        names = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
        targets = set()
        for name in names:
            while name and name not in sources:
                name = name.rpartition(".")[0]
            targets.add(name)
        found[module] = targets - {"", module}
    return found


def circles_of_packages(imports):
    """Parts of a package that import each other in a circle which has a package in it. Circles of files in one folder are its own
    matter."""
    parents = {module.rpartition(".")[0] for module in imports} - {""}
    found = set()
    for parent in parents:
        ways = {}
        for module, targets in imports.items():
            if module.startswith(f"{parent}."):
                mine = module[len(parent) + 1 :].partition(".")[0]
                theirs = {
                    one[len(parent) + 1 :].partition(".")[0]
                    for one in targets
                    if one.startswith(f"{parent}.")
                }
                ways.setdefault(mine, set()).update(theirs - {mine})
        reached = {part: set() for part in ways}
        for part, seen in reached.items():
            left = list(ways[part])
            while left:
                if (one := left.pop()) not in seen:
                    seen.add(one)
                    left += ways.get(one, ())
        for part, seen in reached.items():
            circle = {one for one in seen if part in reached.get(one, ())}
            if any(f"{parent}.{one}" in parents for one in circle):
                found.add((parent, *sorted(circle)))
    return found


def test_no_packages_import_each_other_in_a_circle():
    sources = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text("utf-8")
    assert len(sources) > 400
    assert circles_of_packages(imports_of(sources)) == set()
    for planted in ("import onefold.node.program", "def f():\n    from onefold.node import program"):
        broken = sources | {"onefold.node.members.witness": planted}
        (circle,) = circles_of_packages(imports_of(broken))
        assert {"members", "program"} <= set(circle)
