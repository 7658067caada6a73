"""``neurodiff reconstruct`` and ``evaluate``: from a fitted model to results and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neurodiff.cli_options import Data, Root, Seed, Subject, show, subject_of
from neurodiff.core.errors import UsageError


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
        show(reconstruct_published(source, out, weights, how, progress=Progress.to_stdout()))
        return
    from neurodiff.analysis import kinds, verbs

    is_run = model is None and out is None
    kind = kinds.pipeline_of_run(source) if is_run else kinds.pipeline_of_model(model or source)
    if kind == kinds.SCANS:
        raise UsageError("scans are no recordings: use encode, decode, edit and interpolate")
    if is_run:
        if kind == kinds.IMAGES:
            from neurodiff.analysis.image_verbs import reconstruct_image_run

            place = (source, data, root, subject_of(subject), samples)
            show(reconstruct_image_run(*place, average=not single_trials))
            return
        if single_trials:
            raise UsageError("--single-trials is for pictures; MinD-3D decodes each trial anyway")
        show(verbs.reconstruct_run(source, data, root, subject_of(subject), samples))
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

        show(reconstruct_image_file(source, out, model))
        return
    show(verbs.reconstruct_file(source, out, model))


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
            help="Folder of the networks' weights; for objects with --full; for brain scans, "
            "those of an LPIPS.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Score this model of brain scans, e.g. published weights, on --data; RUN is made.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="Scans; with --model alone.")
    ] = None,
    root: Root = None,
) -> None:
    """Score the reconstructions of a run beside chance, baselines and ceiling."""
    from neurodiff.analysis import kinds

    if model is not None:
        from neurodiff.analysis.ldae_run import evaluate_model

        if full or protocol != "neurodiff-1":
            raise UsageError("--full and --protocol are not for a model of brain scans")
        show(evaluate_model(model, run, data, root, perceptual=weights))
        return
    if data is not None or root is not None:
        raise UsageError("--data and --root go with --model; a run knows its own data")
    if kinds.pipeline_of_run(run) == kinds.SCANS:
        from neurodiff.analysis.ldae_run import evaluate_cohort_run
        from neurodiff.core.run import Run

        if full or protocol != "neurodiff-1":
            raise UsageError("--full and --protocol are not for a run of ldae")
        show(evaluate_cohort_run(Run.open(run), weights))
        return
    if kinds.pipeline_of_run(run) == kinds.IMAGES:
        from neurodiff.analysis.image_verbs import evaluate_image_run

        if full:
            raise UsageError("--full is for objects; every metric of pictures is always computed")
        show(evaluate_image_run(run, protocol, weights))
        return
    if weights is not None and not full:
        raise UsageError("--weights goes with --full; the other metrics need no network")
    from neurodiff.analysis import verbs

    show(verbs.evaluate_run(run, full, protocol, weights))
