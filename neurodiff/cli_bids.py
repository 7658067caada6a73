"""``neurodiff-bids BIDS_DIR OUT {participant,group}``, with the options of BIDS Apps."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from neurodiff.cli_options import told


class Level(enum.StrEnum):
    """Of the analysis."""

    participant = "participant"
    group = "group"


app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


def _show_version(wanted: bool) -> None:
    if wanted:
        from neurodiff.core.provenance import package_version

        typer.echo(f"neurodiff {package_version()}")
        raise typer.Exit


@app.command()
def run(
    bids_dir: Annotated[Path, typer.Argument(metavar="BIDS_DIR", help="Root of the data set.")],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of derivatives.")],
    analysis_level: Annotated[Level, typer.Argument(metavar="{participant,group}")],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A fitted LDAE, or its run.")
    ] = None,
    participant_label: Annotated[
        list[str] | None,
        typer.Option("--participant-label", "--participant_label", help="Repeatable. Else all."),
    ] = None,
    session_label: Annotated[
        list[str] | None, typer.Option("--session-label", "--session_label", help="Repeatable.")
    ] = None,
    random_seed: Annotated[int, typer.Option("--random-seed", min=0)] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, mps.")] = "cpu",
    stop_on_first_crash: Annotated[bool, typer.Option("--stop-on-first-crash")] = False,
    work_dir: Annotated[
        Path | None, typer.Option("-w", "--work-dir", help="Not needed; taken for habit.")
    ] = None,
    skip_bids_validation: Annotated[
        bool, typer.Option("--skip-bids-validation", "--skip_bids_validator", help="As above.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Semantic codes of T1-weighted scans as BIDS derivatives.

    Nothing is validated but what is read: each scan that cannot be read is one sentence. Exit
    codes: 0 done, 1 some scans failed, 2 wrong usage, 3 data or model missing or broken.
    """
    from neurodiff.analysis.bids_app import BidsAsked, group_level, participant_level
    from neurodiff.analysis.ldae_scans import Walk
    from neurodiff.core.errors import UsageError
    from neurodiff.core.progress import Progress

    progress = Progress.to_stdout()
    with told():
        if analysis_level is Level.group:
            typer.echo(group_level(bids_dir, output_dir, progress=progress))
            return
        if model is None:
            raise UsageError("the level participant needs --model, a fitted LDAE or its run")
        asked = BidsAsked(
            participants=tuple(participant_label or ()),
            sessions=tuple(session_label or ()),
            stop_on_first_crash=stop_on_first_crash,
            walk=Walk(seed=random_seed, device=device),
        )
        typer.echo(participant_level(bids_dir, output_dir, model, asked, progress=progress))


def main() -> None:
    """Entry point of ``neurodiff-bids``."""
    app()


if __name__ == "__main__":
    main()
