"""Options that every command has, before or after the command's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from onefold import config

if TYPE_CHECKING:
    from onefold.db import Database

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The space: a folder, sqlite:///folder or nats://host:port/SPACE. Default: ONEFOLD_URL, else ./.onefold.",
        show_default=False,
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="NAME",
        help="For available collections: the region whose view it is. Default: the first.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.", show_default=False)
]
ShardsOption = Annotated[
    int | None,
    typer.Option(
        "--shards",
        min=1,
        max=config.SHARDS_MAX,
        metavar="N",
        help="Shards of the space (default 1); cannot be changed later.",
    ),
]
ReplicasOption = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        min=1,
        max=5,
        metavar="N",
        help="On a cluster: copies of everything, 1, 3 or 5 (default 3).",
    ),
]
RegionsOption = Annotated[
    str | None,
    typer.Option(
        "--regions",
        metavar="NAME,NAME",
        help="On a cluster of several regions: their names, with which the servers' names begin; cannot be changed later.",
        show_default=False,
    ),
]
BlobsOption = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        metavar="PLACE",
        help="On a cluster: where results of jobs stay, fixed for the space: jetstream (default), s3://bucket/prefix, dir:/path.",
    ),
]


_WEAK_TIMEOUT_S: Final = 5.0
ROWS_MAX: Final = 1_000_000_000
"""The largest number of rows, items or records that a command can be asked for."""


@dataclass(frozen=True)
class Place:
    """Which space, and how to answer."""

    url: str | None = None
    json: bool = False
    region: str | None = None

    def open(self, *, create: bool = False, weakly: bool = False) -> Database:
        """Connect, for a command that may write. SpaceError when there is no space. Ends with wrong usage for a URL that cannot
        be one. ``weakly``: for reading only what can be read without waiting for servers that are away."""
        if weakly:
            return self._connect(
                create=False, read_only=True, consistency="eventual", timeout=_WEAK_TIMEOUT_S
            )
        return self._connect(create=create)

    def looking(self) -> Database:
        """Connect for a command that says what there is, and changes nothing. A space in a folder is opened read-only, and shows
        all that was committed at any level; none waits for a transaction that a dead program left. On a cluster a look appends a
        record to each log, as any strong read does."""
        from onefold.db import target_of
        from onefold.errors import InvalidArgument

        try:
            here = not target_of(self.url).startswith(("memory:", "nats:", "tls:"))
        except InvalidArgument as error:
            raise typer.BadParameter(str(error), param_hint="--url") from None
        return self._connect(create=False, read_only=True, consistency="eventual") if here else self.reading()

    def reading(self) -> Database:
        """Connect for a command that reads data. A read may have to end a transaction that a dead program left, so it may write;
        but nothing is removed or trimmed on the way."""
        db = self._connect(create=False)
        db._sweeping.leave_to_others()
        return db

    def _connect(self, **options: Any) -> Database:
        from onefold.db import connect
        from onefold.errors import InvalidArgument

        if self.region is not None:
            options["region"] = self.region
        try:
            return connect(self.url, **options)
        except InvalidArgument as error:
            raise typer.BadParameter(str(error), param_hint="--url") from None

    def rehearse(self, use: Callable[[Database], object]) -> None:
        """For a command that makes the space: where a folder has none, do it in memory first, so that what is refused makes
        none either. Raises what ``use`` raises."""
        from onefold.db import connect, target_of
        from onefold.errors import InvalidArgument
        from onefold.log.jetstream.client.address import is_nats
        from onefold.space.open_space import is_there

        try:
            target = target_of(self.url)
        except InvalidArgument as error:
            raise typer.BadParameter(str(error), param_hint="--url") from None
        if target.startswith("memory:") or is_nats(target) or is_there(target):
            return
        with connect("memory://") as db:
            use(db)


def checked_name(kind: str) -> Callable[[str | None], str | None]:
    """For an argument that is the name of a collection: ends with wrong usage for what cannot be one."""

    def check(name: str | None) -> str | None:
        from onefold.errors import InvalidArgument
        from onefold.state.encoding.names import check_name

        try:
            return None if name is None else check_name(kind, name)
        except InvalidArgument as error:
            raise typer.BadParameter(str(error)) from None

    return check


def region_names(text: str | None) -> list[str] | None:
    """The regions that were given. Raises InvalidArgument for names that cannot be those of a space."""
    from onefold.log.jetstream.regions import check_regions

    return None if text is None else list(check_regions([name.strip() for name in text.split(",")]))


def duration(text: str | None, name: str) -> float | None:
    """Seconds; ends with wrong usage for what is not a duration."""
    from onefold.durations import seconds
    from onefold.errors import InvalidArgument

    try:
        return None if text is None else seconds(text, name)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error), param_hint=name) from None


def place(ctx: typer.Context, url: str | None, as_json: bool, region: str | None = None) -> Place:
    """What was said after the command's name, else before it."""
    before = ctx.obj if isinstance(ctx.obj, Place) else Place()
    return Place(url if url is not None else before.url, as_json or before.json, region)
