"""The diffusion mode of a standardizer: networks beside its mapping, one folder for each filter.

    mapping/mapping.yaml  mapping/sharp_soft.json  mapping/diffusion/sharp_soft/...

Which scans are covered is decided by the mapping alone; the network of the rule's filter then
works on the same slices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.pipelines.ct_mapping import APPLIED, Decision
from neurodiff.pipelines.ct_standardizer import CTStandardizer, Standardized
from neurodiff.pipelines.ct_support import check_thicknesses, shift_of

FOLDER = "diffusion"


@dataclass(eq=False)
class DiffusionMode:
    """Networks of a mapping, opened when the first scan needs one.

    Attributes
    ----------
    folder : that of the mapping.
    seed : of the noise; a slice's noise follows from it, the scan's name and the slice's values.
    despite_gate : accept an autoencoder that failed its gate; each report then warns.
    """

    folder: Path
    seed: int = 0
    despite_gate: bool = False
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
        if made.mapping is not None:
            check_thicknesses(made.mapping, series, series.facts, any_model=extrapolate)
        return made.apply_slices(
            series.hu,
            series.spacing,
            facts=series.facts,
            padding=series.padding,
            extrapolate=extrapolate,
            name=scan,
            step_mm=float(series.stack.step) if series.regular and len(series.hu) > 1 else None,
            network=self,
        )

    def draw(
        self,
        linear: Standardized,
        hu: np.ndarray,
        spacing: tuple[float, float],
        *,
        decision: Decision,
        padding: np.ndarray | None = None,
        scan: str = "",
        extrapolate: bool = False,
    ) -> Standardized:
        """What the network of the decision's rule makes of slices; ``linear`` for the standard."""
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
            hu,
            spacing,
            mode="practical",
            padding=padding if padding is not None and padding.any() else None,
            seed=self.seed,
            scan=scan,
            extrapolate=extrapolate,
            despite_gate=self.despite_gate,
        )
        report = {
            **linear.report,
            "mode": "diffusion",
            "warnings": list(dict.fromkeys([*linear.report["warnings"], *done.report["warnings"]])),
            "shift_hu": shift_of(hu, done.hu, padding, spacing),
            "seed": self.seed,
            "steps": done.report["steps"],
            "gate": done.report["gate"],
        }
        return Standardized(hu=done.hu, report=report)


def diffusion_beside(
    mapping: Path | None, seed: int = 0, *, despite_gate: bool = False
) -> DiffusionMode:
    """The networks beside a mapping; MissingDataError where there is none.

    ``mapping`` is the folder of a fit, its ``mapping.yaml``, or None for a standardizer that was
    not read from one.
    """
    how = "ct fit --recipe ct_diffusion_demo (or another recipe of the diffusion) trains them"
    if mapping is None:
        raise MissingDataError(
            "this standardizer was fitted for the linear mode and was not read from a folder with "
            f"networks; {how}, and CTStandardizer.from_pretrained(folder) reads them"
        )
    folder = mapping.parent if mapping.suffix in (".yaml", ".yml") else mapping
    found = DiffusionMode(folder, seed, despite_gate)
    if not found.names:
        raise MissingDataError(
            f"{mapping} was fitted for the linear mode and has no networks beside it; {how}"
        )
    return found
