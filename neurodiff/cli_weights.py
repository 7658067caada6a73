"""``neurodiff weights``: what a checkpoint holds, what it should, and a safe copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neurodiff.core.errors import DataError

weights_app = typer.Typer(
    help="Published weights: what a file holds, and what it should.", no_args_is_help=True
)


@weights_app.command("check")
def weights_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A published checkpoint.")],
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Accept other sizes than the published ones.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Write out every name.")] = False,
) -> None:
    """Table of keys of a checkpoint: matched, missing, unexpected; exit code 3 if unusable."""
    from neurodiff.analysis.published import check_weights

    table, problem = check_weights(file, any_size=any_size, full=full)
    typer.echo(table)
    if problem:
        raise DataError(problem)


@weights_app.command("convert")
def weights_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of torch.save.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new .safetensors file.")],
    trusted: Annotated[
        bool,
        typer.Option(
            "--i-trust-this-file",
            help="Run the code in it, in a process with limits. Compare its SHA-256 first.",
        ),
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", help="Limit of time.")] = 600.0,
    memory: Annotated[
        float | None, typer.Option("--memory", help="Limit of address space in GiB.")
    ] = None,
) -> None:
    """Make safetensors of a checkpoint that cannot be read without running its code."""
    from neurodiff.core.safe_io import sha256_of
    from neurodiff.core.safe_limits import existing_file
    from neurodiff.core.weights_convert import convert_weights

    if trusted:  # before anything of the file runs
        typer.echo(f"SHA-256 {sha256_of(existing_file(file))}", err=True)
    typer.echo(str(convert_weights(file, out, trusted=trusted, seconds=seconds, memory_gb=memory)))


@weights_app.command("expected")
def weights_expected() -> None:
    """What the released file holds, counted without memory: tensors and parameters by part."""
    from neurodiff.analysis.published import expected_table

    typer.echo(expected_table())
