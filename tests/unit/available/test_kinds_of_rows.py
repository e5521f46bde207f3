"""What programs see of each kind of collection, in one region and in two that did not hear of each other."""

from kit.regions.desk import Desk
from onefold.available import ops, reading
from onefold.available.kinds import places

CARTS, NOTES, USERS, TAGS, LIKES = "r/carts", "k/notes", "f/users", "s/tags", "n/likes"


def put(value, key=b"k", ttl_ms=None):
    return ops.Put("r", "carts", ((key, value),), ttl_ms)


def note(value, ttl_ms=None):
    return ops.Put("k", "notes", ((b"k", value),), ttl_ms)


def stock(by, key=b"k", floor=0):
    return ops.Change("stock", floor, key, by)


def settled(desk, rounds=3):
    for _ in range(rounds):
        desk.round()
    shown = desk.shown()
    assert all(one == shown[0] for one in shown)
    contents = {region.me.content for region in desk.regions.values()}
    assert len(contents) == 1
    return shown[0]


def test_the_later_of_two_concurrent_writes_stays():
    desk = Desk()
    desk.ok(1, put(b"earlier"))
    desk.now_ms += 5
    desk.ok(2, put(b"later"))
    assert settled(desk) == {(CARTS, b"k"): b"later"}


def test_at_the_same_millisecond_the_higher_region_wins_in_both():
    desk = Desk()
    desk.ok(2, put(b"two"))
    desk.ok(1, put(b"one"))
    assert settled(desk) == {(CARTS, b"k"): b"two"}


def test_a_delete_says_what_was_held_and_counts_where_nothing_was():
    desk = Desk()
    desk.ok(1, put(b"v"))
    desk.now_ms += 5
    assert desk.ok(2, ops.Delete("r", "carts", (b"k", b"other"))) == 0
    assert settled(desk) == {}
    assert desk.ok(1, put(b"v"), ops.Delete("r", "carts", (b"k",))) is None
    assert desk[1].shown() == {}


def test_fields_of_concurrent_patches_are_all_kept():
    desk = Desk()
    desk.ok(1, ops.Replace("users", b"k", (("city", b"Bonn"), ("age", b"7"))))
    settled(desk)
    desk.ok(1, ops.Patch("users", b"k", (("city", b"Bern"),)))
    desk.ok(2, ops.Patch("users", b"k", (("age", None), ("name", b"Ada"))))
    assert settled(desk) == {(USERS, b"k"): {"city": b"Bern", "name": b"Ada"}}


def test_a_put_removes_other_fields_but_none_that_were_patched_later():
    desk = Desk()
    desk.ok(1, ops.Replace("users", b"k", (("a", b"1"), ("b", b"2"))))
    settled(desk)
    desk.ok(1, ops.Replace("users", b"k", (("a", b"3"),)))
    desk.now_ms += 5
    desk.ok(2, ops.Patch("users", b"k", (("b", b"4"),)))
    assert settled(desk) == {(USERS, b"k"): {"a": b"3", "b": b"4"}}


def test_an_item_without_fields_is_there():
    desk = Desk()
    desk.ok(1, ops.Replace("users", b"k", ()))
    assert settled(desk) == {(USERS, b"k"): {}}
    assert desk.ok(2, ops.Delete("f", "users", (b"k",))) == 1
    assert settled(desk) == {}


def test_two_puts_that_did_not_know_each_other_are_both_kept():
    desk = Desk()
    desk.ok(1, note(b"one"))
    desk.now_ms += 1
    desk.ok(2, note(b"two"))
    assert settled(desk) == {(NOTES, b"k"): [b"one", b"two"]}
    desk.ok(2, note(b"both"))
    assert settled(desk) == {(NOTES, b"k"): [b"both"]}


def test_a_blind_writer_makes_no_more_siblings_than_there_are_regions():
    desk = Desk(3)
    for at in range(9):
        desk.ok(at % 3 + 1, note(b"%d" % at))
    assert len(settled(desk, 4)[NOTES, b"k"]) == 3


def test_a_put_that_a_delete_did_not_know_stays():
    desk = Desk()
    desk.ok(1, note(b"old"))
    settled(desk)
    desk.ok(1, ops.Delete("k", "notes", (b"k",)))
    desk.ok(2, note(b"new"))
    assert settled(desk) == {(NOTES, b"k"): [b"new"]}


