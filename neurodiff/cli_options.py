"""Options and small steps that the verbs of several files share; `cli` gathers the verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from neurodiff.core.errors import NeurodiffError, file_error

Root = Annotated[Path | None, typer.Option("--root", metavar="DIR", help="Folder of the data.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="NAME", help="Name or path of a data set's card.")
]
Subject = Annotated[
    str | None, typer.Option("--subject", metavar="N", help="Number or label of a subject.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of all randomness.")]


INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turns our own errors and an interruption into one line and an exit code."""
    try:
        yield
    except NeurodiffError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        if (sentence := file_error(error)) is None:
            raise
        typer.echo(f"error: {sentence}", err=True)
        raise typer.Exit(sentence.exit_code) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; run the same command again to continue", err=True)
        raise typer.Exit(INTERRUPTED) from error


def show(result: object) -> None:
    """Print what a verb returned: the path of what it made, or a text."""
    if result is not None:
        typer.echo(str(result))


def subject_of(label: str | None) -> int | str | None:
    """A number where it is one: data sets count their subjects, tables name them."""
    return int(label) if label is not None and label.isdecimal() else label
