"""``onefold explain``."""

from __future__ import annotations

from typing import Annotated

import typer

from onefold.cli import output
from onefold.cli.options import JsonOption, UrlOption, place


def explain(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The table.")],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how a table is made, and why its last run computed something again.

    JSON: {table, sentences: [...]}.
    """
    where = place(ctx, url, as_json)
    with where.open() as db:
        sentences = db.explain(name)
    if where.json:
        output.emit({"table": name, "sentences": sentences})
        return
    for sentence in sentences:
        print(sentence)
