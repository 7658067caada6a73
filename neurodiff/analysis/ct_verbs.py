"""What ``neurodiff ct index`` and ``ct fit`` do; the other verbs have modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurodiff.analysis.ct_cohort import as_text, read_key
from neurodiff.analysis.ct_recipes import linear_settings, pipeline_of
from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.datasets.ct_index import coverage, failures, index_ct
from neurodiff.datasets.ct_series import CTSeries, read_series
from neurodiff.pipelines.ct_standardizer import CTStandardizer

COVERAGE = (
    "vendor", "model", "kernel", "thickness_mm", "iterative", "patients", "series", "slices"
)  # fmt: skip
_SHOWN = 20


def index_archive(
    root: Path,
    out: Path,
    *,
    key_file: Path | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
) -> str:
    """Index an archive and tell what it holds.

    Raises
    ------
    UsageError : a name of the index that does not end in .parquet.
    DataError : no CT slice among the files.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"--out {out} must name a file that ends in .parquet")
    table = index_ct(root, out, key=read_key(key_file), workers=workers, progress=progress)
    counts = table.attrs["counts"]
    lost = failures(table)
    lines = [
        f"{len(table)} files: {counts['read']} read, {counts['kept']} known before, "
        f"{counts['gone']} gone"
    ]
    if len(lost):
        # a reason that begins with its file's path would be counted file by file
        why = [
            reason.replace(path, "a file")
            for path, reason in zip(lost["path"], lost["reason"], strict=True)
        ]
        counted = lost.assign(reason=why).groupby(["status", "reason"]).size()
        reasons = counted.sort_values(ascending=False)
        lines.append(f"{len(lost)} files are no slices of CT:")
        lines += [
            f"  {count:6} {status}: {reason}"
            for (status, reason), count in list(reasons.items())[:_SHOWN]
        ]
        if len(reasons) > _SHOWN:
            lines.append(f"         and {len(reasons) - _SHOWN} other reasons, in the index")
    if not (table["status"] == "slice").any():
        raise DataError(
            f"none of the {len(table)} files below {root} is a CT slice "
            f"({lost['status'].iloc[0]}: {lost['reason'].iloc[0]}); the index lists why, each"
        )
    lines += ["", as_text(coverage(table), COVERAGE), "", f"index: {out}"]
    return "\n".join(lines)


