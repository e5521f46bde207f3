"""The command line, run to its end in a process of its own or in this one, and what it answered."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from onefold.cli import main

ONEFOLD = (sys.executable, "-m", "onefold.cli")
WORDS = ("the", "quick", "brown", "fox", "the", "lazy", "dog", "the")


Result = subprocess.CompletedProcess[str]


def onefold(
    *args: str | Path, url: Path | str | None = None, cwd: Path | None = None, **environment: str
) -> Result:
    """Run a command to its end in a process of its own."""
    return subprocess.run(
        [*ONEFOLD, *_arguments(args, url)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=_environment(environment),
        timeout=120,
        check=False,
    )


def ask(
    *args: str | Path, url: Path | str | None = None, cwd: Path | None = None, **environment: str
) -> Result:
    """The same in this process: a tenth of the time."""
    if args[0] in ("run", "replay"):  # they leave a program behind as this process's ``__main__``
        return onefold(*args, url=url, cwd=cwd, **environment)
    out, errors, code = io.StringIO(), io.StringIO(), None
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.dict(os.environ, _environment(environment), clear=True),
    ):
        try:
            main(_arguments(args, url))
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return Result(args, code or 0, out.getvalue(), errors.getvalue())


def _arguments(args: Iterable[str | Path], url: Path | str | None) -> list[str]:
    return [*map(str, args), *(("--url", str(url)) if url is not None else ())]


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("ONEFOLD_")} | more


def document(result: Result) -> Any:
    """The one JSON document on stdout of a command that succeeded."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def write_lines(folder: Path, files: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(files):
        (folder / f"{number}.txt").write_text("".join(f"{word}\n" for word in WORDS * (number + 1)))
    return folder
