"""``neurodiff prepare``: fMRIPrep's derivatives and events in, trials out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neurodiff.cli_options import show


def prepare(
    fmriprep: Annotated[Path, typer.Option("--fmriprep", metavar="DIR", help="Derivatives.")],
    events: Annotated[
        str,
        typer.Option(
            "--events",
            metavar="TSV",
            help="Events: a table, a BIDS folder, or a path with {subject}, {session}, {run}.",
        ),
    ],
    delay: Annotated[
        float, typer.Option("--delay", metavar="S", help="Seconds from onset to the first frame.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the trials.")],
    tr: Annotated[
        float | None, typer.Option("--tr", metavar="S", help="Seconds; the files have to agree.")
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", metavar="LABEL", help="A subject; repeatable. Else all."),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only this task.")] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", help="Of a trial; else duration / TR.")
    ] = None,
    zscore: Annotated[
        str,
        typer.Option(
            "--zscore",
            help="run, session, none, or first-run: by the first run's statistics, as released.",
        ),
    ] = "run",
    confounds: Annotated[
        list[str] | None,
        typer.Option("--confounds", metavar="NAMES", help="Columns or patterns; repeatable."),
    ] = None,
    detrend: Annotated[bool, typer.Option("--detrend", help="Remove a linear trend.")] = False,
    high_pass: Annotated[
        float | None, typer.Option("--high-pass", metavar="HZ", help="Remove slower drifts.")
    ] = None,
    keep: Annotated[str, typer.Option("--keep", help="maps, vertices or both.")] = "maps",
    test_list: Annotated[
        Path | None,
        typer.Option("--test-list", metavar="FILE", help="Test objects, <folder>/<id> a line."),
    ] = None,
    roi: Annotated[
        list[str] | None,
        typer.Option("--roi", metavar="FILE", help="Areas of a person; may hold {subject}."),
    ] = None,
    stimulus_column: Annotated[
        str | None, typer.Option("--stimulus-column", help="Column that names what was shown.")
    ] = None,
    trial_type: Annotated[
        list[str] | None, typer.Option("--trial-type", help="Only these rows; repeatable.")
    ] = None,
    drop_last: Annotated[
        bool, typer.Option("--drop-last", help="Leave out the last row of each table.")
    ] = False,
    drop_outside: Annotated[
        bool, typer.Option("--drop-outside", help="Leave out trials that their run does not hold.")
    ] = False,
) -> None:
    """Cut fMRIPrep's CIFTI series into trials that every reader and recipe takes.

    A trial is the frames from the first one at or after onset + delay. The same command goes on
    after an interruption.
    """
    from neurodiff.core.progress import Progress
    from neurodiff.datasets.prepare import prepare as cut
    from neurodiff.datasets.prepare_plan import PrepareSettings

    settings = PrepareSettings(
        delay=delay,
        tr=tr,
        frames=frames,
        zscore=zscore,  # type: ignore[arg-type]  # checked by the settings
        confounds=tuple(name for text in confounds or () for name in text.split(",") if name),
        detrend=detrend,
        high_pass=high_pass,
        keep=keep,  # type: ignore[arg-type]
        stimulus_column=stimulus_column,
        trial_type=tuple(trial_type or ()),
        drop_last=drop_last,
        drop_outside=drop_outside,
    )
    show(
        cut(
            fmriprep,
            events,
            out,
            settings,
            subjects=subject or (),
            task=task,
            test_list=test_list,
            rois=roi or (),
            progress=Progress.to_stdout(),
        )
    )


def unpack(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A zip or tar file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.")],
    limit_gb: Annotated[
        float, typer.Option("--limit", min=0.001, help="GiB that its files may take.")
    ] = 50.0,
) -> None:
    """Unpack an archive of a data set or of weights; nothing in it can lead out of the folder.

    Links, devices and absolute names are refused; all of it is unpacked, or nothing.
    """
    from neurodiff.core.safe_archives import extract_archive

    typer.echo(str(extract_archive(archive, out, limit=int(limit_gb * 2**30))))
