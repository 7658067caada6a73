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
    from neurodiff.core.weights_convert import convert_weights

    typer.echo(str(convert_weights(file, out, trusted=trusted, seconds=seconds, memory_gb=memory)))


def doctor_data(card: str, root: Path | None) -> list[str]:
    """Lines of ``neurodiff doctor --data CARD --root DIR``: what is missing, size, licence, place.

    Raises
    ------
    UsageError : there is no such card.
    """
    from neurodiff.core.config import find_shared
    from neurodiff.core.preflight import missing, need_of_card
    from neurodiff.core.safe_io import read_yaml

    path = find_shared("datasets", card)
    return [str(finding) for finding in missing([need_of_card(read_yaml(path), root)])]
