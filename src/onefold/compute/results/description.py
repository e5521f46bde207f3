"""What a reader needs to know of a run's result, as msgpack with a version, behind the stored job.

It is written when the job is submitted. The jobs fold keeps what it kept before: a new field in its rows would make the state of
nodes of an earlier release differ from that of later ones (see docs/adr).
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from onefold.compute.code import needs as requirements
from onefold.compute.code import trailers
from onefold.compute.frames import data_types
from onefold.compute.plan.stages import PartialOutput, ReduceLeaf
from onefold.compute.results import aggregate_data
from onefold.compute.results.aggregate_data import AggregateData
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    from onefold.compute.plan.stored_job import StoredJob

VERSION: Final = 1
_MARK: Final = b"1FD"


class Maker(msgspec.Struct, frozen=True, array_like=True):
    """What wrote the description."""

    python: str
    onefold: str
    polars: str


class Description(msgspec.Struct, frozen=True, array_like=True):
    """The result of a run, without any code. Fields are added at the end, with defaults."""

    version: int
    stage: int
    """The stage whose tasks make up the result."""
    kind: Literal["groups", "rows", "pairs"]
    """"groups": partials that are merged; "rows": frames one after the other; "pairs": the same of a map_reduce."""
    order: Literal["keys", "dispatch"]
    """In which order the rows of the whole result stand."""
    keys: tuple[str, ...]
    """The columns that identify a row; none for rows of a dataset."""
    aggregates: tuple[AggregateData, ...]
    columns: tuple[str, ...] | None
    """All columns, when the plan tells them."""
    types: tuple[Any, ...] | None
    """Their data types (see ``data_types``), when the plan tells those too."""
    steps: tuple[str, ...]
    """The plan for people, a line a step."""
    made_by: Maker

    @property
    def needs_code(self) -> bool:
        """Whether merging takes functions of the job: then only its Python, and its libraries, can read the result."""
        return any(aggregate_data.needs_code(one) for one in self.aggregates)


class _Head(msgspec.Struct, array_like=True):
    version: int


_encode = msgspec.msgpack.Encoder().encode
_head_decoder = msgspec.msgpack.Decoder(_Head)
_decoder = msgspec.msgpack.Decoder(Description)


def describe(stored: StoredJob, *, keys: tuple[str, ...] | None = None) -> Description:
    """The description of a stored job's result. ``keys``: their names, when its expressions cannot tell them."""
    import polars as pl

    from onefold._version import __version__
    from onefold.compute.plan.explain import job_text

    stage = stored.stages[stored.result_stage]
    output = stage.output
    groups = isinstance(output, PartialOutput)
    pairs = any(isinstance(branch.leaf, ReduceLeaf) for branch in stage.branches)
    earlier = keys is not None
    return Description(
        version=VERSION,
        stage=stored.result_stage,
        kind="groups" if groups else "pairs" if pairs else "rows",
        order="keys" if groups else "dispatch",
        keys=stored.key_columns if keys is None else keys,
        aggregates=tuple(aggregate_data.to_data(name, one) for name, one in output.aggs)
        if isinstance(output, PartialOutput)
        else (),
        columns=stored.columns,
        types=tuple(data_types.to_data(dtype) for _, dtype in stored.schema)
        if stored.schema is not None
        else None,
        steps=() if earlier else tuple(job_text(stored.job).splitlines()),
        made_by=Maker("" if earlier else platform.python_version(), __version__, pl.__version__),
    )


def encode(description: Description) -> bytes:
    """Its bytes."""
    return _encode(description)


def decode(data: bytes) -> Description:
    """The reverse of ``encode``. Raises InvalidValue for a version that this release does not know, and for broken bytes."""
    try:
        version = _head_decoder.decode(data).version
        if version != VERSION:
            raise InvalidValue(
                f"the description of the result has format {version}, and this release reads up to {VERSION}: a later one wrote "
                "it; update this one"
            )
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise InvalidValue(f"the description of the result is damaged: {error}") from error


def attached(pickled: bytes, description: Description) -> bytes:
    """The bytes of a stored job with the description behind them; ``functions.load`` does not mind."""
    return trailers.appended(pickled, encode(description), _MARK)


def found(data: bytes) -> Description | None:
    """The description behind a stored job; None when an earlier release wrote it. Raises InvalidValue."""
    section = trailers.last(requirements.without(data), _MARK)
    return decode(section[0]) if section is not None else None
