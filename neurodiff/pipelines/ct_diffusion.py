"""Diffusion mode of CT standardization, after DiffusionCT (Selim et al. 2023, arXiv 2301.08815).

An encoder-decoder is trained alone; with it frozen, a diffusion of its latents learns to draw the
standard kernel's from the source kernel's. "paper" draws them from noise over all times, as the
abstracts say. "practical" draws only what the standard latents add to those of the linear result,
from a warm start in at most 6 deterministic steps. A linear filter, fitted to the same pairs, is
what any of it has to beat.

Whatever the mode, the band below ``lock`` lp/cm and the mean of a slice are the input's. Texture
that the source does not hold is invented: no diagnosis should rest on it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from neurodiff.bridges.ct_filter import RadialFilter
from neurodiff.core import config
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.radial_gain import check_slices, check_spacing
from neurodiff.core.seeds import item_seed, seeded_layers, torch_generator
from neurodiff.diffusion.grids import karras, trailing
from neurodiff.diffusion.heads import Head
from neurodiff.diffusion.sampling import NetworkDenoiser, sample
from neurodiff.diffusion.solvers import DDIM, Ancestral
from neurodiff.pipelines.ct_diffusion_settings import CTDiffusionRecipe
from neurodiff.pipelines.ct_diffusion_training import (
    build,
    digest_of,
    fit_linear,
    fit_network,
    path_of,
)
from neurodiff.pipelines.ct_gate import round_trip_agreement
from neurodiff.pipelines.ct_patches import (
    HALF_RANGE,
    SlicePairs,
    in_patches,
    locked,
    padded,
    scaled,
    training_slices,
)
from neurodiff.pipelines.stages import Stages

Mode = Literal["practical", "paper", "linear", "autoencoder", "one-step", "unet", "gan"]
VERSION = 1
_INVENTED = ("practical", "paper", "gan")


@dataclass(frozen=True, kw_only=True, eq=False)
class CTDiffused:
    """Slices in the standard kernel, HU like the input, and what was done to them."""

    hu: np.ndarray
    report: dict[str, Any]


class CTDiffusion:
    """Fit to pairs of one kernel change, apply to slices of the source kernel.

    Attributes
    ----------
    recipe : sizes and steps.
    networks : by name, after :meth:`fit`.
    filter : the linear filter of the same pairs.
    spacing_range : smallest and largest pixel side, mm, seen in training.
    gate : {"ccc", "regions", "least", "passed"} of the autoencoder's round trip.
    """

    def __init__(self, recipe: CTDiffusionRecipe) -> None:
        self.recipe = recipe
        self.networks: Any = None
        self.filter: RadialFilter | None = None
        self.residual_scale = torch.ones(recipe.autoencoder.channels)
        self.spacing_range = (0.0, 0.0)
        self.gate: dict[str, Any] = {}
        self.gates: list[dict[str, Any]] = []

    @classmethod
    def from_recipe(cls, name: str | os.PathLike[str], overrides: Any = ()) -> CTDiffusion:
        """Unfitted, from a recipe's file or name."""
        return cls(config.load(name, CTDiffusionRecipe, overrides))

    def fit(
        self,
        scans: Sequence[SlicePairs],
        *,
        seed: int = 0,
        run: Any = None,
        progress: Progress = SILENT,
    ) -> CTDiffusion:
        """Linear filter, autoencoder, gate, then every network of the recipe.

        Raises
        ------
        DataError : fewer than two slice pairs, slices smaller than a patch, or arrays that are no
            pairs.
        """
        scans = [scan.checked() for scan in scans]
        count = sum(len(scan.source) for scan in scans)
        if count < 2:
            raise DataError(
                f"{count} slice pairs are too few to train on; give at least 2 slices in both "
                "kernels"
            )
        self.filter = fit_linear(scans)
        slices = training_slices(scans, self._linear, self.recipe.patches)
        sides = [side for one in slices for side in one.spacing]
        self.spacing_range = (float(min(sides)), float(max(sides)))
        with seeded_layers(item_seed(seed, subject="", stimulus="", stage="ct networks")):
            self.networks = build(self.recipe)
        stages = Stages(run, progress)
        inputs = [digest_of(scans)]
        for name in self.networks:
            done = self._stage(stages, name, slices, inputs, seed, progress)
            if name == "autoencoder":
                self.networks[name].requires_grad_(False)
                self.gate = self._measure_gate(scans)
                inputs = [*inputs, done]
                if not self.gate["passed"]:
                    progress.say(f"  {self._gate_sentence()}")
        self.networks.eval()
        self.gates = stages.gates
        return self

    def apply(
        self,
        hu: Any,
        spacing: tuple[float, float],
        *,
        mode: Mode = "practical",
        padding: np.ndarray | None = None,
        seed: int = 0,
        scan: str = "",
        extrapolate: bool = False,
        despite_gate: bool = False,
    ) -> CTDiffused:
        """Slices (slices, rows, columns) of the source kernel, in the standard kernel.

        Parameters
        ----------
        spacing : (row_mm, column_mm).
        mode : a network of the recipe, or "linear", or "autoencoder" (the input's round trip).
        padding : bool like ``hu``; those values stay.
        seed, scan : noise follows from them and the slice's own values, so that a slice is the
            same alone, in any batch and in any order.
        extrapolate : accept a spacing outside training; the report then warns.
        despite_gate : accept an autoencoder that failed its gate; the report then warns.

        Raises
        ------
        UsageError : not fitted, or a mode that was not trained.
        DataError : a spacing outside training, a failed gate, or values that are not finite.
        """
        if self.networks is None or self.filter is None:
            raise UsageError("this CTDiffusion is not fitted yet: call fit, or from_pretrained")
        if mode != "linear" and mode not in self.networks:
            known = ["linear", *self.networks]
            raise UsageError(f"mode {mode!r} was not trained; this model has {', '.join(known)}")
        hu, spacing = check_slices(hu), check_spacing(spacing)
        warnings = self._warnings(mode, spacing, extrapolate, despite_gate)
        filtered = self._linear(hu, spacing, padding)
        began = time.perf_counter()
        made = filtered.copy()
        if mode != "linear":
            for k in range(len(hu)):
                made[k] = self._one(hu[k], filtered[k], spacing, mode, seed, scan)
            made = locked(hu, made, spacing, padding, self.recipe.lock)
        change = [float(np.mean(m - h, dtype=np.float64)) for m, h in zip(made, hu, strict=True)]
        report = {
            "mode": mode,
            "seed": seed,
            "scan": scan,
            "slices": len(hu),
            "spacing_mm": list(spacing),
            "mean_change_hu": change,
            "steps": {"practical": self.recipe.diffusion.steps}.get(mode),
            "gate": dict(self.gate),
            "seconds": time.perf_counter() - began,
            "warnings": warnings,
        }
        return CTDiffused(hu=made, report=report)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write everything fitted; see `ct_diffusion_files.save_pretrained`."""
        from neurodiff.pipelines.ct_diffusion_files import save_pretrained

        return save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> CTDiffusion:
        """What `save_pretrained` wrote."""
        from neurodiff.pipelines.ct_diffusion_files import from_pretrained

        return from_pretrained(folder)

    # -------------------------------------------------------------------------------- one slice

    @torch.no_grad()
    def _one(
        self,
        hu: np.ndarray,
        filtered: np.ndarray,
        spacing: tuple[float, float],
        mode: str,
        seed: int,
        scan: str,
    ) -> np.ndarray:
        rows, columns = hu.shape
        source, linear = (
            torch.from_numpy(padded(scaled(image)))[None, None] for image in (hu, filtered)
        )
        told = torch.tensor([spacing], dtype=torch.float32)
        if mode in ("unet", "gan"):
            network = self.networks[mode]
            network = network.generator if mode == "gan" else network
            made = self._patched(lambda x: network(x, told.expand(len(x), 2)), [source])
        elif mode == "autoencoder":
            made = self._decode(self._encode(source))
        elif mode == "one-step":
            step = self.networks[mode]
            z = self._encode(source)
            made = self._decode(self._latent(lambda s: step(s, told.expand(len(s), 2)), [z]))
        else:
            key = item_seed(
                seed,
                subject=scan,
                stimulus=hashlib.sha256(np.ascontiguousarray(hu).tobytes()).hexdigest(),
                stage=f"ct {mode}",
            )
            made = self._drawn(source, linear, told, mode, torch_generator(key))
        values = made[0, 0, :rows, :columns].double().numpy()
        return ((values + 1) * HALF_RANGE - 1024.0).astype(np.float32)

    def _drawn(
        self, source: Any, linear: Any, told: Any, mode: str, generator: torch.Generator
    ) -> Any:
        """A draw of the standard slice; everything here is (1, c, ., .)."""
        settings = self.recipe.diffusion
        path = path_of(settings)
        z_source = self._encode(source)
        denoiser = self.denoiser(mode, told)
        eps = torch.randn(z_source.shape, generator=generator)
        if mode == "paper":
            grid = trailing(path, settings.times)
            x = grid[0].sigma * eps
            return self._decode(
                sample(denoiser, x, grid, Ancestral(), state=z_source, noise=[generator])
            )
        # residual on the linear result, which stands at 0 of the diffusion: x = 0 + sigma noise
        grid = karras(path, settings.steps, ends=(settings.warm_ratio, path.ends[1]))
        drawn = sample(denoiser, grid[0].sigma * eps, grid, DDIM(), state=z_source)
        z_linear = self._encode(linear)
        z = z_linear + drawn * self.residual_scale[:, None, None]
        # the round trip's own error cancels: no residual leaves the linear result as it is
        return linear + self._decode(z) - self._decode(z_linear)

    def denoiser(self, mode: str, told: Any) -> Callable[[Any, Any, Any], Any]:
        """Mean of x_0 from (x, level, source latents), in overlapping patches."""
        inner = NetworkDenoiser(self.networks[mode], Head(self.recipe.diffusion.head))

        def mean(x: Any, level: Any, state: Any) -> Any:
            return self._latent(
                lambda part, source: inner(
                    part, level, inner.prepare((source, told.expand(len(part), 2)))
                ),
                [x, state],
            )

        return mean

    def _encode(self, x: Any) -> Any:
        return self.networks["autoencoder"].encode(x)

    def _decode(self, z: Any) -> Any:
        return self.networks["autoencoder"].decode(z)

    def _patched(self, function: Callable, images: list) -> Any:
        patches = self.recipe.patches
        return in_patches(function, images, patches.apply, patches.overlap, patches.batch)

    def _latent(self, function: Callable, images: list) -> Any:
        patches, f = self.recipe.patches, self.recipe.autoencoder.factor
        return in_patches(function, images, patches.apply // f, patches.overlap // f, patches.batch)

    # ------------------------------------------------------------------------------------- parts

    def _linear(self, hu: Any, spacing: tuple[float, float], padding: Any) -> np.ndarray:
        assert self.filter is not None  # public doors check
        return self.filter.apply(hu, spacing, padding)

    def _stage(
        self,
        stages: Stages,
        name: str,
        slices: list,
        inputs: list[str],
        seed: int,
        progress: Progress,
    ) -> str:
        network = self.networks[name]
        scale = self.residual_scale

        def fit(folder: Path | None, log: Any) -> dict[str, Any]:
            began = time.process_time()
            fit_network(
                name,
                self.networks,
                slices,
                self.recipe,
                residual_scale=scale,
                seed=seed,
                folder=folder,
                log=log,
                progress=progress,
            )
            return {
                "cpu_seconds": time.process_time() - began,
                "parameters": sum(p.numel() for p in network.parameters()),
            }

        def state() -> dict[str, Any]:
            own = {key: value.clone() for key, value in network.state_dict().items()}
            return {**own, "residual_scale": scale.clone()}

        def restore(found: dict[str, Any]) -> None:
            found = dict(found)
            scale.copy_(found.pop("residual_scale"))
            network.load_state_dict(found)

        return stages.do(
            name,
            settings={"recipe": config.dump(self.recipe), "seed": seed},
            inputs=inputs,
            version=VERSION,
            fit=fit,
            state=state,
            restore=restore,
        )

    @torch.no_grad()
    def _measure_gate(self, scans: Sequence[SlicePairs]) -> dict[str, Any]:
        coder = self.networks["autoencoder"].eval()
        trips = []
        for scan in scans:
            back = np.zeros_like(scan.target)
            for k, one in enumerate(scan.target):
                image = torch.from_numpy(padded(scaled(one)))[None, None]
                made = coder(image)[0, 0, : one.shape[0], : one.shape[1]].numpy()
                back[k] = (made + 1) * HALF_RANGE - 1024.0
            trips.append((scan.target, back, scan.spacing))
        return round_trip_agreement(trips, self.recipe.gate)

    def _gate_sentence(self) -> str:
        found = self.gate.get("ccc")
        said = "could not be measured" if found is None else f"is {found:.3f}"
        return (
            f"the autoencoder's round trip CCC on the target kernel {said}; "
            f"{self.gate.get('least', 0):g} is needed for latents to carry its texture"
        )

    def _warnings(
        self, mode: str, spacing: tuple[float, float], extrapolate: bool, despite_gate: bool
    ) -> list[str]:
        warnings = []
        low, high = self.spacing_range
        if not low / 1.05 <= min(spacing) <= max(spacing) <= high * 1.05:
            said = (
                f"pixels of {spacing[0]:g} x {spacing[1]:g} mm lie outside the {low:.3g} to "
                f"{high:.3g} mm of training"
            )
            if not extrapolate:
                raise DataError(f"{said}; train with them, or say extrapolate=True (--extrapolate)")
            warnings.append(said)
        if mode in ("practical", "paper", "one-step") and not self.gate.get("passed"):
            if not despite_gate:
                raise DataError(
                    f"{self._gate_sentence()}; train it longer or with more channels, or say "
                    "despite_gate=True (--despite-gate)"
                )
            warnings.append(self._gate_sentence())
        if mode in _INVENTED:
            warnings.append("texture is drawn, not measured: no diagnosis should rest on it")
        return warnings
