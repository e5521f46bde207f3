"""Importing the heavy modules when something needs them first, one thread at a time.

Polars and what computes on it are not imported before they are needed, and two threads may need them first at the same moment.
Python locks each module apart: where modules import each other, it breaks a deadlock of two importing threads by handing one of
them a module that is half made, which is an ImportError of names that are there a moment later.
"""

from __future__ import annotations

import os
import threading
from typing import Final

first_use: Final = threading.RLock()
"""Held around imports inside functions that more than one thread may call first: ``with first_use: from … import …``."""

# A child that is forked while another thread imports would wait for that thread, which it does not have.
os.register_at_fork(
    before=first_use.acquire, after_in_parent=first_use.release, after_in_child=first_use.release
)
