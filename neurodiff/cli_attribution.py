"""Command of attribution: which regions carry what a run decodes; `cli` puts it beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neurodiff.cli_options import Root, subject_of

app = typer.Typer()


@app.command()
def attribute(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that fit printed.")],
    rois: Annotated[
        str | None,
        typer.Option(
            "--rois", metavar="A,B|FILE", help="Names, or NIfTI, GIfTI or CIFTI files; else all."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="A,B", help="Such as leave_one_out,shapley,encoding; else four."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Else RUN/attribution.")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="Of the decoded features.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every draw.")] = 0,
    draws: Annotated[
        int, typer.Option("--draws", metavar="N", min=1, help="Permutations and bootstrap.")
    ] = 1000,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="Else the run's own test trials.")
    ] = None,
    root: Root = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Of the data.")] = None,
    task: Annotated[str, typer.Option("--task", help="For the names of maps.")] = "",
    space: Annotated[
        str | None,
        typer.Option("--space", help="Of voxels, such as MNI152NLin2009cAsym, for the names."),
    ] = None,
    views: Annotated[
        bool, typer.Option("--views/--no-views", help="Pages with maps that turn.")
    ] = True,
) -> None:
    """Which regions carry the information: scores with nulls, maps of the cortex, one page.

    A method that is finished is not computed again.
    """
    from neurodiff.analysis.attribution_verbs import AttributeOptions, attribute_run
    from neurodiff.core.progress import Progress

    page = attribute_run(
        run,
        out,
        _list(rois),
        _list(methods),
        metric,
        seed,
        more=AttributeOptions(
            data=data,
            root=root,
            subject=subject_of(subject),
            draws=draws,
            task=task,
            space_label=space,
            views=views,
        ),
        progress=Progress.to_stdout(),
    )
    typer.echo(str(page))


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
