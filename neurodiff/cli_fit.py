"""``neurodiff fit``: any recipe to any data set; which options go with which kind of recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neurodiff.cli_options import Data, Root, Seed, Subject, show, subject_of
from neurodiff.core.errors import UsageError


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
    place = (recipe, settings, out, data, root, subject_of(subject), seed, dry_run)
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
        show((fit_images if kind == kinds.IMAGES else fit_cohort)(*place, **leaks))
        return
    if strict and is_stage(recipe):
        raise UsageError(
            "--strict goes with a whole pipeline; a published stage has no test trials: audit them "
            "with neurodiff.analysis.leakage.audit"
        )
    if is_stage(recipe):
        if subjects is not None or adapt_to is not None or trials is not None:
            raise UsageError("a published stage is trained on one person: give --subject")
        start = tuple(weights or ())
        show(fit_published(*place, targets=targets, codes=codes, weights=start, device=device))
        return
    if targets is not None or codes is not None or weights:
        raise UsageError("--targets, --codes and --weights go with the recipe of a published stage")
    if subjects is not None:
        if subject is not None:
            raise UsageError("give --subject for one person, or --subjects for several")
        from neurodiff.analysis.across_subjects import fit_across

        people = [subject_of(name.strip()) for name in subjects.split(",") if name.strip()]
        new = subject_of(adapt_to)
        asked = (recipe, settings, out, data, root, people, new, trials, seed, dry_run)
        show(fit_across(*asked, **leaks))  # type: ignore[arg-type]  # no name is None here
        return
    if adapt_to is not None or trials is not None:
        raise UsageError("--adapt-to and --trials go with --subjects, the people to learn from")
    from neurodiff.analysis import verbs

    show(verbs.fit(*place, **leaks))


def _only_mind3d(kind: str, recipe: str, options: dict[str, Any]) -> None:
    """Refuse options that another pipeline has no use for."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(
            f"{recipe} is a recipe of {kind}: leave out {', '.join(given)}, which go with "
            "MinD-3D. Files and devices of Brain-Diffuser are settings (-s generator.folder=DIR, "
            "-s generator.device=cuda); several people are fitted by BrainDiffuser.fit_across"
        )
