"""The command line: verbs only. Each verb imports what it needs when it is called.

Exit codes: 0 done; 1 some items failed; 2 wrong usage or configuration; 3 data or weights missing
or broken; 130 interrupted. A `NeurodiffError` is printed as one ``error: ...`` on standard error,
without a traceback; any other exception is a fault of neurodiff and keeps its traceback.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from neurodiff.cli_attribution import app as attribution_app
from neurodiff.cli_batch import app as batch_app
from neurodiff.cli_ct import ct_app
from neurodiff.cli_report import figures, report_app
from neurodiff.cli_safe import weights_convert
from neurodiff.cli_scans import app as scans_app
from neurodiff.core.errors import DataError, NeurodiffError, UsageError, file_error

if TYPE_CHECKING:
    import pandas as pd

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Demo(enum.StrEnum):
    """The demonstrations there are."""

    mind3d = "mind3d"
    brain_diffuser = "brain-diffuser"
    ldae = "ldae"
    ct = "ct"
    attribution = "attribution"


class Size(enum.StrEnum):
    """How much work a demonstration does."""

    demo = "demo"
    tiny = "tiny"


class Verbs(TyperGroup):
    """Turns our own errors and an interruption into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NeurodiffError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if (told := file_error(error)) is None:
                raise
            typer.echo(f"error: {told}", err=True)
            raise typer.Exit(told.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted; run the same command again to continue", err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Verbs,
    help="Neural decoding and scientific imaging: recordings in, reconstructions and scores out.",
    epilog="Exit codes: 0 done, 1 some items failed, 2 wrong usage or configuration, "
    "3 data or weights missing or broken.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The options that several verbs share.
Root = Annotated[Path | None, typer.Option("--root", metavar="DIR", help="Folder of the data.")]
Data = Annotated[
    str | None, typer.Option("--data", metavar="NAME", help="Name or path of a data set's card.")
]
Subject = Annotated[
    str | None, typer.Option("--subject", metavar="N", help="Number or label of a subject.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of all randomness.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        import neurodiff

        typer.echo(f"neurodiff {neurodiff.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="End with an error if anything asks the network.")
    ] = False,
) -> None:
    """Neural decoding and scientific imaging: recordings in, reconstructions and scores out."""
    if offline:
        from neurodiff.core.preflight import forbid_network

        forbid_network()


@app.command()
def demo(
    kind: Annotated[Demo, typer.Argument(help="Which demonstration.")] = Demo.mind3d,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the run and the page.")
    ] = Path("demo"),
    seed: Seed = 0,
    size: Annotated[
        Size, typer.Option("--size", help="demo: the real one; tiny: checks the plumbing.")
    ] = Size.demo,
) -> None:
    """Simulate a subject, train, decode held-out recordings, score, and write one HTML page.

    Nothing is downloaded. A second call repeats nothing that is done.
    """
    from neurodiff.analysis.demo import run_demo

    _show(run_demo(kind.value, out, seed, size.value))


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name or path of a card.")],
    root: Root = None,
    subject: Subject = None,
) -> None:
    """Tell what of a data set is there, missing or broken, before any work is done."""
    from neurodiff.datasets.opening import check_dataset

    table = check_dataset(dataset, root=root, subject=_subject(subject))
    typer.echo(_as_text(table))
    bad = table[table["status"] != "ok"]
    if len(bad):
        raise DataError(f"{len(bad)} of {len(table)} entries of {dataset} are missing or broken")
    typer.echo(f"all {len(table)} entries are in order")


