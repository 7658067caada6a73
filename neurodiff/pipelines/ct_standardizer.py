"""CT slices of one kernel brought to another: what is linear in it, and no more.

    standardizer = CTStandardizer().fit([(read_series("FC51"), read_series("FC13"))])
    done = standardizer.apply(read_series("scan"))       # done.hu, done.report
    standardizer.save_pretrained("to_fc13")              # mapping.yaml and filters, plain text

The linear mode is deterministic, invents nothing and leaves everything below 0.5 lp/cm as it was.
It refuses scans for which no filter was measured, and says where the target is sharper than the
source supports. Research use; no diagnostic claim.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from neurodiff.bridges.ct_filter import RadialFilter
from neurodiff.bridges.ct_phantom import NoiseSpectrum, Transfer
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import check_slices
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_series import CTSeries
from neurodiff.pipelines.ct_mapping import APPLIED, CTMapping, Decision, Rule, Standard, vendor_key
from neurodiff.pipelines.ct_pairs import FitReport, fit_pairs, fit_thickness
from neurodiff.pipelines.ct_support import (
    StandardizerSettings,
    check_thicknesses,
    shift_of,
    supported,
    thickened,
)

if TYPE_CHECKING:
    from neurodiff.pipelines.ct_networks import DiffusionMode


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardized:
    """A standardized scan.

    Attributes
    ----------
    hu : float32 (slices, rows, columns) on the slices of the input.
    report : plain values: mode, status, filter, warnings, shift of the mean by tissue, settings.
    volume : the same as a Volume, where a Volume was given.
    """

    hu: np.ndarray
    report: dict[str, Any]
    volume: Volume | None = None


@dataclass(eq=False)
class CTStandardizer:
    """Filters to one standard kernel; see the module.

    Attributes
    ----------
    mapping : rules and filters; None before a fit.
    settings : choices of the linear mode.
    fits : what each fit found, by filter name.
    folder : that it was read from, which may hold networks of the diffusion mode.
    """

    mapping: CTMapping | None = None
    settings: StandardizerSettings = field(default_factory=StandardizerSettings)
    fits: dict[str, FitReport] = field(default_factory=dict)
    folder: Path | None = None

    # ------------------------------------------------------------------------ where it comes from

    def fit(self, pairs: Sequence[tuple[CTSeries, CTSeries]]) -> CTStandardizer:
        """Add the filter of series pairs (source, target); seconds.

        The first fit makes the targets' kernel the standard; later ones add sources to it.

        Raises
        ------
        UsageError : fewer than two slice pairs, or a target that is not the standard.
        DataError : pairs that are not two reconstructions of one scan.
        """
        s = self.settings
        rule, found, report = fit_pairs(
            pairs,
            bins=s.bins,
            estimate=s.estimate,
            lock=s.lock,
            hold=s.hold,
            coherence=s.coherence,
        )
        wanted = pairs[0][1].facts
        standard = Standard(
            vendor=wanted.vendor or "",
            model=wanted.model or "*",
            kernel=wanted.kernel[0],
            iterative=wanted.iterative or None,
        )
        self.add(standard, rule, found)
        self.fits[rule.filter] = report
        return self

    def fit_thickness(self, thin: CTSeries, thick: CTSeries, *, taps: int = 7) -> CTStandardizer:
        """Add the weights that make thin slices as thick as those of the same scan's other series.

        The slices stay where they are; each becomes a mean over its neighbours. A standard is
        either a kernel or a thickness: a change of both is two standardizers, one after the other.
        """
        rule, found, report = fit_thickness(thin, thick, taps=taps)
        facts = thick.facts
        if facts.thickness_mm is None or not rule.kernel:
            raise DataError("the series name no thickness or no kernel; a rule needs both")
        standard = Standard(
            vendor=facts.vendor or "",
            model=facts.model or "*",
            kernel=rule.kernel,
            thickness_mm=(round(0.9 * facts.thickness_mm, 4), round(1.1 * facts.thickness_mm, 4)),
            iterative=facts.iterative or None,
        )
        self.add(standard, rule, found)
        self.fits[rule.filter] = report
        return self

    @classmethod
    def from_mapping(
        cls, path: str | os.PathLike[str], *, settings: StandardizerSettings | None = None
    ) -> CTStandardizer:
        """From a ``mapping.yaml`` with its filters beside it."""
        folder = Path(path).parent
        return cls(CTMapping.load(path), settings or StandardizerSettings(), folder=folder)

    @classmethod
    def from_phantom(
        cls,
        source: Transfer | NoiseSpectrum,
        target: Transfer | NoiseSpectrum,
        *,
        rule: Mapping[str, Any],
        standard: Mapping[str, Any],
        settings: StandardizerSettings | None = None,
    ) -> CTStandardizer:
        """From transfer functions of rods, or from noise spectra of uniform regions at one dose.

        Parameters
        ----------
        source, target : both of one kind.
        rule : vendor, model, kernel, thickness_mm, spacings of the source: see `Rule`.
        standard : vendor and kernel of the target: see `Standard`.
        """
        from neurodiff.pipelines.ct_standardizer_sources import of_phantom

        settings = settings or StandardizerSettings()
        made = cls(settings=settings)
        made.add(*of_phantom(source, target, rule=rule, standard=standard, settings=settings))
        return made

    @classmethod
    def from_library(
        cls,
        name: str,
        *,
        reverse: bool = False,
        settings: StandardizerSettings | None = None,
    ) -> CTStandardizer:
        """From a measured kernel change that comes with the package, or its ``reverse``.

        The reverse divides by a gain: it is refused at the first scan where that amplifies more
        than ``settings.amplify`` within the pixels' frequencies.
        """
        from neurodiff.pipelines.ct_standardizer_sources import of_library

        made = cls(settings=settings or StandardizerSettings())
        made.add(*of_library(name, reverse=reverse, settings=made.settings))
        return made

    # ---------------------------------------------------------------------------------- apply

    def table(self, scans: Any) -> Any:
        """Covered and uncovered scans, before anything is applied: see `CTMapping.table`."""
        return self._fitted().table(scans)

    def apply(
        self,
        scan: CTSeries | Volume,
        *,
        mode: Literal["linear", "diffusion"] = "linear",
        facts: Any = None,
        padding: np.ndarray | None = None,
        extrapolate: bool = False,
        seed: int = 0,
        despite_gate: bool = False,
    ) -> Standardized:
        """The scan in the standard kernel.

        Parameters
        ----------
        scan : a series, or a Volume in HU whose slices lie along its last axis; the filter works
            within slices, so tilted and uneven series need no resampling.
        mode : "linear"; "diffusion" needs a standardizer read from a folder with networks, as
            ``ct fit --recipe ct_diffusion_demo`` makes.
        facts : of a Volume, which holds none: vendor, model, kernel, thickness_mm, iterative.
        padding : of a Volume, bool (i, j, k): never measured. A series knows its own.
        extrapolate : filters hold for other models of their vendor too; the report then says so.
            Other vendors need a rule of the mapping that says extrapolation: true.
        seed, despite_gate : of the diffusion: see `DiffusionMode`.

        Raises
        ------
        DataError : the scan is refused or not covered, with the reason.
        MissingDataError : the diffusion of a standardizer without networks.
        UsageError : a Volume without facts or not in HU, or a mode that is not there.
        """
        if mode not in ("linear", "diffusion"):
            raise UsageError(f"mode is {mode!r}; there are linear and diffusion")
        network = None
        if mode == "diffusion":
            from neurodiff.pipelines.ct_networks import diffusion_beside

            self._fitted()
            network = diffusion_beside(self.folder, seed, despite_gate=despite_gate)
        if isinstance(scan, Volume):
            hu, spacing = _slices_of(scan)
            if facts is None:
                raise UsageError(
                    "a Volume does not say its kernel; give facts={'vendor': ..., 'model': ..., "
                    "'kernel': ..., 'thickness_mm': ...}"
                )
            step = float(np.linalg.norm(np.asarray(scan.affine)[:3, 2]))
            if padding is not None:
                padding = np.asarray(padding).transpose(2, 1, 0)
            done = self.apply_slices(
                hu,
                spacing,
                facts=facts,
                padding=padding,
                extrapolate=extrapolate,
                name=scan.name,
                step_mm=step,
                network=network,
            )
            data = np.ascontiguousarray(done.hu.transpose(2, 1, 0)[None])
            volume = Volume(data, scan.affine, "HU", scan.name, scan.notes)
            return Standardized(hu=done.hu, report=done.report, volume=volume)
        if facts is None:
            facts = scan.facts
            check_thicknesses(self._fitted(), scan, facts, any_model=extrapolate)
        return self.apply_slices(
            scan.hu,
            scan.spacing,
            facts=facts,
            padding=scan.padding,
            extrapolate=extrapolate,
            name=scan.name,
            step_mm=float(scan.stack.step) if scan.regular and len(scan.hu) > 1 else None,
            network=network,
        )

    def apply_slices(
        self,
        hu: Any,
        spacing: tuple[float, float],
        *,
        facts: Any,
        padding: np.ndarray | None = None,
        extrapolate: bool = False,
        name: str = "",
        step_mm: float | None = None,
        network: DiffusionMode | None = None,
    ) -> Standardized:
        """`apply` for arrays: hu (slices, rows, columns) and spacing (row_mm, column_mm).

        ``step_mm`` is the distance of slices, None where it is uneven; a change of thickness
        needs it. ``network`` draws in place of the linear result.
        """
        hu = check_slices(hu)
        decision = self._fitted().decide(facts, any_model=extrapolate)
        called = name or "the scan"
        if decision.status == "standard":
            return Standardized(
                hu=hu.copy(),
                report=self._report(
                    decision, [], spacing, shift=shift_of(hu, hu, padding, spacing)
                ),
            )
        if decision.status not in APPLIED or decision.filter is None:
            raise DataError(f"{called} is {decision.status}: {decision.reason}")
        used, warnings = supported(decision, self._fitted(), spacing, self.settings, called)
        result = hu.copy()
        if np.any(used.gain != 1):
            result = used.apply(hu, spacing, padding, workers=self.settings.workers)
        if decision.rule and decision.rule.taps:
            result = thickened(result, decision.rule, step_mm, padding, called)
            warnings.append(
                f"each slice is now a mean over {len(decision.rule.taps)} slices at "
                f"{decision.rule.step_mm:g} mm; neighbours share most of their data"
            )
        shift = shift_of(hu, result, padding, spacing)
        report = self._report(decision, warnings, spacing, shift=shift, used=used)
        done = Standardized(hu=result, report=report)
        if network is None:
            return done
        how = {"padding": padding, "scan": name, "extrapolate": extrapolate}
        return network.draw(done, hu, spacing, decision=decision, **how)

    # ----------------------------------------------------------------------------------- files

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """``mapping.yaml``, a JSON a filter, ``settings.json``, and networks where there are."""
        from neurodiff.pipelines.ct_standardizer_files import save_pretrained

        return save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> CTStandardizer:
        """Read what `save_pretrained` wrote."""
        from neurodiff.pipelines.ct_standardizer_files import from_pretrained

        return from_pretrained(folder)

    # ----------------------------------------------------------------------------------- parts

    def _fitted(self) -> CTMapping:
        if self.mapping is None:
            raise UsageError("this standardizer holds no filter; fit it or load a mapping")
        return self.mapping

    def add(self, standard: Standard, rule: Rule, found: RadialFilter) -> None:
        """Add a rule and its filter; UsageError where they lead to another standard."""
        if self.mapping is None:
            self.mapping = CTMapping(standard=standard)
        elif _kernel_of(self.mapping.standard) != _kernel_of(standard):
            raise UsageError(
                f"the standard is {self.mapping.standard.vendor} {self.mapping.standard.kernel} "
                f"and these pairs lead to {standard.vendor} {standard.kernel}; use one "
                "standardizer for each standard"
            )
        taken = self.mapping.filters
        name, count = rule.filter, 1
        while name in taken:
            count += 1
            name = rule.filter.replace(".json", f"_{count}.json")
        if name != rule.filter:
            rule = Rule(
                **{**{k: getattr(rule, k) for k in rule.__dataclass_fields__}, "filter": name}
            )
        self.mapping = self.mapping.with_rule(rule, found)

    def _report(
        self,
        decision: Decision,
        warnings: list[str],
        spacing: tuple[float, float],
        *,
        shift: dict[str, Any],
        used: RadialFilter | None = None,
    ) -> dict[str, Any]:
        mapping = self._fitted()
        rule = decision.rule
        fit = self.fits.get(rule.filter) if rule else None
        return {
            "mode": "linear",
            "status": decision.status,
            "reason": decision.reason,
            "standard": f"{mapping.standard.vendor} {mapping.standard.kernel}",
            "filter": rule.filter if rule else "",
            "curve": used.to_dict() if used else None,
            "coherence_limit": plain_numbers(used.limit(self.settings.coherence)) if used else None,
            "warnings": warnings,
            "fit": plain_numbers(asdict(fit)) if fit else None,
            "shift_hu": shift,
            "spacing_mm": [float(side) for side in spacing],
            "settings": asdict(self.settings),
        }


def _slices_of(scan: Volume) -> tuple[np.ndarray, tuple[float, float]]:
    if scan.unit != "HU" or scan.channels != 1:
        raise UsageError(
            f"the volume has {scan.channels} channels in {scan.unit}; give one channel in HU"
        )
    sides = np.linalg.norm(np.asarray(scan.affine)[:3, :3], axis=0)
    return scan.data[0].transpose(2, 1, 0), (float(sides[1]), float(sides[0]))


def _kernel_of(standard: Standard) -> tuple[Any, ...]:
    named = vendor_key(standard.vendor), standard.kernel, standard.iterative or ""
    return *named, standard.thickness_mm


def plain_numbers(value: Any) -> Any:
    """Infinity and NaN as None, for JSON."""
    if isinstance(value, dict):
        return {key: plain_numbers(inner) for key, inner in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value