def test_an_element_that_is_added_and_removed_at_once_stays():
    desk = Desk()
    assert desk.ok(1, ops.Include("tags", b"k", (b"x", b"y", b"x"))) == 2
    settled(desk)
    assert desk.ok(1, ops.Exclude("tags", b"k", (b"x", b"y", b"z"))) == 2
    assert desk.ok(2, ops.Include("tags", b"k", (b"x",))) == 0
    assert settled(desk) == {(TAGS, b"k"): {b"x"}}
    assert desk.ok(1, ops.Empty("tags", b"k")) == 1
    assert settled(desk) == {}


def test_keys_and_elements_of_sets_with_zero_bytes_are_apart():
    desk = Desk()
    keys = (b"", b"\x00", b"\x00\x01", b"a", b"a\x00", b"a\x00\xff", b"b")
    for key in keys:
        desk.ok(1, ops.Include("tags", key, (b"", b"\x00", b"\x01" + key)))
    store = desk[1].store
    assert [key for key, _ in reading.sets(store, "tags")] == sorted(keys)
    for key in keys:
        assert list(reading.elements(store, "tags", key)) == sorted((b"", b"\x00", b"\x01" + key))
        assert reading.contains(store, "tags", key, b"\x00") and not reading.contains(
            store, "tags", key, b"q"
        )
    assert [key for key, _ in reading.sets(store, "tags", b"a")] == [k for k in sorted(keys) if k >= b"a"]


def test_counters_add_up_and_a_delete_takes_only_what_it_has_seen():
    desk = Desk()
    assert [desk.ok(1, ops.Add("likes", b"k", by)) for by in (5, -2)] == [5, 3]
    assert settled(desk) == {(LIKES, b"k"): 3}
    assert desk.ok(1, ops.Reset("likes", b"k")) is True
    assert desk.ok(2, ops.Add("likes", b"k", 10)) == 13
    assert settled(desk) == {(LIKES, b"k"): 10}
    assert desk.ok(2, ops.Reset("likes", b"k")) is True
    assert settled(desk) == {}
    assert [list(region.store.scan("ap/c/" + LIKES)) for region in desk.regions.values()] == [[], []]
    assert desk.ok(1, ops.Reset("likes", b"k")) is False


def test_a_counter_begins_again_after_a_delete_that_others_have_dropped_already():
    desk = Desk()
    desk.ok(1, ops.Add("likes", b"k", 5))
    settled(desk)
    desk.ok(2, ops.Reset("likes", b"k"))
    settled(desk)
    assert desk.ok(1, ops.Add("likes", b"k", 2)) == 2
    desk.pull(2, 1)
    desk.ok(1, ops.Add("likes", b"k", 1))
    desk.ok(2, ops.Reset("likes", b"k"))
    assert settled(desk) == {(LIKES, b"k"): 1}


def test_a_region_takes_only_what_it_has_a_right_to():
    desk = Desk()
    assert desk.ok(1, stock(10)) == 10
    settled(desk)
    refused = desk.do(2, stock(-1))
    assert (refused.reason, refused.value, refused.here) == ("below_floor", 10, 0)
    assert desk.ok(1, ops.Move("stock", 0, b"k", 2, 4)) == 6
    assert desk.do(2, stock(-1)).reason == "below_floor"  # they count where the effect is known
    desk.pull(2, 1)
    assert desk.ok(2, stock(-4)) == 6
    assert desk.do(1, ops.Move("stock", 0, b"k", 2, 7)).reason == "below_floor"
    assert desk.ok(1, stock(-6)) == 4
    assert settled(desk) == {("b0/stock", b"k"): 0}


def test_the_rights_down_to_a_floor_are_those_of_the_first_region():
    desk = Desk()
    assert desk.do(2, stock(-1, floor=-3)).reason == "below_floor"
    assert desk.ok(1, stock(-3, floor=-3)) == -3
    assert desk.do(1, stock(-1, floor=-3)).reason == "below_floor"


def test_requests_of_one_transaction_share_the_rights():
    desk = Desk()
    desk.ok(1, stock(5))
    refused = desk.do(1, put(b"not done"), stock(-3), stock(-3))
    assert refused.reason == "below_floor"
    assert desk[1].shown() == {("b0/stock", b"k"): 5}
    assert desk.do(1, stock(-4), ops.Move("stock", 0, b"k", 2, 2)).reason == "below_floor"
    desk.ok(1, stock(-3), stock(-2))


