"""Jupyter: one output cell that is updated in place. IPython is used when it is running, and never imported
to find out."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from typing import Any

from onefold.display.html import frame_html
from onefold.display.model import Frame


def in_kernel() -> bool:
    """Whether this process is a notebook's kernel (not merely IPython in a terminal)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class NotebookScreen:
    """An output cell, updated through its display handle."""

    shows_rows = True

    def __init__(self) -> None:
        self._handle: Any = None
        self._notes: tuple[str, ...] = ()

    def show(self, frame: Frame) -> None:
        # By name, because IPython is not a dependency: it is there whenever this class is used.
        ipython = importlib.import_module("IPython.display")
        picture = ipython.HTML(frame_html(self._with_notes(frame)))
        if self._handle is None:
            self._handle = ipython.display(picture, display_id=True)
        else:
            self._handle.update(picture)

    def note(self, text: str) -> None:
        self._notes = (*self._notes, text)

    def close(self, frame: Frame | None) -> None:
        if frame is not None:
            self.show(frame)

    def _with_notes(self, frame: Frame) -> Frame:
        return replace(frame, notes=self._notes)
