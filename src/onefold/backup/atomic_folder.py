"""Folders that appear whole or not at all: made under another name next to their place, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onefold.errors import SpaceError
from onefold.files import process_lives, sync, sync_tree


@contextlib.contextmanager
def whole_folder(target: Path, what: str) -> Iterator[Path]:
    """A new folder to fill, which becomes ``target`` when the block ends; it is removed when the block raises.

    What a killed process left behind is removed by the next one. Raises SpaceError when ``target`` is there and not empty, or
    cannot be made. ``what`` names it in messages.
    """
    _check_place(target, what)
    parent = target.absolute().parent
    _sweep(parent, target.name)
    half_made = parent / f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.half"
    try:
        half_made.mkdir()
    except OSError as error:
        raise SpaceError(
            f"{what} {target} cannot be made ({error.strerror}). Choose a place you may write to"
        ) from error
    try:
        yield half_made
        sync_tree(half_made)
        try:
            half_made.rename(target.absolute())  # takes the place of an empty folder too
        except OSError as error:
            raise SpaceError(
                f"{what} {target} cannot be put in place ({error.strerror}). Choose another place"
            ) from error
        sync(parent)
    except BaseException:
        shutil.rmtree(half_made, ignore_errors=True)
        raise


def _check_place(target: Path, what: str) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise SpaceError(
            f"{what} {target} cannot be made: something else has that name. Choose another place"
        )
    if target.is_dir() and any(target.iterdir()):
        raise SpaceError(
            f"{target} is not empty; {what} needs a new or an empty folder. Choose another place"
        )
    if not target.absolute().parent.is_dir():
        raise SpaceError(
            f"{what} {target} cannot be made: {target.absolute().parent} does not exist. Make it first"
        )


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder among the machine's temporary files, which is removed at the end; what killed processes left is removed first."""
    parent = Path(tempfile.gettempdir())
    _remove_dead(parent, f"{name}-", "")
    with tempfile.TemporaryDirectory(prefix=f"{name}-{os.getpid()}-") as folder:
        yield Path(folder)


def _sweep(parent: Path, name: str) -> None:
    """Remove half-made folders of this name whose process is gone."""
    _remove_dead(parent, f".{name}.", ".half")


def _remove_dead(parent: Path, before: str, after: str) -> None:
    """Remove folders named by a process that is gone: its id follows ``before``."""
    with contextlib.suppress(OSError):
        for path in parent.glob(f"{_literal(before)}*{after}"):
            pid = path.name.removeprefix(before).partition("-")[0]
            if pid.isdigit() and not process_lives(int(pid)):
                shutil.rmtree(path, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
