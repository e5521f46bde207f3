"""The folder of an open space is removed, moved or replaced: nothing is acknowledged that went into files which nobody finds."""

import os
import shutil
import time
from contextlib import closing

import pytest

import onefold as of
from onefold.log.sqlite import pooled_file


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "space"


def refuses(db):
    """Every kind of write is refused, definitely, and says what to do."""
    for write in (
        lambda: db.map("m").put("b", 2),
        lambda: db.queue("q").put(1),
        lambda: db.map("m").update({str(n): n for n in range(50)}),  # on every shard
    ):
        with pytest.raises(of.SpaceError, match="open the space again") as caught:
            write()
        assert caught.value.definite


def removed(folder):
    shutil.rmtree(folder)


def moved(folder):
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder):
    shutil.rmtree(folder)
    with closing(of.connect(folder)) as other:
        other.map("m")["x"] = 1


def replaced_by_a_copy(folder):
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


def emptied_of_its_log(folder):
    (folder / "space.db-wal").unlink()


def settle(db, folder):
    """Write until the folder alone is looked at before each commit, as in one that nothing has happened to for a while."""
    file = db._shards[0]._file
    while True:
        found = folder.stat()
        if file._folder_seen == (found.st_ino, found.st_dev, found.st_ctime_ns):
            return
        db.map("m")["a"] = 1


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("harm", [removed, moved, replaced, replaced_by_a_copy, emptied_of_its_log])
def test_writes_are_refused(folder, harm, settled):
    with closing(of.connect(folder)) as db:
        db.map("m")["a"] = 1
        if settled:
            settle(db, folder)
        harm(folder)
        refuses(db)


def test_a_file_that_is_a_link_is_looked_at_itself(folder):
    of.connect(folder).close()
    real = folder.with_name("real.db")
    (folder / "space.db").rename(real)
    (folder / "space.db").symlink_to(real)
    with closing(of.connect(folder)) as db:
        while time.time_ns() - folder.stat().st_ctime_ns < 2 * pooled_file._FRESH_NS:
            db.map("m")["a"] = 1
        real.unlink()
        refuses(db)


def test_one_look_before_a_commit(folder, monkeypatch):
    with closing(of.connect(folder)) as db:
        settle(db, folder)
        looked, stat = [], os.stat
        monkeypatch.setattr(os, "stat", lambda name, **more: looked.append(str(name)) or stat(name, **more))
        db.map("m")["a"] = 2
        monkeypatch.undo()
        assert looked == [str(folder)]


def test_a_moved_space_continues_where_it_is_now(folder):
    with closing(of.connect(folder)) as db:
        db.map("m")["a"] = 1
        moved(folder)
        refuses(db)
    with closing(of.connect(folder.with_name("elsewhere"))) as db:
        assert dict(db.map("m")) == {"a": 1}
        db.map("m")["b"] = 2


def test_a_shard_that_is_removed(folder):
    with closing(of.connect(folder, shards=3)) as db:
        db.map("m").update({str(n): n for n in range(50)})
        shutil.rmtree(folder / "shards" / "1")
        with pytest.raises(of.SpaceError, match="open the space again"):
            db.map("m").update({str(n): n for n in range(50)})


def test_a_program_that_changes_its_directory_writes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    with closing(of.connect("space")) as db:
        db.map("m")["a"] = 1
        monkeypatch.chdir(tmp_path / "below")
        db.map("m")["a"] = 2
    with closing(of.connect(tmp_path / "space")) as db:
        assert db.map("m")["a"] == 2
