"""The verb ``fit`` for brain scans: an LDAE on the training people of a cohort.

Everything that is wrong with recipe and table is said before the first scan is prepared.  People
are dealt into training, validation and test by the run's seed, unless the table has a column split.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.analysis.fit_steps import folder_of_fit, is_fitted, require_named
from neurodiff.analysis.leakage_run import remember_audit
from neurodiff.analysis.leakage_scans import audit_scans_before_fit
from neurodiff.analysis.leakage_strictness import LENIENT, Strictness
from neurodiff.analysis.sources import Source
from neurodiff.analysis.splits import remember
from neurodiff.core.cohort import Cohort
from neurodiff.core.config import dump, load
from neurodiff.core.errors import DataError, MissingDataError, UsageError, suggest
from neurodiff.core.progress import Progress
from neurodiff.core.run import MODEL, Run
from neurodiff.core.safe_io import sha256_of

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae_settings import LDAERecipe

SHARES = {"train": 0.8, "validation": 0.05, "test": 0.15}
_FEWEST = 8  # people that the shares are dealt to


def fit_cohort(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    seed: int,
    dry_run: bool,
    *,
    leaks: Strictness = LENIENT,
) -> Path | str:
    """Fit a recipe to the training people of a cohort; returns the run's folder.

    What the other people's scans share with the training is said before, see `leakage_scans`.

    The same command finds its run again and goes on; the fitted model is in its folder ``model``,
    and the run remembers who was in which part.

    Raises
    ------
    UsageError : recipe, data set or one of their settings is not known; too few people.
    MissingDataError : a network that the recipe names is not there, or no scan is.
    DataError : a table that cannot be, scans that cannot be prepared, disk full; under ``strict``,
        a leak that is not allowed.
    """
    from neurodiff.pipelines.ldae import LDAE
    from neurodiff.pipelines.ldae_cost import plan_text
    from neurodiff.pipelines.ldae_saving import INDEX, is_model
    from neurodiff.pipelines.ldae_settings import LDAERecipe

    progress = Progress.to_stdout()
    settings = load(recipe, LDAERecipe, list(overrides))
    if not dry_run:
        require_networks(settings)
    if subject is not None:
        raise UsageError("an LDAE is fitted on many people; leave --subject out")
    source, cohort = open_cohort(data, root)
    parts = parts_of(cohort, seed)
    require_files(cohort)
    for line in told(cohort, parts):
        progress.say(line)
    if dry_run:
        return plan_text(settings, parts["train"])
    report = audit_scans_before_fit(parts, leaks, progress=progress)
    inputs: dict[str, Any] = {
        "data": source.name,
        "cohort": cohort.fingerprint(),
        "parts": {name: _hash(part) for name, part in parts.items()},
        "simulated": bool(cohort.simulated),
    }
    networks = network_identities(settings)
    if networks:
        inputs["networks"] = networks
    plain = dump(settings)
    folder = folder_of_fit(out, settings.name, source.name, plain, inputs, seed)
    open_model = LDAE.from_pretrained
    if is_fitted(folder, progress, index=INDEX, is_model=is_model, open_model=open_model):
        return folder
    run = Run.create(folder, plain, inputs, command=sys.argv, seed=seed)
    run.info["data"] = source.plain()  # where to find it again; no part of the run's identity
    remember(run, parts["train"].subjects, ())
    remember_audit(run, report)
    run.info["parts"] = {name: part.subjects for name, part in parts.items()}
    run.touch()
    progress.say(f"run folder: {folder}")
    pipe = LDAE(settings).fit(
        parts["train"], parts.get("validation"), seed=seed, run=run, progress=progress
    )
    pipe.save_pretrained(folder / MODEL)
    run.touch()
    if not pipe.directions:
        progress.say("no direction was fitted: the table tells too few diagnoses, ages and sexes")
    return folder


def open_cohort(data: str | None, root: Path | str | None) -> tuple[Source, Cohort]:
    """The cohort that ``--data`` and ``--root`` name; a folder or CSV of scans stands for both.

    Raises
    ------
    UsageError : no data set, or one of responses instead of scans.
    """
    from neurodiff.analysis.ldae_scans import open_scans

    place = None if data is None else Path(data).expanduser()
    is_place = place is not None and place.exists() and place.suffix not in (".yaml", ".yml")
    if is_place:
        if root is not None:
            raise UsageError(f"--data {data} is a path of its own; leave out --root")
        source = Source.of("brain_mri", place)
    else:
        source = Source.of(data, root)
    return source, open_scans(source.data, source.root)


def parts_of(cohort: Cohort, seed: int) -> dict[str, Cohort]:
    """Train, validation and test, which share no person; a split column of the user's wins.

    Raises
    ------
    UsageError : a split of another name, no training scan, or too few people to deal.
    DataError : a column split that some scans lack.
    """
    named = cohort.scans["split"]
    if (named != "").any():
        if (named == "").any():
            first = cohort.ids[int((named == "").to_numpy().argmax())]
            raise DataError(
                f"{int((named == '').sum())} of {len(cohort)} scans have no split, first {first}; "
                "fill the column in, or leave it out"
            )
        aliases = {"val": "validation", "valid": "validation"}
        names = {name: aliases.get(name, name) for name in dict.fromkeys(named)}
        strange = sorted(set(names.values()) - set(SHARES))
        if strange:
            raise UsageError(
                f"the column split has {strange[0]!r}; it names {', '.join(SHARES)}."
                f"{suggest(strange[0], SHARES)}"
            )
        if "train" not in names.values():
            raise UsageError("no scan has the split 'train'; a model is fitted on some")
        found = {new: cohort.part(old) for old, new in names.items()}
        return {name: found[name] for name in SHARES if name in found}
    people = len(cohort.subjects)
    if people < _FEWEST:
        raise UsageError(
            f"the cohort has {people} people, and {_FEWEST} are dealt into {', '.join(SHARES)} at "
            "least; give more, or name the parts in a column split"
        )
    shares = dict(SHARES)
    if people * SHARES["validation"] < 1:  # one person at least in each part
        shares = {"train": 1 - 2 / people, "validation": 1 / people, "test": 1 / people}
    return cohort.split(shares, seed=seed)


def told(cohort: Cohort, parts: dict[str, Cohort]) -> list[str]:
    """What a person should know of the cohort before hours are spent on it."""
    counts = ", ".join(
        f"{len(part.subjects)} {name} ({len(part)} scans)" for name, part in parts.items()
    )
    lines = [f"people: {counts}", *(f"note: {note}" for note in cohort.notes)]
    if cohort.left_out is not None and len(cohort.left_out):
        reason = cohort.left_out["reason"].iloc[0]
        lines.append(f"left out: {len(cohort.left_out)} scans that were found, first: {reason}")
    for column in ("age", "diagnosis", "sex"):
        lost = int(cohort.scans[column].isna().sum())
        if lost:
            lines.append(f"note: {lost} of {len(cohort)} scans have no {column}")
    known = cohort.scans["diagnosis"].dropna().unique().tolist()
    if len(known) == 1:
        lines.append(f"note: every diagnosis is {known[0]}, so that no direction tells it apart")
    return lines


def require_files(cohort: Cohort) -> None:
    """Raise MissingDataError that counts the files of the table that are not there."""
    lost = [path for path in cohort.scans["path"] if path and not Path(path).is_file()]
    if lost:
        raise MissingDataError(
            f"{len(lost)} of {len(cohort)} scans are not there, first {lost[0]}; correct the paths "
            "of the table, or leave these rows out"
        )


def require_networks(settings: LDAERecipe) -> None:
    """Complain of networks that the recipe neither trains nor names, or that are not there or not
    what they should be."""
    from neurodiff.pipelines.ldae_first_stage import require_networks_fit
    from neurodiff.pipelines.ldae_settings import named_networks, unnamed_networks

    require_named(settings.name, named_networks(settings), unnamed_networks(settings))
    require_networks_fit(settings)


def network_identities(settings: LDAERecipe) -> dict[str, str]:
    """Key -> SHA-256 of the files of each network that the recipe names."""
    from neurodiff.pipelines.ldae_settings import named_networks

    found = {}
    for key, named in named_networks(settings).items():
        path = Path(named).expanduser()
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        found[key] = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return found


def _hash(part: Cohort) -> str:
    return hashlib.sha256("\x1f".join(sorted(part.ids)).encode()).hexdigest()[:16]
