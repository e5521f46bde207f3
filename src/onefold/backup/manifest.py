"""What a backup says of itself: ``manifest.json``, with the size and checksum of every file in it.

A backup is a folder: ``manifest.json``, one SQLite file for each shard (its log and its state, in the tables they have in a
space's file), and the blobs that the state names. Nothing in it is used before all checksums were compared.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec

from onefold.errors import LogCorrupt, SpaceError
from onefold.files import sync

MANIFEST_NAME = "manifest.json"
BACKUP_FORMAT = 1
_CHUNK = 1 << 20


class ShardCopy(msgspec.Struct, frozen=True):
    """One shard in a backup."""

    file: str
    offset: int
    """The last record that is in it."""
    first: int
    """The oldest record that is in it; beyond 1 the log had been trimmed."""
    fold_ms: int
    """Fold time at ``offset``."""
    log_digest: str
    state_digest: str


class FileCopy(msgspec.Struct, frozen=True):
    """One file of a backup."""

    bytes: int
    blake2b: str


class Manifest(msgspec.Struct, frozen=True):
    """A backup: what it holds, of which space, of which moment."""

    incarnation: str
    """Of the space that was copied; a restored one gets another."""
    created_ms: int
    """When the cut was made, by the wall clock: everything acknowledged before is in it."""
    program: str
    """The version of the program that made it."""
    shards: tuple[ShardCopy, ...]
    files: dict[str, FileCopy]
    missing_blobs: tuple[str, ...] = ()
    """Blobs that the state names and that were already missing or damaged in the space: their tasks run again when needed."""
    log_keep: int | None = None
    """How many bytes of the log of each shard are kept (``shard.log_keep``); None: nobody had said anything."""
    kind: str = "onefold-backup"
    format: int = BACKUP_FORMAT


def describe(folder: Path, name: str) -> FileCopy:
    """Size and checksum of a file."""
    digest, size = hashlib.blake2b(digest_size=32), 0
    with (folder / name).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileCopy(size, digest.hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, with a checksum of its own, and sync it."""
    content = msgspec.to_builtins(manifest)
    content["checksum"] = _checksum(content)
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    sync(path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the backup in ``folder``. Raises SpaceError (no backup, a newer format) and LogCorrupt (damaged)."""
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpaceError(
            f"there is no backup in {folder}: it has no {MANIFEST_NAME}. Check the path"
        ) from None
    except OSError as error:
        raise SpaceError(f"{path} cannot be read ({error.strerror}). Check its owner and mode") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict) or content.get("kind") != "onefold-backup":
        raise SpaceError(f"{path} is not of a backup. Check the path")
    if not isinstance(content.get("format"), int) or content["format"] > BACKUP_FORMAT:
        raise SpaceError(
            f"{folder} has backup format {content.get('format')}; this program knows {BACKUP_FORMAT}. "
            "Upgrade: pip install -U onefold"
        )
    if content.pop("checksum", None) != _checksum(content):
        raise _damaged(path, "its checksum does not match")
    try:
        return msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        raise _damaged(path, str(error)) from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest. Raises LogCorrupt, which names the file."""
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        try:
            found = describe(folder, name)
        except FileNotFoundError:
            raise LogCorrupt(
                f"the backup {folder} is not whole: {name} is missing. Use another backup"
            ) from None
        except OSError as error:
            raise LogCorrupt(
                f"{path} cannot be read ({error.strerror}). Copy the backup from a good disk"
            ) from error
        if found != expected:
            raise _damaged(path, f"{found.bytes} bytes with another checksum; {expected.bytes} were written")


def _damaged(path: Path, why: str) -> LogCorrupt:
    return LogCorrupt(f"the backup is damaged: {path}: {why}. Use another backup")


def _checksum(content: dict[str, object]) -> str:
    body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(body, digest_size=32).hexdigest()
