"""Listeners that one thread closes while another one wakes them."""

from __future__ import annotations

import os
import threading

from onefold.env import SYSTEM
from onefold.log.sqlite.engine import SqliteLog
from onefold.log.sqlite.file import SqliteFile
from onefold.machine import wake

LOOK_S = 0.5
"""How long is looked for what must not happen."""


class Taken:
    """A listener's numbers, and a file that gets one of them as soon as it is free, as SQLite's files do."""

    def __init__(self, tmp_path, monkeypatch):
        self.listener = wake.Listener(tmp_path / "wake", "one")
        self.path = tmp_path / "other"
        self.path.write_bytes(b"its first bytes")
        self.number = self.listener._writer
        self.really_close, self.really_write = os.close, os.write
        self.after = lambda: None
        monkeypatch.setattr(os, "close", self.close)

    def close(self, fd):
        self.really_close(fd)
        if fd == self.number:
            self.number = -1
            opened = os.open(self.path, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                self.really_close(opened)
            self.after()


def test_poking_a_listener_after_its_number_is_anothers(tmp_path, monkeypatch):
    taken = Taken(tmp_path, monkeypatch)
    number, poker = taken.number, threading.Thread(target=taken.listener.poke)

    def after():
        poker.start()
        poker.join(LOOK_S)  # it must not write before the listener is closed

    taken.after = after
    taken.listener.close()
    poker.join(100)
    assert not poker.is_alive()
    assert taken.path.read_bytes() == b"its first bytes"
    os.close(number)


def test_closing_a_listener_while_its_number_is_written_to(tmp_path, monkeypatch):
    taken = Taken(tmp_path, monkeypatch)
    number, closer = taken.number, threading.Thread(target=taken.listener.close)

    def write(fd, data):
        if fd == number:
            closer.start()
            closer.join(LOOK_S)  # it must not close it before this is written
        return taken.really_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    taken.listener.poke()
    closer.join(100)
    assert not closer.is_alive()
    assert taken.path.read_bytes() == b"its first bytes"
    os.close(number)


def test_a_log_keeps_its_records_where_listeners_close(tmp_path, monkeypatch):
    """SQLite takes a write-ahead log with another first byte for leftovers: with it went what was acknowledged."""
    log = SqliteLog(tmp_path)
    for data in (b"one", b"two", b"three"):
        log.append(data)
    listener, plugs = wake.Listener(tmp_path / "wake", "one"), []
    numbers, really_close = (listener._reader, listener._writer), os.close
    while not plugs or plugs[-1] < max(numbers):
        plugs.append(os.open(os.devnull, os.O_RDONLY))  # the next two files get the listener's numbers
    readers, poker = [], threading.Thread(target=listener.poke)

    def close(fd):
        really_close(fd)
        if fd == numbers[1] and not readers:
            readers.append(SqliteFile(tmp_path, (), SYSTEM, create=False, read_only=True))
            assert os.path.samestat(os.fstat(fd), (tmp_path / "space.db-wal").stat())
            poker.start()
            poker.join(LOOK_S)

    monkeypatch.setattr(os, "close", close)
    listener.close()
    monkeypatch.undo()
    poker.join(100)
    for plug in plugs:
        os.close(plug)
    log.close()
    readers[0].close()  # the last one, and it may not move the write-ahead log's pages into the file
    again = SqliteLog(tmp_path)
    assert [entry.data for entry in again.read(1)] == [b"one", b"two", b"three"]
    again.close()
