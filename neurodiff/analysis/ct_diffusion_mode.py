"""The diffusion mode of the verbs: networks beside a mapping, one folder for each of its filters.

    mapping/mapping.yaml  mapping/sharp_soft.json  mapping/diffusion/sharp_soft/...

Which scans are covered is decided by the mapping alone; the network of the rule's filter then
works on the same slices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.pipelines.ct_mapping import APPLIED
from neurodiff.pipelines.ct_standardizer import CTStandardizer, Standardized
from neurodiff.pipelines.ct_support import shift_of

FOLDER = "diffusion"


@dataclass(eq=False)
class DiffusionMode:
    """Networks of a mapping, opened when the first scan needs one.

    Attributes
    ----------
    folder : that of the mapping.
    seed : of the noise; a slice's noise follows from it, the scan's name and the slice's values.
    """

    folder: Path
    seed: int = 0
    _opened: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Filters that have a network."""
        return tuple(
            sorted(path.name for path in (self.folder / FOLDER).glob("*") if path.is_dir())
        )

    @property
    def identity(self) -> str:
        """Hash of every file of the networks, and the seed; empty without networks."""
        if not self.names:
            return ""
        whole = hashlib.sha256(str(self.seed).encode())
        for path in sorted((self.folder / FOLDER).rglob("*")):
            if path.is_file():
                whole.update(path.relative_to(self.folder).as_posix().encode())
                whole.update(path.read_bytes())
        return whole.hexdigest()[:16]

    def apply(
        self, made: CTStandardizer, series: CTSeries, *, scan: str, extrapolate: bool = False
    ) -> Standardized:
        """The series by the network of its rule.

        Raises
        ------
        DataError : the scan is not covered, its rule has no network, or the network refuses it.
        """
        if made.mapping is None:
            raise UsageError("this standardizer holds no filter; fit it or load a mapping")
        decision = made.mapping.decide(series.facts, any_model=extrapolate)
        linear = made.apply(series, extrapolate=extrapolate)
        if decision.status not in APPLIED or decision.rule is None:
            return linear  # the standard already: nothing is drawn
        name = Path(decision.rule.filter).stem
        if name not in self.names:
            raise DataError(
                f"no network was trained for {decision.rule.filter}; there are "
                f"{', '.join(self.names)}"
            )
        if name not in self._opened:
            from neurodiff.pipelines.ct_diffusion import CTDiffusion

            self._opened[name] = CTDiffusion.from_pretrained(self.folder / FOLDER / name)
        done = self._opened[name].apply(
            series.hu,
            series.spacing,
            mode="practical",
            padding=series.padding if series.padding.any() else None,
            seed=self.seed,
            scan=scan,
            extrapolate=extrapolate,
        )
        report = {
            **linear.report,
            "mode": "diffusion",
            "warnings": list(dict.fromkeys([*linear.report["warnings"], *done.report["warnings"]])),
            "shift_hu": shift_of(series.hu, done.hu, series.padding, series.spacing),
            "seed": self.seed,
            "steps": done.report["steps"],
            "gate": done.report["gate"],
        }
        return Standardized(hu=done.hu, report=report)


def diffusion_beside(mapping: Path, seed: int = 0) -> DiffusionMode:
    """The networks beside a mapping; MissingDataError where there is none."""
    folder = mapping.parent if mapping.suffix in (".yaml", ".yml") else mapping
    found = DiffusionMode(folder, seed)
    if not found.names:
        raise MissingDataError(
            f"{mapping} was fitted for the linear mode; fit it with --recipe ct_diffusion_demo (or "
            "another recipe of the diffusion) for --mode diffusion"
        )
    return found


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
    state = "passed" if gate.get("passed") else "not passed: scans will be refused"
    return [
        f"diffusion: round trip of the autoencoder, CCC {gate.get('ccc', float('nan')):.3f} "
        f"(at least {gate.get('least', 0.98):g}): {state}"
    ]
