"""What the engine's answers to an append mean: definite refusals are few, and everything doubtful is unknown."""

import json

import pytest

from onefold.errors import AppendUnknown, OnefoldError, SpaceError, TooLarge, Unavailable
from onefold.log.api import NoRoom
from onefold.log.jetstream.acks import offset_of
from onefold.log.jetstream.client.message import Msg


def answer(body: object, headers: dict[str, str] | None = None) -> Msg:
    return Msg("inbox", "", headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def refusal(code: int) -> Msg:
    return answer({"stream": "S", "seq": 0, "error": {"code": 400, "err_code": code, "description": "no"}})


def test_an_acknowledgement() -> None:
    assert offset_of(answer({"stream": "S", "seq": 7}), "S", "the log") == 7
    assert (
        offset_of(answer({"stream": "S", "seq": 7, "domain": "d", "duplicate": False}), "S", "the log") == 7
    )


@pytest.mark.parametrize(
    ("given", "raised"),
    [
        (answer(b"", {"Status": "503"}), Unavailable),
        (refusal(10054), TooLarge),
        (refusal(10060), SpaceError),
        (refusal(10039), SpaceError),
        (refusal(10002), NoRoom),
        (refusal(10023), NoRoom),
    ],
)
def test_definite_refusals(given: Msg, raised: type[OnefoldError]) -> None:
    with pytest.raises(raised) as error:
        offset_of(given, "S", "the log")
    assert type(error.value) is raised and error.value.definite


@pytest.mark.parametrize(
    "given",
    [
        None,
        answer(b""),
        answer(b"not json"),
        answer([1]),
        answer({"stream": "S", "seq": "7"}),
        answer({"stream": "S", "seq": 0}),
        answer({"stream": "S", "seq": -1}),
        answer({"stream": "another", "seq": 7}),
        answer({}),
        refusal(10077),
        refusal(10008),
        refusal(0),
    ],
)
def test_everything_else_is_unknown(given: Msg | None) -> None:
    with pytest.raises(AppendUnknown) as error:
        offset_of(given, "S", "the log")
    assert not error.value.definite