@app.command()
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
    _show(
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


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder in which the run folder is made.")
    ] = Path("runs"),
    data: Data = None,
    root: Root = None,
    subject: Subject = None,
    subjects: Annotated[
        str | None,
        typer.Option("--subjects", metavar="1,2,3", help="One model for several people."),
    ] = None,
    adapt_to: Annotated[
        str | None,
        typer.Option("--adapt-to", metavar="N", help="A new person, of whom a layer is fitted."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", metavar="N", min=0, help="Trials of the new person; else all."),
    ] = None,
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, items and bytes, and do nothing.")
    ] = False,
    targets: Annotated[
        Path | None,
        typer.Option("--targets", metavar="FILE", help="Published stages: image features, .npz."),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option("--codes", metavar="PATH", help="Published stage 2: shape codes."),
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option("--weights", metavar="FILE", help="Published stages: start; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Published stages: cpu, cuda.")] = "cpu",
    strict: Annotated[
        bool, typer.Option("--strict", help="Compare the stimuli, too, and end where test leaks.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="CHECK", help="With --strict: accept this; repeatable."),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option("--track", metavar="NAME=DIR", help="Curves too: tensorboard=FOLDER."),
    ] = None,
) -> None:
    """Train a pipeline and print its run folder; continues a run that was interrupted."""
    if track is not None:
        from neurodiff.core.tracking import tracked, tracker_named

        name, _, folder = track.partition("=")
        with tracked(tracker_named(name, folder or out / "tensorboard")):
            fit(
                recipe, overrides, out, data, root, subject, subjects, adapt_to, trials, seed,
                dry_run, targets, codes, weights, device, strict, allow,
            )  # fmt: skip
        return
    settings = list(overrides or [])
    for setting in settings:
        if not setting.partition("=")[0].strip() or "=" not in setting:
            raise UsageError(f"-s {setting!r} is no key=value; write for example -s seed=1")
    from neurodiff.analysis import kinds
    from neurodiff.analysis.leakage_strictness import Strictness
    from neurodiff.analysis.published_fit import fit_published, is_stage

    if allow and not strict:
        raise UsageError("--allow names what --strict accepts; add --strict")
    leaks = {"leaks": Strictness(strict=True, allow=tuple(allow or ()))} if strict else {}
    place = (recipe, settings, out, data, root, _subject(subject), seed, dry_run)
    kind = kinds.pipeline_of(recipe)
    if kind in (kinds.IMAGES, kinds.SCANS):
        from neurodiff.analysis.image_fit import fit_images
        from neurodiff.analysis.ldae_fit import fit_cohort

        _only_mind3d(
            kind,
            recipe,
            {
                "--targets": targets,
                "--codes": codes,
                "--weights": weights,
                "--subjects": subjects,
                "--adapt-to": adapt_to,
                "--trials": trials,
                "--device": None if device == "cpu" else device,
            },
        )
        if kind == kinds.SCANS and strict:
            raise UsageError("--strict audits recordings; a cohort of scans is split by subject")
        _show(fit_images(*place, **leaks) if kind == kinds.IMAGES else fit_cohort(*place))
        return
    if strict and (is_stage(recipe) or subjects is not None):
        raise UsageError(
            "--strict goes with the fit of one person; hold out the same stimuli for all by "
            "auditing them with neurodiff.analysis.leakage.audit"
        )
    if is_stage(recipe):
        if subjects is not None or adapt_to is not None or trials is not None:
            raise UsageError("a published stage is trained on one person: give --subject")
        start = tuple(weights or ())
        _show(fit_published(*place, targets=targets, codes=codes, weights=start, device=device))
        return
    if targets is not None or codes is not None or weights:
        raise UsageError("--targets, --codes and --weights go with the recipe of a published stage")
    if subjects is not None:
        if subject is not None:
            raise UsageError("give --subject for one person, or --subjects for several")
        from neurodiff.analysis.across_subjects import fit_across

        people = [_subject(name.strip()) for name in subjects.split(",") if name.strip()]
        new = _subject(adapt_to)
        _show(
            fit_across(recipe, settings, out, data, root, people, new, trials, seed, dry_run)  # type: ignore[arg-type]  # no name is None here
        )
        return
    if adapt_to is not None or trials is not None:
        raise UsageError("--adapt-to and --trials go with --subjects, the people to learn from")
    from neurodiff.analysis import verbs

    _show(verbs.fit(*place, **leaks))


