"""How servers are spread over regions: every shape that is taken survives the loss of any place, and the others are refused."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path

import pytest

from onefold.cluster import server_plan, shapes
from onefold.cluster.local import _nodes
from onefold.cluster.server_config import ClusterPlan, Secrets, ServerPlan, server_config
from onefold.cluster.server_plan import Shape
from onefold.errors import InvalidArgument
from onefold.log.jetstream.regions import (
    badly_placed,
    check_region,
    check_region_of,
    check_regions,
    region_of,
)

SECRETS = Secrets("pw", {"system": "U"})


def test_two_regions_and_their_witness() -> None:
    assert shapes.default_servers(2) == 7
    assert shapes.spread(7, ["eu", "us"]) == {"eu": 3, "us": 3, "witness": 1}
    assert shapes.spread(11, ["eu", "us"]) == {"eu": 5, "us": 5, "witness": 1}
    assert shapes.spread(3, ["eu", "us"]) == {"eu": 1, "us": 1, "witness": 1}
    assert shapes.spread(9, ["a", "b", "c"]) == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("regions", [2, 3, 4, 5])
def test_the_usual_number_of_servers_is_a_shape(regions: int) -> None:
    names = [f"r{number}" for number in range(regions)]
    count = shapes.default_servers(regions)
    sizes = shapes.spread(count, names)
    assert sum(sizes.values()) == count and all(sizes[name] >= 3 for name in names)


@pytest.mark.parametrize(
    ("count", "regions"), [(1, 2), (2, 2), (4, 2), (6, 2), (2, 3), (4, 3), (8, 3), (4, 5)]
)
def test_shapes_that_cannot_lose_their_largest_region(count: int, regions: int) -> None:
    with pytest.raises(InvalidArgument, match=r"must survive the loss of its largest one: .*3\+3\+1"):
        shapes.spread(count, [f"r{number}" for number in range(regions)])


def test_the_refusal_says_what_would_be_left() -> None:
    with pytest.raises(InvalidArgument, match="Without eu 4 of 9 would be left, which is not more than half"):
        shapes.check_survives({"eu": 5, "us": 3, "witness": 1})
    with pytest.raises(InvalidArgument, match="No server is in us"):
        shapes.check_survives({"eu": 1, "us": 0, "witness": 1})


def test_any_place_of_a_shape_may_be_lost() -> None:
    """Of all small shapes: those that are taken elect a leader without any place, and so do the copies of their logs."""
    taken = 0
    for sizes in product(range(5), repeat=4):
        shape = dict(zip(("a", "b", "c", "witness"), sizes, strict=True))
        try:
            shapes.check_survives(shape)
        except InvalidArgument:
            assert 0 in sizes or sum(sizes) % 2 == 0 or any(2 * (sum(sizes) - n) < sum(sizes) for n in sizes)
            continue
        taken += 1
        copies = shapes.copies_for(shape)
        placed = shapes.cp_counts(shape, copies)
        assert placed is not None and sum(placed.values()) == copies
        assert placed["witness"] <= 1 and all(placed[place] <= shape[place] for place in shape)
        servers = [f"{place}-{number}" for place, count in placed.items() for number in range(count)]
        assert badly_placed(servers, copies) is None
        for place, size in shape.items():
            assert 2 * (sum(sizes) - size) > sum(sizes)
            assert 2 * (copies - placed[place]) > copies
    assert taken > 50


def test_copies_that_are_asked_for() -> None:
    assert shapes.copies_for({"eu": 3, "us": 3, "witness": 1}) == 5
    assert shapes.copies_for({"eu": 1, "us": 1, "witness": 1}) == 3
    assert shapes.copies_for({"eu": 3, "us": 3, "witness": 1}, 3) == 3
    for sizes, asked in (({"eu": 1, "us": 1, "witness": 1}, 5), ({"eu": 3, "us": 3, "witness": 1}, 1)):
        with pytest.raises(InvalidArgument, match=f"{asked} copies over servers by region"):
            shapes.copies_for(sizes, asked)


def test_copies_together_in_one_place_are_found() -> None:
    assert badly_placed(["eu-1", "eu-2", "us-1", "us-2", "witness-1"], 5) is None
    assert badly_placed(["eu-1", "us-1", "witness-1"], 3) is None
    assert (
        badly_placed(["eu-1", "eu-2", "us-1"], 3)
        == "2 of 3 copies are in eu, and none could be written without it"
    )
    assert "3 of 5 copies are in eu-west" in str(badly_placed(["eu-west-1", "eu-west-2", "eu-west-3"], 5))


# -- names


@pytest.mark.parametrize(
    "name", ["", "eu/west", "eu.west", "eu west", "x" * 33, "ü", "*", "eu\n", "witness", "Witness", None, 5]
)
def test_names_that_no_region_has(name: object) -> None:
    with pytest.raises(InvalidArgument, match="region"):
        check_region(name)


def test_regions_of_a_space() -> None:
    assert check_regions(["eu", "us-west_1", "x" * 32]) == ("eu", "us-west_1", "x" * 32)
    for names, told in (
        (["eu"], "2 to 16"),
        ([f"r{n}" for n in range(17)], "2 to 16"),
        (["eu", "EU"], "same name"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            check_regions(names)


def test_a_servers_name_says_its_region() -> None:
    assert [region_of(name) for name in ("eu-1", "eu-west-12", "witness-1", "s1", "")] == [
        "eu",
        "eu-west",
        "witness",
        None,
        None,
    ]


def test_the_region_of_a_program_is_one_of_the_space() -> None:
    check_region_of("main", ("eu", "us"), "us")
    check_region_of("main", (), "any-place")
    for regions, region in ((("eu", "us"), "asia"), (("eu", "us"), "witness"), ((), "a/b"), ((), "x" * 65)):
        with pytest.raises(InvalidArgument, match="region"):
            check_region_of("main", regions, region)


# -- plans


def test_the_plan_of_ten_nodes_in_two_regions(tmp_path: Path) -> None:
    plan = server_plan.new(tmp_path, Shape(7, 2), ["main"])
    assert [server.name for server in plan.servers] == [
        *("dc1-1", "dc1-2", "dc1-3"),
        *("dc2-1", "dc2-2", "dc2-3"),
        "witness-1",
    ]
    assert [server.name for server in plan.servers if server.cp] == [
        "dc1-1",
        "dc1-2",
        "dc2-1",
        "dc2-2",
        "witness-1",
    ]
    nodes = [node.region for node in _nodes(tmp_path, None, 10, ["dc1", "dc2"])]
    assert nodes.count("dc1") == nodes.count("dc2") == 5


def test_a_server_of_a_region_says_so_by_its_tags(tmp_path: Path) -> None:
    plan = server_plan.new(tmp_path, Shape(7, 2), [])
    found = [json.loads(server_config(plan, server, tmp_path, SECRETS)) for server in plan.servers]
    assert [one["server_tags"] for one in found][1:4] == [
        ["region:dc1", "cp"],
        ["region:dc1"],
        ["region:dc2", "cp"],
    ]
    assert not any("unique_tag" in one["jetstream"] for one in found)


def test_the_plan_of_an_earlier_release_means_what_it_meant(tmp_path: Path) -> None:
    """Its servers keep one copy of each log in each place, and a plan says so by having no ``cp``."""
    places = ("dc1", "dc2", "witness", "dc1", "dc2")
    servers = [ServerPlan(f"s{n}", 20_000 + n, 30_000 + n, place) for n, place in enumerate(places, 1)]
    plan = ClusterPlan("onefold-1", servers, 1000)
    found = [json.loads(server_config(plan, server, tmp_path, SECRETS)) for server in servers]
    assert [one["server_tags"] for one in found] == [[f"az:{place}"] for place in places]
    assert all(one["jetstream"]["unique_tag"] == "az:" for one in found)
    server_plan.check_shape(tmp_path, plan, Shape(5, 2))
    alone = dataclasses.replace(Shape(3, 1))
    assert [server.name for server in server_plan.new(tmp_path / "one", alone, []).servers] == [
        "s1",
        "s2",
        "s3",
    ]
