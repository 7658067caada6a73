"""Training of the diffusion mode: networks beside a mapping, see `pipelines.ct_networks`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neurodiff.core.progress import SILENT, Progress
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.pipelines.ct_networks import FOLDER


def fit_diffusion(
    pairs: Sequence[tuple[CTSeries, CTSeries]],
    recipe: str,
    out: Path,
    name: str,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[str]:
    """Train the networks of one filter on its pairs and save them beside the mapping.

    Returns
    -------
    What to tell: the gate, and the warnings.
    """
    from neurodiff.pipelines.ct_diffusion import CTDiffusion
    from neurodiff.pipelines.ct_patches import SlicePairs

    model = CTDiffusion.from_recipe(recipe)
    model.fit(
        [
            SlicePairs(
                source=source.hu,
                target=target.hu,
                spacing=source.spacing,
                padding=source.padding | target.padding,
            )
            for source, target in pairs
        ],
        seed=seed,
        progress=progress,
    )
    model.save_pretrained(out / FOLDER / Path(name).stem)
    gate = model.gate
    state = (
        "passed"
        if gate.get("passed")
        else "not passed: scans will be refused, unless with --despite-gate"
    )
    return [
        f"diffusion: round trip of the autoencoder, CCC {gate.get('ccc', float('nan')):.3f} "
        f"(at least {gate.get('least', 0.98):g}): {state}"
    ]