@app.command()
def reconstruct(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|IN", help="A run folder, or a file of recordings.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="With --model: folder for the results.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="A fitted pipeline or a run folder."),
    ] = None,
    data: Data = None,
    root: Root = None,
    subject: Subject = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="K", min=1, help="Samples of each trial.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Published MinD-3D weights."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Shape decoder with --weights: float32, bf16, fp16.")
    ] = "float32",
    device: Annotated[str, typer.Option("--device", help="With --weights: cpu, cuda.")] = "cpu",
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="With --weights: embeddings drawn a trial.")
    ] = 128,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="With --weights: the most likely codes, not drawn.")
    ] = False,
    protocol: Annotated[
        str, typer.Option("--protocol", help="With --weights: mind3d-2024 or neurodiff-1.")
    ] = "mind3d-2024",
    switches: Annotated[
        list[str] | None,
        typer.Option("--switch", metavar="NAME=VALUE", help="With --weights: a single mismatch."),
    ] = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="With --weights: sizes as in the file.")
    ] = False,
    heads: Annotated[
        str, typer.Option("--heads", metavar="E,D", help="With --any-size: heads of both parts.")
    ] = "16,16",
    single_trials: Annotated[
        bool,
        typer.Option("--single-trials", help="Pictures: do not average the repeats of a picture."),
    ] = False,
    seed: Seed = 0,
) -> None:
    """Decode recordings into objects or pictures, as the model says.

    Either the test trials of a run (or, with --data and --root, of another data set), or
    one file of recordings: neurodiff reconstruct IN OUT --model DIR, or with published weights:
    neurodiff reconstruct IN OUT --weights FILE.
    """
    if weights is not None:
        if out is None or model is not None or data is not None or root is not None:
            raise UsageError(
                "published weights read a file or folder and write a folder: "
                "neurodiff reconstruct IN OUT --weights FILE (without --model, --data, --root)"
            )
        from neurodiff.analysis.published import HowToDecode, reconstruct_published
        from neurodiff.core.progress import Progress

        how = HowToDecode(
            samples=samples or 1,
            seed=seed,
            subject=subject or "1",
            candidates=candidates,
            greedy=greedy,
            dtype=dtype,
            device=device,
            protocol=protocol,
            switches=tuple(switches or ()),
            any_size=any_size,
            heads=heads,
        )
        _show(reconstruct_published(source, out, weights, how, progress=Progress.to_stdout()))
        return
    from neurodiff.analysis import kinds, verbs

    is_run = model is None and out is None
    kind = kinds.pipeline_of_run(source) if is_run else kinds.pipeline_of_model(model or source)
    if kind == kinds.SCANS:
        raise UsageError("scans are no recordings: use encode, decode, edit and interpolate")
    if is_run:
        if kind == kinds.IMAGES:
            from neurodiff.analysis.image_verbs import reconstruct_image_run

            place = (source, data, root, _subject(subject), samples)
            _show(reconstruct_image_run(*place, average=not single_trials))
            return
        if single_trials:
            raise UsageError("--single-trials is for pictures; MinD-3D decodes each trial anyway")
        _show(verbs.reconstruct_run(source, data, root, _subject(subject), samples))
        return
    if model is None or out is None:
        raise UsageError(
            "a file of recordings needs both a folder for the results and a model: "
            "neurodiff reconstruct IN OUT --model DIR"
        )
    given = {"--data": data, "--root": root, "--subject": subject, "--samples": samples}
    given["--single-trials"] = single_trials or None
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise UsageError(f"{', '.join(extra)} goes with a run folder, not with --model")
    if kind == kinds.IMAGES:
        from neurodiff.analysis.image_verbs import reconstruct_image_file

        _show(reconstruct_image_file(source, out, model))
        return
    _show(verbs.reconstruct_file(source, out, model))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with reconstructions.")],
    full: Annotated[
        bool, typer.Option("--full", help="Also the metrics that take minutes or need weights.")
    ] = False,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="neurodiff-1, or as released: mind3d-2024; brain-diffuser-2023, mindeye-2023.",
        ),
    ] = "neurodiff-1",
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="DIR",
            help="Folder of the networks' weights; for objects with --full.",
        ),
    ] = None,
) -> None:
    """Score the reconstructions of a run beside chance, baselines and ceiling."""
    from neurodiff.analysis import kinds

    if kinds.pipeline_of_run(run) == kinds.SCANS:
        from neurodiff.analysis.ldae_run import evaluate_cohort_run
        from neurodiff.core.run import Run

        if full or weights is not None or protocol != "neurodiff-1":
            raise UsageError("--full, --weights and --protocol are not for a run of ldae")
        _show(evaluate_cohort_run(Run.open(run)))
        return
    if kinds.pipeline_of_run(run) == kinds.IMAGES:
        from neurodiff.analysis.image_verbs import evaluate_image_run

        if full:
            raise UsageError("--full is for objects; every metric of pictures is always computed")
        _show(evaluate_image_run(run, protocol, weights))
        return
    if weights is not None and not full:
        raise UsageError("--weights goes with --full; the other metrics need no network")
    from neurodiff.analysis import verbs

    _show(verbs.evaluate_run(run, full, protocol, weights))


