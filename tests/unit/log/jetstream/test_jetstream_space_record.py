"""The record of a space: those of earlier releases are read, and which programs read those of this one."""

from __future__ import annotations

import msgspec
import pytest

from onefold.errors import LogCorrupt, SpaceError
from onefold.log.jetstream import space_record
from onefold.log.jetstream.spaces import Base, RegionLogs, SpaceInfo

OF_0_5 = (
    b'{"space":"main","incarnation":"i_1","shards":2,"replicas":3,"made_ms":17,"format":1,"blobs":"jetstream",'
    b'"base":[{"offset":5,"hash":"h","blob":"b","bytes":9},{"offset":0,"hash":"","blob":"","bytes":0}]}'
)
OWN = (RegionLogs("eu", "i_2", 3), RegionLogs("us", "i_3", 1))
OVER_REGIONS = SpaceInfo("main", "i_1", 2, 5, 17, format=2, regions=("eu", "us"), region_logs=OWN)


class Of05(msgspec.Struct, frozen=True):
    """What release 0.5 reads."""

    space: str
    incarnation: str
    shards: int
    replicas: int
    made_ms: int = 0
    format: int = 1
    blobs: str = "jetstream"
    base: tuple[Base, ...] = ()


def test_a_record_of_an_earlier_release_is_one_region() -> None:
    found = space_record.decode("main", OF_0_5)
    assert (found.regions, found.format, found.base[0].offset) == ((), 1, 5)


def test_a_record_of_one_region_is_read_by_an_earlier_release() -> None:
    encoded = msgspec.json.encode(SpaceInfo("main", "i_1", 2, 3, 17))
    found = msgspec.json.decode(encoded, type=Of05)
    assert found == Of05("main", "i_1", 2, 3, 17)


def test_a_record_of_several_regions_is_refused_by_an_earlier_release() -> None:
    encoded = msgspec.json.encode(OVER_REGIONS)
    assert space_record.decode("main", encoded) == OVER_REGIONS
    assert msgspec.json.decode(encoded, type=Of05).format > Of05("", "", 1, 1).format


def test_a_record_of_a_later_release_is_refused() -> None:
    later = msgspec.structs.replace(OVER_REGIONS, format=3)
    with pytest.raises(SpaceError, match="format 3; this program knows 2"):
        space_record.decode("main", msgspec.json.encode(later))


@pytest.mark.parametrize("regions", [("eu",), ("eu", "e/u"), ("eu", "EU"), tuple(f"r{n}" for n in range(17))])
def test_a_record_with_regions_that_no_space_has_is_corrupt(regions: tuple[str, ...]) -> None:
    wrong = msgspec.structs.replace(OVER_REGIONS, regions=regions)
    with pytest.raises(LogCorrupt, match="names regions"):
        space_record.decode("main", msgspec.json.encode(wrong))


@pytest.mark.parametrize("own", [(), OWN[:1], OWN[::-1], (*OWN, RegionLogs("asia", "i_4", 1))])
def test_a_record_without_the_logs_of_its_regions_is_corrupt(own: tuple[RegionLogs, ...]) -> None:
    wrong = msgspec.structs.replace(OVER_REGIONS, region_logs=own)
    with pytest.raises(LogCorrupt, match=r"the regions eu, us and logs of"):
        space_record.decode("main", msgspec.json.encode(wrong))


def test_logs_of_a_region_are_a_space_by_themselves() -> None:
    us = OVER_REGIONS.of_region("us")
    assert (us.space, us.incarnation, us.shards, us.replicas, us.region) == ("main", "i_3", 2, 1, "us")
    assert (us.regions, us.region_logs, us.base) == ((), (), ())
    assert us.blob_names.stream == "OF_main_i_3_blobs" != OVER_REGIONS.blob_names.stream
    assert OVER_REGIONS.each_region() == [OVER_REGIONS.of_region("eu"), us]
    again = OVER_REGIONS.with_region_logs(RegionLogs("us", "i_9", 3))
    assert [one.incarnation for one in again.each_region()] == ["i_2", "i_9"]
    with pytest.raises(KeyError):
        OVER_REGIONS.of_region("asia")
