"""The URL of a space on NATS: what it means, what is refused, and that no secret of it is ever shown."""

import pytest

from onefold.errors import InvalidArgument
from onefold.log.jetstream.client.address import Address, is_nats, parse_address, redact

SEED = "SUAM" + "A2B3" * 14


def parse(url: str, **environ: str) -> Address:
    return parse_address(url, environ)


def test_a_plain_url() -> None:
    address = parse("nats://h1:4222,h2,[::1]:5000/main")
    assert address.servers == ("h1:4222", "h2:4222", "[::1]:5000")
    assert (address.space, address.tls, address.user, address.password) == ("main", False, None, None)
    assert address.url == str(address) == "nats://h1:4222,h2:4222,[::1]:5000/main"


def test_user_and_password_may_stand_before_one_server_or_all() -> None:
    for hosts in ("ann:pa%2Fss%40@h1,h2", "ann:pa%2Fss%40@h1,ann:pa%2Fss%40@h2"):
        address = parse(f"nats://{hosts}/main")
        assert (address.user, address.password) == ("ann", "pa/ss@")
        assert address.servers == ("h1:4222", "h2:4222")


def test_options() -> None:
    address = parse("tls://h/s?ca=/etc/ca.pem&cert=c&key=k&nkey=/run/app%20seed&inbox=_INBOX_app")
    assert (address.ca, address.cert, address.key, address.nkey) == ("/etc/ca.pem", "c", "k", "/run/app seed")
    assert address.tls and address.inbox == "_INBOX_app"
    assert address.url == "tls://h:4222/s?ca=/etc/ca.pem&cert=c&key=k&nkey=/run/app%20seed&inbox=_INBOX_app"
    assert parse(address.url) == address


@pytest.mark.parametrize(
    "url", ["tls://h/s", "nats://h/s?tls=1", "nats://h/s?ca=f", "nats://h/s?cert=c&key=k"]
)
def test_tls_is_required_where_it_is_named(url: str) -> None:
    assert parse(url).tls
    assert not parse("nats://h/s?tls=0").tls


def test_the_environment_gives_what_the_url_leaves_out() -> None:
    environ = {
        "ONEFOLD_NATS_CA": "/ca",
        "ONEFOLD_NATS_USER": "bob",
        "ONEFOLD_NATS_PASSWORD": "secret",
        "ONEFOLD_NATS_NKEY": "/seed",
        "ONEFOLD_NATS_CREDS": "/creds",
    }
    address = parse("nats://h/s", **environ)
    assert (address.creds, address.nkey, address.user, address.ca, address.tls) == (
        "/creds",
        None,
        None,
        "/ca",
        True,
    )
    del environ["ONEFOLD_NATS_CREDS"]
    assert parse("nats://h/s", **environ).nkey == "/seed"
    del environ["ONEFOLD_NATS_NKEY"]
    address = parse("nats://h/s", **environ)
    assert (address.user, address.password) == ("bob", "secret")


def test_a_credential_of_the_url_is_the_only_one() -> None:
    address = parse("nats://h/s?nkey=/mine", ONEFOLD_NATS_CREDS="/theirs", ONEFOLD_NATS_USER="bob")
    assert (address.nkey, address.creds, address.user) == ("/mine", None, None)
    address = parse("nats://ann@h/s", ONEFOLD_NATS_PASSWORD="secret", ONEFOLD_NATS_NKEY="/theirs")
    assert (address.user, address.password, address.nkey) == ("ann", "secret", None)


BAD = [
    "nats://",
    "nats://h",
    "nats://h/",
    "nats:///s",
    "nats://h/two/parts",
    "nats://h/" + "x" * 33,
    "nats://h/sp.ace",
    "nats://h:0/s",
    "nats://h:x/s",
    "nats://h:70000/s",
    "nats://h1,,h2/s",
    "nats://ann:hunter2@h1,bob:hunter2@h2/s",
    "nats://:hunter2@h/s",
    "nats://ann@h/s",
    "nats://ann:hunter2/x@h/s",
    "nats://h/s?colour=red",
    "nats://h/s?ca=",
    "nats://h/s?token=hunter2",
    "nats://h?pass=hunter2",
    "nats://h/s?ca=a&ca=b",
    "nats://h/s?cert=c",
    "nats://h/s?tls=yes",
    "nats://h/s?inbox=a..b",
    "nats://h/s?inbox=a%20b",
    "nats://h/s?nkey=a&creds=b",
    f"nats://h/s?nkey={SEED}",
    "http://ann:hunter2@h/s",
    "ann:hunter2@h/s",
]


@pytest.mark.parametrize("url", BAD)
def test_what_makes_no_sense_is_refused_without_a_secret(url: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse(url)
    assert "hunter2" not in str(error.value) and SEED not in str(error.value)


def test_seeds_in_the_environment_are_refused_and_not_shown() -> None:
    with pytest.raises(InvalidArgument) as error:
        parse("nats://h/s", ONEFOLD_NATS_NKEY=SEED)
    assert SEED not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "nats://ann:hunter2@h/s",
        "nats://ann:hun@ter2:hunter2@h1,ann:hunter2@h2/s?ca=/x",
        "nats://ann:hunter2@h/s?ca=/a@b",
        "ann:hunter2@h",
        f"nats://h/s?nkey={SEED}",
        "nats://h?token=hunter2",
        "nats://h/s?ca=/x&password=hunter2&tls=1",
    ],
)
def test_redaction(url: str) -> None:
    shown = redact(url)
    assert "hunter2" not in shown and SEED not in shown and "ann" not in shown


def test_no_text_of_an_address_has_its_secrets() -> None:
    address = parse("nats://ann:hunter2@h/s?ca=/ca")
    for text in (repr(address), str(address), f"{address!r}", address.url):
        assert "hunter2" not in text and "ann" not in text
    assert "/ca" in address.url


def test_equal_addresses_are_equal_keys() -> None:
    assert len({parse("nats://h/s"), parse("nats://h:4222/s"), parse("nats://h/t")}) == 2


def test_which_urls_are_nats() -> None:
    assert is_nats("nats://h/s") and is_nats("tls://h/s")
    assert not any(map(is_nats, ("memory://", "sqlite:///x", "nats", "some/nats://path", "")))
