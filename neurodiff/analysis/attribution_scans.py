"""Attribution for a run of an LDAE: which regions of a scan its code reads, and probes on the code.

    held-out scans -> regions replaced one after another -> codes and probes again -> maps, page

Probes are fitted on the codes of training people: the diagnosis against CN, and the age, where the
table tells enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution import Attribution
from neurodiff.analysis.attribution_files import open_result, save_result
from neurodiff.analysis.attribution_problem import MethodResult
from neurodiff.analysis.attribution_verbs import (
    MODEL,
    VERSION,
    AttributeOptions,
    digest,
    write_attribution,
)
from neurodiff.analysis.decoding import own_source
from neurodiff.analysis.ldae_evaluation import prepared_volumes
from neurodiff.analysis.ldae_run import parts_of_run
from neurodiff.analysis.probe_regions import template_regions
from neurodiff.analysis.region_occlusion import Occlusion, occlude_regions, read_atlas
from neurodiff.bridges.probes import LogisticProbe, RidgeProbe
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.provenance import package_version
from neurodiff.core.recording import MaskSpace, Recording
from neurodiff.core.run import Run

FEWEST = 10
"""People of a class, or with an age, that a probe is fitted on."""
TRAINING_SCANS = 200
"""Of which the mean scan is taken and probes are fitted, first ones of the run's training part."""
REPLACEMENTS = ("mean", "blurred", "inpainted")