def test_a_wish_is_granted_where_it_arrives_and_ends_when_it_is_used():
    desk = Desk(3)
    desk.ok(1, stock(20))
    for _ in range(3):
        desk.round()
    assert desk.ok(2, ops.Wish("stock", 0, b"k", 3, 60_000)) == 0
    desk.round()
    desk.round()
    assert reading.here(desk[2].store, "stock", 0, b"k") == 10  # half of them, so that it need not ask soon
    assert desk.ok(3, ops.Wish("stock", 0, b"k", 4, 60_000)) == 0
    for _ in range(3):
        desk.round()
    assert reading.here(desk[3].store, "stock", 0, b"k") >= 4
    assert reading.here(desk[2].store, "stock", 0, b"k") == 10  # its own wish is older, and not used yet
    assert desk.ok(2, stock(-3)) == 17
    assert settled(desk, 4) == {("b0/stock", b"k"): 17}


def test_a_wish_that_is_over_is_not_granted():
    desk = Desk()
    desk.ok(1, stock(20))
    desk.ok(2, ops.Wish("stock", 0, b"k", 3, 1000))
    desk.now_ms += 1000
    desk.round()
    desk.round()
    assert reading.here(desk[2].store, "stock", 0, b"k") == 0
    desk.ok(2, ops.Wish("stock", 0, b"k", 3, 1000))
    desk.ok(2, ops.Wish("stock", 0, b"k", 0, 0))
    desk.round()
    desk.round()
    assert reading.here(desk[2].store, "stock", 0, b"k") == 0


def test_lifetimes_end_at_fold_time_and_leave_nothing():
    desk = Desk()
    desk.ok(1, put(b"v", ttl_ms=1000), note(b"n", ttl_ms=1000), ops.Include("tags", b"k", (b"x",), 1000))
    desk.ok(1, ops.Replace("users", b"k", (("a", b"1"),), 1000), ops.Patch("users", b"k", (("b", b"2"),)))
    assert len(settled(desk)) == 4
    desk.now_ms += 1000
    assert settled(desk) == {}
    for region in desk.regions.values():
        assert not [
            place for place in (CARTS, NOTES, TAGS, USERS) if list(region.store.scan("ap/c/" + place))
        ]
        assert (region.me.gone_rows, region.me.gone_bytes) == (0, 0)


def test_an_older_put_does_not_come_back_when_a_newer_one_has_ended():
    desk = Desk()
    desk.ok(1, put(b"older"))
    desk.now_ms += 10
    desk.ok(2, put(b"newer", ttl_ms=100))
    desk.now_ms += 200
    desk.append(2, ops.Accept(1, 0))
    assert desk[2].shown() == {}
    assert settled(desk) == {}


def test_what_arrives_after_its_end_is_never_seen():
    desk = Desk()
    desk.ok(1, put(b"v", ttl_ms=100), note(b"n", ttl_ms=100))
    desk.now_ms += 200
    desk.append(2, ops.Accept(1, 0))
    desk.pull(2, 1)
    assert desk[2].shown() == {}


def test_reading_pages_through_what_is_live():
    desk = Desk()
    for at in range(20):
        desk.ok(1, put(b"%d" % at, b"k%02d" % at))
    desk.ok(1, ops.Delete("r", "carts", tuple(b"k%02d" % at for at in range(0, 20, 2))))
    store = desk[1].store
    keys = [key for key, _ in reading.items(store, CARTS)]
    assert keys == [b"k%02d" % at for at in range(1, 20, 2)]
    assert [key for key, _ in reading.items(store, CARTS, limit=3)] == keys[:3]
    assert [key for key, _ in reading.items(store, CARTS, limit=3, reverse=True)] == keys[:-4:-1]
    assert [key for key, _ in reading.items(store, CARTS, b"k05", b"k11")] == keys[2:5]
    assert list(reading.items(store, CARTS, limit=0)) == []
    assert reading.get(store, CARTS, b"k05") == b"5" and reading.get(store, CARTS, b"k04") is None
    assert dict(reading.names(store)) == {"carts": [CARTS]}


def test_places_of_collections_are_read_back():
    for place in ("r/a", "k/a/b", "b0/x", "b-17/x", "s/ä"):
        assert places.is_place(place)
        kind, name, floor = places.split_place(place)
        assert places.place_of(kind, name, floor) == place
    for place in (
        "",
        "r",
        "r/",
        "x/a",
        "r1/a",
        "b/a",
        "b1/a",
        "b-0/a",
        "b+1/a",
        "b--1/a",
        "b" + "9" * 30 + "/a",
        "r/" + "a" * 200,
    ):
        assert not places.is_place(place), place
