"""Commands about trust: ``weights convert``, and what ``doctor`` is asked about data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