def attribute_scans(
    run: Run,
    out: Path,
    rois: Sequence[str] | None = None,
    *,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    more: AttributeOptions | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Occlude regions of the held-out scans of a run; returns the page.

    Parameters
    ----------
    rois : names of `template_regions` (ventricles and hippocampi by side), or a NIfTI of labels in
        the space of the model's grid, named by a CSV or TSV of the same stem beside it.
    methods : "region_occlusion", with the replacement "mean" (default), "blurred" or "inpainted"
        after a colon.

    Raises
    ------
    UsageError : no such region or method.
    DataError : no held-out people, scans that cannot be prepared.
    """
    from neurodiff.pipelines.ldae import LDAE

    more = more or AttributeOptions()
    asked = ("region_occlusion",) if methods is None else methods
    hows = list(dict.fromkeys(_replacement(method) for method in asked))
    if not hows:
        raise UsageError("no method was named; for scans there is region_occlusion")
    pipe = LDAE.from_pretrained(run.folder / MODEL)
    parts = parts_of_run(run)
    if "test" not in parts:
        raise DataError(f"{run.folder} has no test people; name some 'test' in the column split")
    kept, volumes, affine = prepared_volumes(pipe, parts["test"], progress)
    grid = volumes.shape[2:]
    regions = atlas_of(rois, affine, grid)
    inputs = [pipe.identity, kept.fingerprint(), digest(regions)]
    given = dict(more.options.get("region_occlusion", {}))
    results, known = [], None
    for replacement in hows:
        how = Occlusion(replacement=replacement, draws=more.draws, seed=seed, **given)
        stage = run.stage(f"attribution-occlusion-{replacement}", vars(how), inputs, VERSION)
        if stage.done:
            progress.say(f"region occlusion, {replacement}: done before")
        else:
            if known is None:
                known = _training(pipe, parts["train"], progress)
            mean, probes = known
            result = occlude_regions(
                pipe, volumes, kept.scans, regions, probe=probes, mean=mean, how=how,
                progress=progress,
            )  # fmt: skip
            save_result(without_maps(result), stage.path("table.csv").parent)
            stage.finish({"method": result.method, "rows": len(result.table)})
        results.append(MethodResult(**open_result(stage.folder)._asdict()))
    run.touch()
    found = Attribution(results=tuple(results), facts=_facts(kept, regions, seed, more))
    source = own_source(run)
    return write_attribution(
        found,
        grid_recording(affine, grid, regions, simulated=bool(kept.simulated)),
        out,
        rois={name: mask.ravel() for name, mask in regions.items()},
        more=more,
        ceilings=[
            "noise ceiling: not available: a scan is not repeated; the null is what blobs of the "
            "same size elsewhere in the brain do"
        ],
        provenance={
            "run": run.folder.name,
            "data": source.label if source is not None else "unknown",
            "model": pipe.identity[:16],
            "neurodiff": package_version() or "unknown",
        },
        below=mean_image(volumes, affine),
        progress=progress,
    )


def mean_image(volumes: np.ndarray, affine: np.ndarray) -> Any:
    """Mean of scans (n, 1, i, j, k) as an image: what maps are drawn on, and no person's."""
    import nibabel

    return nibabel.Nifti1Image(volumes.mean(axis=(0, 1)).astype(np.float32), affine)


def atlas_of(
    rois: Sequence[str] | None, affine: np.ndarray, grid: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Regions at a grid by name or from label files; all of the template without any."""
    found: dict[str, np.ndarray] = {}
    for one in rois or ():
        if str(one).lower().endswith((".nii", ".nii.gz")):
            stem = Path(one).name.removesuffix(".gz").removesuffix(".nii")
            tables = [Path(one).with_name(stem + ending) for ending in (".tsv", ".csv")]
            names = next((table for table in tables if table.is_file()), None)
            found |= read_atlas(one, names, affine=affine, shape=tuple(grid))
            continue
        known = template_regions(affine, tuple(grid))
        if one not in known:
            raise UsageError(
                f"there is no region {one!r} of the template; there are {', '.join(known)}, and "
                f"label files in NIfTI.{suggest(one, known)}"
            )
        found[one] = known[one]
    return found if rois else template_regions(affine, tuple(grid))


def grid_recording(
    affine: np.ndarray, grid: tuple[int, ...], regions: dict[str, np.ndarray], *, simulated: bool
) -> Recording:
    """A recording of every voxel of the grid without a response: where maps of scans belong."""
    space = MaskSpace(np.ones(grid, bool), affine, name="scans")
    return Recording(
        np.zeros((1, space.n_features), np.float32),
        pd.DataFrame({"stimulus": ["none"], "subject": ["all"]}),
        {name: mask.ravel() for name, mask in regions.items()},
        space,
        simulated=simulated,
        name="held-out scans",
    )


def without_maps(result: MethodResult) -> MethodResult:
    """The result without its maps, which tell what painting the table on the regions tells."""
    return MethodResult(
        method=result.method, table=result.table, items=result.items, notes=result.notes
    )


def _replacement(method: str) -> Any:
    name, _, replacement = method.partition(":")
    replacement = replacement or "mean"
    if name != "region_occlusion" or replacement not in REPLACEMENTS:
        raise UsageError(
            f"{method!r} is no method for scans; there is region_occlusion with :mean, :blurred "
            "or :inpainted"
        )
    return replacement


def _training(pipe: Any, cohort: Cohort, progress: Progress) -> tuple[np.ndarray, dict[str, Any]]:
    """Mean scan of training people, and probes fitted on their codes."""
    some = cohort.select(np.arange(min(len(cohort), TRAINING_SCANS)))
    kept, volumes, _ = prepared_volumes(pipe, some, progress)
    codes = pipe.codes(volumes)
    scans, probes = kept.scans, {}
    people = scans["subject"].astype(str).to_numpy()
    for other in ("AD", "MCI"):
        chosen = scans["diagnosis"].isin([other, "CN"]).to_numpy()
        labels = scans["diagnosis"].to_numpy()[chosen]
        counts = [len(set(people[chosen][labels == name])) for name in (other, "CN")]
        if min(counts) >= FEWEST:
            # the second class in order of names is the positive one
            is_other = np.where(labels == other, 1, 0)
            probes[f"{other} against CN"] = LogisticProbe().fit(
                codes[chosen], is_other, groups=people[chosen]
            )
    age = pd.to_numeric(scans["age"], errors="coerce").to_numpy(float)
    known = np.isfinite(age)
    if len(set(people[known])) >= FEWEST:
        probes["age"] = RidgeProbe().fit(codes[known], age[known], groups=people[known])
    return volumes.mean(axis=(0, 1)), probes


def _facts(
    cohort: Cohort, regions: dict[str, np.ndarray], seed: int, more: AttributeOptions
) -> dict[str, Any]:
    return {
        "pipeline": "ldae",
        "metric": "change of code and probes",
        "seed": seed,
        "draws": more.draws,
        "recording": "held-out scans",
        "simulated": bool(cohort.simulated),
        "subjects": [f"{len(cohort.subjects)} people"],
        "scans": len(cohort),
        "regions": {name: int(mask.sum()) for name, mask in regions.items()},
    }
