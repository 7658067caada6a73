"""``neurodiff ct``: CT series in, one standard out. Each verb imports what it needs when called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neurodiff.core.errors import UsageError

if TYPE_CHECKING:
    from neurodiff.pipelines.ct_support import StandardizerSettings

ct_app = typer.Typer(
    help="CT standardization: index an archive, fit a mapping, apply it, look at what changed.",
    epilog="Research use; filters hold between reconstructions of one scanner's raw data. Exit "
    "codes: 0 done, 1 some scans were not done (failed.csv), 2 wrong usage, 3 data missing or "
    "broken.",
    no_args_is_help=True,
)
combat_app = typer.Typer(
    help="ComBat: take the shift and scale of scanner, kernel or site out of features.",
    no_args_is_help=True,
)
ct_app.add_typer(combat_app, name="combat")

SOME_FAILED = 1

Key = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="Secret from which pseudonyms are made."),
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="With an index: folder of its files.")
]

Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Of the diffusion; linear has none.")
]


@ct_app.command()
def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the archive.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The index, .parquet; kept up to date.")
    ] = Path("ct_index.parquet"),
    key_file: Key = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
) -> None:
    """Read the headers of an archive into one table and print what it covers.

    No name, number or date of a patient is stored. A second call reads what is new or changed.
    """
    from neurodiff.analysis.ct_verbs import index_archive
    from neurodiff.core.progress import Progress

    progress = Progress.to_stdout()
    typer.echo(index_archive(folder, out, key_file=key_file, workers=workers, progress=progress))


@ct_app.command()
def fit(
    source: Annotated[
        list[Path] | None,
        typer.Option("--source", metavar="DIR", help="A series of the source kernel; repeatable."),
    ] = None,
    target: Annotated[
        list[Path] | None,
        typer.Option("--target", metavar="DIR", help="The same scan in the standard kernel."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for mapping.yaml and filters.")
    ] = Path("mapping"),
    kind: Annotated[str, typer.Option("--kind", help="kernel or thickness.")] = "kernel",
    add: Annotated[
        bool, typer.Option("--add", help="Add a rule to the mapping that --out holds.")
    ] = False,
    phantom: Annotated[
        bool, typer.Option("--phantom", help="Source and target are phantom scans, no pairs.")
    ] = False,
    rod: Annotated[
        str | None,
        typer.Option("--rod", metavar="ROW,COLUMN,MM", help="With --phantom: a round rod."),
    ] = None,
    library: Annotated[
        str | None,
        typer.Option("--library", metavar="NAME", help="A measured kernel change, no scans."),
    ] = None,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="With --library: the other way.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help="Settings, or a recipe of the diffusion."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit a mapping to the standard kernel from pairs, phantom scans or the library; seconds."""
    from neurodiff.analysis import ct_verbs
    from neurodiff.core.progress import Progress

    sources, targets = list(source or ()), list(target or ())
    if library is not None:
        if sources or targets or phantom or add:
            raise UsageError("--library needs no scans: leave out --source, --target, --phantom")
        typer.echo(ct_verbs.fit_library(library, out, reverse=reverse, settings=_settings(recipe)))
        return
    if reverse:
        raise UsageError("--reverse goes with --library; for pairs, swap --source and --target")
    if not phantom:
        if rod is not None:
            raise UsageError("--rod goes with --phantom")
        typer.echo(
            ct_verbs.fit_mapping(
                sources,
                targets,
                out,
                kind=kind,
                add=add,
                recipe=recipe,
                seed=seed,
                progress=Progress.to_stdout(),
            )
        )
        return
    if len(sources) != 1 or len(targets) != 1 or add:
        raise UsageError("--phantom takes one --source and one --target, and a new --out")
    typer.echo(
        ct_verbs.fit_phantom(sources[0], targets[0], out, rod=_rod(rod), settings=_settings(recipe))
    )


@ct_app.command()
def apply(
    source: Annotated[
        Path, typer.Argument(metavar="INDEX|DIR|CSV", help="Index, archive, or a table of volumes.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results.")],
    mapping: Annotated[
        Path, typer.Option("--mapping", metavar="DIR|YAML", help="What ct fit made.")
    ],
    mode: Annotated[str, typer.Option("--mode", help="linear or diffusion.")] = "linear",
    to: Annotated[str, typer.Option("--to", help="dicom or nifti.")] = "dicom",
    deidentify: Annotated[
        bool,
        typer.Option(
            "--deidentify/--link", help="Replace patient and study, or keep them in the headers."
        ),
    ] = False,
    missing: Annotated[
        str, typer.Option("--missing", help="Series that lack slices: error or interpolate.")
    ] = "error",
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Also other models of the rules' vendors.")
    ] = False,
    seed: Seed = 0,
    despite_gate: Annotated[
        bool,
        typer.Option(
            "--despite-gate", help="Diffusion whose autoencoder failed its gate; reports warn."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print covered and uncovered scans, and stop.")
    ] = False,
    root: Root = None,
    key_file: Key = None,
) -> None:
    """Standardize a cohort; prints which scans are covered first, and goes on after failures.

    The same command goes on after an interruption. Folders are named by pseudonyms.
    """
    from neurodiff.analysis.ct_apply import HowToApply, apply_cohort
    from neurodiff.core.progress import Progress

    how = HowToApply(
        mode=mode,
        to=to,
        identity="deidentify" if deidentify else "link",
        missing=missing,
        extrapolate=extrapolate,
        dry_run=dry_run,
        seed=seed,
        despite_gate=despite_gate,
    )
    done = apply_cohort(
        source,
        out,
        mapping,
        how,
        root=root,
        key_file=key_file,
        progress=Progress.to_stdout(),
    )
    typer.echo(done.text)
    if len(done.failed):
        raise typer.Exit(SOME_FAILED)


