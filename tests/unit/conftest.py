"""For all unit tests."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """What this process writes need not outlive a loss of power: no test could see that, and slow disks make tests slow.

    A test that looks whether files are synced replaces ``os.fsync`` itself. SQLite syncs its files as ever.
    """

    def fsync(fd: int) -> None:
        os.fstat(fd)  # raises for what is no open file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield
