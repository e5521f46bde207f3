"""The live view of a run: in a terminal, in a pipe, in a notebook.

Looking must not slow the work: every reading is timed, and the next one waits until looking takes a twentieth
of the time. ``follow`` shows a run until it ends; ``run_html`` and ``table_html`` give what a notebook shows
for one.

May import ``errors`` only: what it shows is given to it.
"""

from __future__ import annotations

from onefold.display.follow import follow
from onefold.display.html import run_html, table_html

__all__ = ["follow", "run_html", "table_html"]
