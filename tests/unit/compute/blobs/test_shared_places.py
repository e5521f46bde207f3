"""Several spaces whose blobs are in one place: none removes what another one names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs import backends, sweeping
from onefold.compute.blobs.backends import check_place, named_place, open_backend, own_place
from onefold.compute.blobs.places import shared_store
from onefold.compute.blobs.shared import SharedBlobs
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.compute.engine import Engine
from onefold.doctor.state_blobs import check_garbage
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.node.snapshots.store import Vault

LINES = "".join(f"{number}\n" for number in range(20_000))


class Program:
    """A program of one of the spaces: here its log is in a folder, and its blobs are where those of a cluster are."""

    def __init__(self, folder: Path, space: str, place: str | None = None) -> None:
        self.folder, self.space = folder, space
        self.db = of.connect(folder / space)
        info = SpaceInfo(space, self.db._shard.incarnation, 1, 1, blobs=self.place(place))
        self.blobs = shared_store(None, info, folder / f"cache-{space}")  # type: ignore[arg-type]
        self.db._jobs = Engine(self.db._shard, blobs=self.blobs, owns_space=False)

    def place(self, given: str | None) -> str:
        if given is not None:
            return given  # as releases before 0.5.0 make a space
        return own_place(f"dir:{self.folder}/shared", self.space, self.db._shard.incarnation)

    def run(self) -> None:
        lines = self.folder / "lines.txt"
        lines.write_text(LINES)
        job = self.db.read_text(str(lines)).group_by("line").agg(n=agg.count()).into("t")
        job.run(progress=False, workers=1, target_splits=2)

    def sweep(self) -> None:
        """Twice: what is hidden by the first is dropped by the second."""
        for _ in range(2):
            self.db._engine.garbage.sweep()

    def is_whole(self) -> bool:
        """Whether another machine of the space can read the table."""
        for path in (self.folder / f"cache-{self.space}").glob("??/*"):
            path.unlink()
        with of.connect(self.db.url) as other:
            other._jobs = Engine(other._shard, blobs=self.blobs, owns_space=False)
            return len(other.table("t").to_polars()) == 20_000


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    (tmp_path / "shared").mkdir()
    return tmp_path


@pytest.fixture(params=["new spaces", "spaces of 0.5.0"])
def two(shared: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Program, Program]]:
    place = None if request.param == "new spaces" else f"dir:{shared}/shared"
    made = Program(shared, "a", place), Program(shared, "b", place)
    yield made
    for one in made:
        one.db.close()


def test_what_another_space_names_stays(two: tuple[Program, Program]) -> None:
    """Equal jobs have equal blobs, with one name."""
    one, other = two
    one.run()
    other.run()
    one.db.drop("t")
    one.sweep()
    other.sweep()
    assert other.is_whole()


def test_copies_of_another_space_are_left_to_it(two: tuple[Program, Program]) -> None:
    """Its sweeper hides a blob and dies; then the blob is named again, and only that space knows it."""
    one, other = two
    one.run()
    other.run()
    for name in set(one.blobs.everywhere()):
        one.blobs.hide(name)
    other.db.drop("t")
    other.sweep()
    assert one.is_whole()


def test_a_space_alone_in_its_place_removes_what_it_does_not_name(two: tuple[Program, Program]) -> None:
    one, _ = two
    one.run()
    assert set(one.blobs.everywhere())
    one.db.drop("t")
    one.sweep()
    assert not set(one.blobs.everywhere()) and not one.blobs.hidden()


def test_the_doctor_says_that_nothing_can_be_removed(shared: Path) -> None:
    one, other = (Program(shared, name, f"dir:{shared}/shared") for name in "ab")
    one.run()
    other.run()
    for fix in (False, True):
        found = check_garbage(one.db._state, one.blobs, fix=fix, deep=True)
        assert found.status == "warn" and "1 other spaces keep blobs in the same place" in found.found
        assert other.db._shard.incarnation in found.advice
    (shared / "shared" / "spaces" / other.db._shard.incarnation).unlink()
    assert check_garbage(one.db._state, one.blobs, fix=True, deep=True).status == "ok"
    for program in (one, other):
        program.db.close()


@pytest.mark.parametrize(
    ("place", "own"),
    [
        ("jetstream", "jetstream"),
        ("dir:/shared/", "dir:/shared/main-i1"),
        ("s3://bucket/prefix", "s3://bucket/prefix/main-i1"),
        ("s3://bucket?endpoint_url=http://h:1", "s3://bucket/main-i1?endpoint_url=http://h:1"),
    ],
)
def test_a_new_space_has_a_folder_of_its_own(place: str, own: str) -> None:
    assert own_place(place, "main", "i1") == check_place(own)
    assert named_place(own, "main", "i1") == place.rstrip("/")
    assert named_place(place, "main", "i1") == place, "of a space of an earlier release"
    assert own_place(place, "main", "i2") != own or place == "jetstream", "one that is restored"


def test_a_folder_of_its_own_is_there_with_the_share(tmp_path: Path) -> None:
    backend = open_backend(f"dir:{tmp_path}/share/main-i1", f"dir:{tmp_path}/share")
    assert backend.is_of_one_space
    with pytest.raises(BlobsUnavailable, match="mount it"):
        list(backend.names())
    (tmp_path / "share").mkdir()
    assert not list(backend.names()) and not backend.exists("ab")
    assert not open_backend(f"dir:{tmp_path}/share", f"dir:{tmp_path}/share").is_of_one_space


def test_a_bucket_that_has_a_space_below_lists_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fsspec.core, "url_to_fs", lambda url, **_: (fsspec.filesystem("memory"), url.partition(":/")[2])
    )
    above, below = (
        SharedBlobs(tmp_path / name, backends.ObjectStoreBackend(url), space=name)
        for name, url in (("i1", "s3://bucket/x"), ("i2", "s3://bucket/x/b-i2"))
    )
    mine, other = above.put(b"mine"), below.put(b"other")
    assert list(above.everywhere()) == [mine] and list(below.everywhere()) == [other]
    below.hide(other)
    assert not above.hidden() and not above.other_spaces() and not below.other_spaces()
    third = SharedBlobs(tmp_path / "i3", backends.ObjectStoreBackend("s3://bucket/x"), space="i3")
    assert third.other_spaces() == {"i1"} and above.other_spaces() == {"i3"}


def test_a_vault_settles_the_copies_of_its_own_space_only(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    vaults = [
        Vault(open_backend(f"dir:{tmp_path}/vault"), tmp_path / space, apart=True, space=space)
        for space in ("i1", "i2")
    ]
    (tmp_path / "file").write_bytes(b"a snapshot")
    blob = vaults[0].store(tmp_path / "file").blob
    vaults[0].hide(blob)
    for vault in reversed(vaults):
        sweeping.tidy(vault, (), lambda _: (), kind=sweeping.SNAPSHOTS, kept_s=-60)
        assert bool(vaults[0].hidden()) == (vault is vaults[1])
    old = sweeping.new_ticket(sweeping.SNAPSHOTS)
    assert all(sweeping.is_of_space(old, space) for space in ("i1", "i2")), "of a node of an earlier release"