def fit_mapping(
    sources: Sequence[Path],
    targets: Sequence[Path],
    out: Path,
    *,
    kind: str = "kernel",
    add: bool = False,
    recipe: str | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> str:
    """Fit a mapping to pairs of series and save it.

    Parameters
    ----------
    sources, targets : folders, in the same order: two reconstructions of the same raw data each.
    kind : "kernel", or "thickness" for thin and thick slices of one scan.
    add : go on with the mapping that ``out`` holds.
    recipe : settings of the linear mode, or a recipe of the diffusion, whose networks are trained
        on the same pairs and saved beside the mapping.
    seed : of the training.

    Raises
    ------
    UsageError : other numbers of sources and targets, none, or a folder that holds a mapping.
    DataError : series that cannot be read, or that are no pairs.
    """
    if not sources or len(sources) != len(targets):
        raise UsageError(
            f"there are {len(sources)} sources and {len(targets)} targets; give as many --source "
            "as --target, in the same order"
        )
    diffusion = recipe is not None and pipeline_of(recipe) == "ct-diffusion"
    settings = None if recipe is None or diffusion else linear_settings(recipe)
    made = _begun(out, add, settings)
    pairs: list[tuple[CTSeries, CTSeries]] = [
        (_named(a, "--source"), _named(b, "--target"))
        for a, b in zip(sources, targets, strict=True)
    ]
    if diffusion and kind != "kernel":
        raise UsageError(f"{recipe} is a recipe of the diffusion, which changes kernels alone")
    if kind == "thickness":
        for thin, thick in pairs:
            made.fit_thickness(thin, thick)
    elif kind == "kernel":
        made.fit(pairs)
    else:
        raise UsageError(f"the kind is {kind!r}; there are kernel and thickness")
    told = _saved(made, out)
    if diffusion and recipe is not None and made.mapping is not None:
        from neurodiff.analysis.ct_diffusion_mode import fit_diffusion

        name = made.mapping.rules[0].filter  # the rule that was added last is tried first
        lines = fit_diffusion(pairs, recipe, out, name, seed=seed, progress=progress)
        told = "\n".join([told, *lines])
    return told


def fit_library(name: str, out: Path, *, reverse: bool = False, settings: Any = None) -> str:
    """Save the mapping of a measured kernel change that comes with the package."""
    _begun(out, False, settings)
    return _saved(CTStandardizer.from_library(name, reverse=reverse, settings=settings), out)


def fit_phantom(
    source: Path,
    target: Path,
    out: Path,
    *,
    rod: tuple[float, float, float] | None = None,
    settings: Any = None,
) -> str:
    """Fit a mapping to two phantom scans, which need not be pairs.

    Parameters
    ----------
    source, target : folders of one phantom in two kernels, at one dose and thickness.
    rod : row, column (pixels) and radius (mm) of a round rod that both show: the ratio of transfer
        functions. Without it, the ratio of noise spectra in the most uniform squares of ``source``.
    """
    from neurodiff.bridges.ct_phantom import noise_spectrum, rod_transfer, uniform_regions

    _begun(out, False, settings)
    a, b = _named(source, "--source"), _named(target, "--target")
    for series, option in ((a, "--source"), (b, "--target")):
        if not series.facts.kernel:
            raise DataError(f"the header of {option} {series.name} names no kernel")
    if (a.facts.vendor, a.facts.model) != (b.facts.vendor, b.facts.model):
        raise DataError(
            f"the phantom was scanned by {a.facts.vendor} {a.facts.model} and {b.facts.vendor} "
            f"{b.facts.model}; a filter leads from one kernel of a scanner to another"
        )
    measured: list[Any] = []
    if rod is not None:
        measured = [rod_transfer(s.hu, rod[:2], rod[2], s.spacing) for s in (a, b)]
    else:
        if a.hu.shape[1:] != b.hu.shape[1:]:
            raise DataError(
                f"the slices have {a.hu.shape[1:]} and {b.hu.shape[1:]} pixels; uniform squares "
                "of the source are looked up in the target, or give a rod"
            )
        squares = uniform_regions(a.hu)
        measured = [noise_spectrum(s.hu, squares, s.spacing) for s in (a, b)]
    facts = a.facts
    thick = facts.thickness_mm
    made = CTStandardizer.from_phantom(
        *measured,
        rule={
            "vendor": facts.vendor or "",
            "model": facts.model or "*",
            "kernel": facts.kernel[0],
            "thickness_mm": None if thick is None else (0.9 * thick, 1.1 * thick),
            "iterative": facts.iterative,
            "spacings": (tuple(float(side) for side in a.spacing),),
        },
        standard={
            "vendor": b.facts.vendor or "",
            "model": b.facts.model or "*",
            "kernel": b.facts.kernel[0],
            "iterative": b.facts.iterative,
        },
        settings=settings,
    )
    return _saved(made, out)


def _begun(out: Path, add: bool, settings: Any) -> CTStandardizer:
    there = (out / "mapping.yaml").exists()
    if there and not add:
        raise UsageError(f"{out} holds a mapping; give another folder, or --add to go on with it")
    if there:
        return CTStandardizer.from_pretrained(out)
    return CTStandardizer() if settings is None else CTStandardizer(settings=settings)


def _named(path: Path, option: str) -> CTSeries:
    """A series; the error says which option it was given as."""
    try:
        return read_series(path)
    except NeurodiffError as error:
        raise type(error)(f"{option}: {error}") from None


def _saved(made: CTStandardizer, out: Path) -> str:
    made.save_pretrained(out)
    mapping = made.mapping
    if mapping is None:
        raise UsageError("nothing was fitted")
    wanted = mapping.standard
    lines = [f"standard: {wanted.vendor} {wanted.model} {wanted.kernel}"]
    for rule in mapping.rules:
        lines.append(
            f"rule: {rule.vendor} {rule.model} {rule.kernel}"
            + (f", {rule.thickness_mm[0]:g} to {rule.thickness_mm[1]:g} mm" if rule.thickness_mm
               else "")
            + (f" -> {rule.filter}" if rule.filter else f": refused, {rule.refuse}")
        )  # fmt: skip
        fit = made.fits.get(rule.filter)
        if fit is None:
            continue
        lines.append(
            f"  {fit.slices} slice pairs of {fit.series} series; error in the body, held-out "
            f"slices: {fit.rmse_before:.1f} HU before, {fit.rmse_after:.1f} HU after"
        )
        lines += [f"  note: {warning}" for warning in fit.warnings]
    return "\n".join([*lines, f"mapping: {out / 'mapping.yaml'}"])
