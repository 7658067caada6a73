"""Commands of brain scans: encode, decode, edit, interpolate; `cli` puts them beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neurodiff.cli_options import Root

app = typer.Typer()

Model = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="Folder of a fitted model or of its run.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help="Of a walk; else the model's.")
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]


@app.command()
def encode(
    cohort: Annotated[
        str, typer.Argument(metavar="COHORT", help="A data set, a folder of scans, or a CSV.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .parquet or .csv, or a folder.")],
    model: Model,
    root: Root = None,
    device: Device = "cpu",
) -> None:
    """Codes of every scan as one table, with what is unusual about each; goes on after a kill."""
    from neurodiff.analysis.ldae_verbs import encode_cohort

    typer.echo(str(encode_cohort(cohort, out, model, root=root, **_how(None, 0, device))))


@app.command()
def decode(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="What encode wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images.")],
    model: Model,
    steps: Steps = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the noise that is drawn.")] = 0,
    device: Device = "cpu",
) -> None:
    """An image on the model's grid for each code, from noise that is drawn."""
    from neurodiff.analysis.ldae_verbs import decode_codes

    typer.echo(str(decode_codes(table, out, model, **_how(steps, seed, device))))


@app.command()
def edit(
    scans: Annotated[str, typer.Argument(metavar="SCAN|COHORT", help="A scan, or a cohort.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images.")],
    model: Model,
    towards: Annotated[str, typer.Option("--towards", metavar="NAME", help="Such as AD or age.")],
    amount: Annotated[
        list[float],
        typer.Option("--amount", metavar="X", help="How far, in SD of the score; repeatable."),
    ],
    root: Root = None,
    steps: Steps = None,
    device: Device = "cpu",
) -> None:
    """Scans moved along a direction of the model, and the change at each scan's own voxels."""
    from neurodiff.analysis.ldae_verbs import edit_scans

    options = _how(steps, 0, device)
    typer.echo(str(edit_scans(scans, out, model, towards, amount, root=root, **options)))


@app.command()
def interpolate(
    a: Annotated[str, typer.Argument(metavar="A", help="A scan, or with --cohort its id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A later one of the same person.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the images.")],
    model: Model,
    t: Annotated[
        list[float] | None, typer.Option("--t", metavar="T", help="0 is A, 1 is B; repeatable.")
    ] = None,
    month: Annotated[
        float | None, typer.Option("--month", metavar="M", help="Instead: by the ids' months.")
    ] = None,
    cohort: Annotated[
        str | None, typer.Option("--cohort", metavar="COHORT", help="Where the ids are.")
    ] = None,
    root: Root = None,
    steps: Steps = None,
    device: Device = "cpu",
) -> None:
    """A missing visit between two scans of one person."""
    from neurodiff.analysis.ldae_verbs import interpolate_scans
    from neurodiff.core.errors import UsageError

    if t and month is not None:
        raise UsageError("give --t or --month, not both")
    where: dict[str, Any] = {"cohort": cohort, "root": root, "month": month}
    where |= _how(steps, 0, device)
    typer.echo(str(interpolate_scans(a, b, out, model, t or 0.5, **where)))


def _how(steps: int | None, seed: int, device: str) -> dict[str, Any]:
    from neurodiff.analysis.ldae_scans import Walk
    from neurodiff.core.progress import Progress

    walk = Walk(steps=steps, seed=seed, device=device)
    return {"walk": walk, "progress": Progress.to_stdout()}