@ct_app.command()
def qa(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of ct apply.")],
    source: Annotated[
        Path, typer.Option("--source", metavar="INDEX|DIR", help="What was standardized.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The HTML page to write.")
    ] = Path("ct_qa.html"),
    reference: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            metavar="SCAN=DIR",
            help="The scan as acquired in the standard; repeatable. Else looked for in --source.",
        ),
    ] = None,
    root: Root = None,
    key_file: Key = None,
) -> None:
    """Write one page: what changed, what could not be recovered, and how well features agree."""
    from neurodiff.analysis.ct_qa import write_qa
    from neurodiff.core.progress import Progress

    done = write_qa(
        results,
        source,
        out,
        references=tuple(reference or ()),
        root=root,
        key_file=key_file,
        progress=Progress.to_stdout(),
    )
    typer.echo(done.text)
    if len(done.failed):
        raise typer.Exit(SOME_FAILED)


@ct_app.command()
def radiomics(
    cases: Annotated[
        Path, typer.Argument(metavar="CASES", help="Folder of ct apply, index, or archive.")
    ],
    rois: Annotated[
        str,
        typer.Option("--rois", metavar="PATH", help="Masks; holds {scan}, {subject} or {folder}."),
    ],
    settings: Annotated[
        str | None,
        typer.Option("--settings", metavar="YAML", help="A file, ibsi or pyradiomics."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Table, .parquet or .csv.")
    ] = Path("features.parquet"),
    names: Annotated[
        str, typer.Option("--names", help="Columns: ibsi, pyradiomics or both.")
    ] = "both",
    root: Root = None,
    key_file: Key = None,
) -> None:
    """Compute IBSI features of every region of every case; goes on after failures."""
    from neurodiff.analysis.ct_radiomics import extract
    from neurodiff.core.progress import Progress

    done = extract(
        cases,
        rois,
        out,
        settings=settings,
        names=names,
        root=root,
        key_file=key_file,
        progress=Progress.to_stdout(),
    )
    typer.echo(done.text)
    if len(done.failed):
        raise typer.Exit(SOME_FAILED)


Info = Annotated[
    Path | None,
    typer.Option("--info", metavar="TABLE", help="Columns by scan: batches, covariates."),
]


@combat_app.command("fit")
def combat_fit(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help="Training rows.")],
    batch: Annotated[str, typer.Option("--batch", metavar="COLUMN", help="Scanner, kernel, site.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The fit, .json.")] = Path(
        "combat.json"
    ),
    reference: Annotated[
        str | None, typer.Option("--reference", help="Batch that the others are brought to.")
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option("--covariate", metavar="COLUMN", help="Effect to keep; repeatable."),
    ] = None,
    info: Info = None,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out features without a value somewhere.")
    ] = False,
) -> None:
    """Estimate shifts and scales on training rows."""
    from neurodiff.analysis.ct_radiomics import combat_fit as run

    typer.echo(
        run(
            features,
            out,
            batch=batch,
            reference=reference,
            covariates=tuple(covariate or ()),
            info=info,
            drop_missing=drop_missing,
        )
    )


@combat_app.command("transform")
def combat_transform(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help="Rows to harmonize.")],
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="What combat fit made.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Table, .parquet or .csv.")
    ] = Path("harmonized.parquet"),
    info: Info = None,
) -> None:
    """Harmonize rows by a fit, which never sees them."""
    from neurodiff.analysis.ct_radiomics import combat_transform as run

    typer.echo(run(features, out, model=model, info=info))


def _rod(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        row, column, radius = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--rod {text} is not ROW,COLUMN,MM, such as 256,300.5,12") from None
    return row, column, radius


def _settings(recipe: str | None) -> StandardizerSettings | None:
    """Settings of the linear mode from a recipe."""
    if recipe is None:
        return None
    from neurodiff.analysis.ct_recipes import linear_settings

    return linear_settings(recipe)