weights_app = typer.Typer(
    help="Published weights: what a file holds, and what it should.", no_args_is_help=True
)
app.add_typer(weights_app, name="weights")
app.add_typer(ct_app, name="ct")
app.add_typer(report_app, name="report")
app.add_typer(batch_app, name="batch")
app.command("figures")(figures)


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


weights_app.command("convert")(weights_convert)


@weights_app.command("expected")
def weights_expected() -> None:
    """What the released file holds, counted without memory: tensors and parameters by part."""
    from neurodiff.analysis.published import expected_table

    typer.echo(expected_table())


@app.command()
def doctor(
    fs: Annotated[
        list[Path] | None,
        typer.Option("--fs", metavar="DIR", help="Try a file system for batches; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="What is missing of a data set.")
    ] = None,
    root: Root = None,
) -> None:
    """Look at the installation: versions, system libraries, memory, places for weights."""
    from neurodiff.core.doctor import diagnose, summary

    findings = diagnose()
    for folder in fs or []:
        from neurodiff.jobs_filesystem import check_filesystem

        findings += check_filesystem(folder)
    if data is not None:
        from neurodiff.core.config import find_shared
        from neurodiff.core.preflight import missing, need_of_card
        from neurodiff.core.safe_io import read_yaml

        card = read_yaml(find_shared("datasets", data))
        findings += missing([need_of_card(card, root)])
    for finding in findings:
        typer.echo(str(finding))
    text, code = summary(findings)
    typer.echo(text)
    if code:
        raise typer.Exit(code)


def _show(result: object) -> None:
    """Print what a verb returned: the path of what it made, or a text."""
    if result is not None:
        typer.echo(str(result))


def _only_mind3d(kind: str, recipe: str, options: dict[str, Any]) -> None:
    """Refuse options that another pipeline has no use for."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(
            f"{recipe} is a recipe of {kind}: leave out {', '.join(given)}, which go with "
            "MinD-3D. Files and devices of Brain-Diffuser are settings (-s generator.folder=DIR, "
            "-s generator.device=cuda); several people are fitted by BrainDiffuser.fit_across"
        )


def _subject(label: str | None) -> int | str | None:
    """A number where it is one: data sets count their subjects, tables name them."""
    return int(label) if label is not None and label.isdecimal() else label


def _as_text(table: pd.DataFrame) -> str:
    """One entry a row: status and what on the first line, the rest of the columns below it."""
    lines = []
    for entry in table.to_dict("records"):
        status, what, *rest = [str(entry.pop("status")), *map(str, entry.values())]
        lines.append(f"{status:<8} {what}")
        lines.extend(f"{'':<8} {line}" for text in rest for line in text.splitlines())
    return "\n".join(lines)


app.registered_commands += scans_app.registered_commands
app.registered_commands += attribution_app.registered_commands


def main() -> None:
    """Entry point of the ``neurodiff`` command."""
    app(prog_name="neurodiff")


if __name__ == "__main__":
    main()
