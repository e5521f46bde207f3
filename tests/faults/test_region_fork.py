"""Regions of a folder in a process that forks: the child has no part in the exchange, and keeps nobody from it."""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path

import pytest

from onefold.errors import SpaceError
from support.region_folder import Folder, converged, get, put, until

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def in_child(folder: Folder, waits: int) -> None:
    eu, us = folder.regions
    for region in (eu, us):
        with pytest.raises(SpaceError, match="forked"):
            put(region, "child", "v")
        region.look()
        region.close()
    os.read(waits, 1)
    again = Folder(folder.path)
    us = again.open("us")
    until(lambda: get(us, "later") == "v")
    put(us, "child", "v")
    again.close()


def test_a_forked_child_keeps_no_lock_and_may_open_regions_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "space", 2)
    eu, us = folder.open("eu"), folder.open("us")
    put(eu, "k", "v")
    until(lambda: get(us, "k") == "v")
    waits, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(300)  # ends the child if nobody else does
            os.close(says)
            in_child(folder, waits)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(waits)
    for number in range(30):  # forks meet the exchange in the middle of something
        put(us, f"k{number}", "v")
        if number % 6 == 0:
            other = os.fork()
            if other == 0:
                os._exit(0)
            assert os.waitpid(other, 0)[1] == 0
    put(us, "l", "v")
    until(lambda: get(eu, "l") == "v" and converged(eu, us))  # the parent continues
    folder.close()
    folder = Folder(tmp_path / "space")
    try:
        eu = folder.open("eu")
        until(lambda: sorted(eu._exchange._pullers) == [1, 2], "the child has no lock")
        put(eu, "later", "v")
        os.close(says)
        assert os.waitpid(child, 0)[1] == 0
        until(lambda: get(eu, "child") == "v")
        us = folder.open("us")
        until(lambda: converged(eu, us))
    finally:
        folder.close()
