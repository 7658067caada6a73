"""Options and small steps that the verbs of several files share; `cli` gathers the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path | None, typer.Option("--root", metavar="DIR", help="Folder of the data.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="NAME", help="Name or path of a data set's card.")
]
Subject = Annotated[
    str | None, typer.Option("--subject", metavar="N", help="Number or label of a subject.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of all randomness.")]


def show(result: object) -> None:
    """Print what a verb returned: the path of what it made, or a text."""
    if result is not None:
        typer.echo(str(result))


def subject_of(label: str | None) -> int | str | None:
    """A number where it is one: data sets count their subjects, tables name them."""
    return int(label) if label is not None and label.isdecimal() else label
