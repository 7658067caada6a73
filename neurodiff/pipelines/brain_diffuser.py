"""Brain-Diffuser: fMRI to an image by three ridge decoders and an image-to-image diffusion.

    betas, repeats averaged -> z-scores by training -> ridge -> latents of a VDVAE   -> low picture
                                                    -> ridge -> text tokens         \\
                                                    -> ridge -> vision tokens       -> generator
    low picture + tokens -> latent diffusion from the noised low picture -> image

Source: Ozcelik & VanRullen 2023, Scientific Reports 13. Protocol "brain-diffuser-2023" has the
released code's quirks on; see `brain_diffuser_settings`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.kernel_factor import KernelFactor, factorise
from neurodiff.core.config import load
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed
from neurodiff.core.stimuli import Stimuli
from neurodiff.pipelines.brain_diffuser_input import BetaInput, averaged
from neurodiff.pipelines.brain_diffuser_networks import Networks, Shown
from neurodiff.pipelines.brain_diffuser_settings import HEADS, BrainDiffuserRecipe
from neurodiff.pipelines.brain_diffuser_targets import (
    identity_of,
    make_targets,
    posterior_seeds,
)
from neurodiff.pipelines.pictures import Picture, Pictures
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    from neurodiff.core.run import Run
    from neurodiff.pipelines.brain_diffuser_subjects import SharedInput


@dataclass(frozen=True)
class Features:
    """Decoded or true features of some items, row by row; float32."""

    vdvae: Float[np.ndarray, "n latents"]
    text: Float[np.ndarray, "n t d"]
    vision: Float[np.ndarray, "n v w"]

    def __len__(self) -> int:
        return len(self.vdvae)

    def take(self, rows: Sequence[int] | np.ndarray) -> Features:
        """The features of these rows, in this order."""
        rows = np.asarray(rows, int)
        return Features(self.vdvae[rows], self.text[rows], self.vision[rows])


class BrainDiffuser:
    """Brain-Diffuser at any size.

    Examples
    --------
    >>> from neurodiff.core.errors import UsageError
    >>> try: BrainDiffuser.from_recipe("brain_diffuser_tiny").predict(None)
    ... except UsageError as error: print(str(error).split(";")[0])
    this pipeline is not fitted
    """

    def __init__(self, recipe: BrainDiffuserRecipe):
        self.recipe = recipe
        self.networks: Networks | None = None
        self.input: BetaInput | SharedInput | None = None
        self.heads: dict[str, FactoredRidge] = {}
        self.gates: list[dict[str, Any]] = []

    @classmethod
    def from_recipe(cls, name: str | Path, overrides: Sequence[str] = ()) -> BrainDiffuser:
        """By the name or path of a recipe; ``overrides`` as ``key=value``."""
        return cls(load(name, BrainDiffuserRecipe, list(overrides)))

    # ------------------------------------------------------------------------------------ fit

    def fit(
        self,
        recording: Recording,
        stimuli: Stimuli,
        *,
        seed: int = 0,
        run: Run | None = None,
        progress: Progress = SILENT,
    ) -> BrainDiffuser:
        """Networks where the recipe trains them, then the decoders; returns self.

        Parameters
        ----------
        recording : training trials of one subject; repeats of a stimulus are averaged.
        stimuli : its pictures and captions.
        run : folder in which finished stages are kept; a second call goes on.

        Raises
        ------
        DataError : several subjects, frames, NaN, voxels that never vary, a stimulus without
            picture or caption.
        """
        shown = Shown(stimuli, tuple(dict.fromkeys(recording.trials["stimulus"])))
        self.fit_networks(shown, seed=seed, run=run, progress=progress)
        return self.fit_brain(recording, stimuli, seed=seed, run=run, progress=progress)

    def fit_networks(
        self, shown: Shown, *, seed: int = 0, run: Run | None = None, progress: Progress = SILENT
    ) -> BrainDiffuser:
        """Train or load what knows nothing of brains; returns self."""
        from neurodiff.pipelines.brain_diffuser_training import fit_networks

        stages = Stages(run, progress)
        self.networks = fit_networks(
            self.recipe,
            shown,
            seed=seed,
            stages=stages,
            identity=identity_of(shown),
            progress=progress,
        )
        self.gates += stages.gates
        return self

    def fit_brain(
        self,
        recording: Recording,
        stimuli: Stimuli,
        *,
        seed: int = 0,
        run: Run | None = None,
        progress: Progress = SILENT,
    ) -> BrainDiffuser:
        """The three decoders of one subject, from one factorisation; returns self.

        Raises
        ------
        UsageError : there are no networks yet.
        DataError : several subjects; as `BetaInput.fit`; a stimulus without picture or caption.
        """
        networks = self._networks()
        people = list(dict.fromkeys(recording.trials["subject"]))
        if len(people) != 1:
            raise DataError(
                f"the training trials are of {len(people)} subjects ({', '.join(people[:3])}); a "
                "decoder is fitted on one: select it"
            )
        means = recording.mean_repeats()
        self.input = betas = BetaInput.fit(means)
        shown = Shown(stimuli, tuple(means.trials["stimulus"]))
        progress.say(f"decoders: {len(shown)} images, {means.n_features} voxels")
        factor = factorise(betas(means))
        self.heads = {}
        for head in HEADS:
            targets = make_targets(networks, head, shown, seed=seed, run=run, progress=progress)
            self.heads[head] = self.fit_head(head, factor, targets, seed=seed)
            self.gates.append(self._gate(head))
            progress.say(f"  {head}: {self._told(head)}")
        return self

    def fit_head(
        self, head: str, factor: KernelFactor, targets: np.ndarray | Path, *, seed: int = 0
    ) -> FactoredRidge:
        """One decoder over a factor of standardised betas; ``targets`` (n, ...) or their file."""
        decoder = self.recipe.decoder
        settings = getattr(decoder, head)
        bridge = FactoredRidge(
            settings.alphas,
            alpha_per=settings.alpha_per,
            absolute=settings.absolute,
            standardise=decoder.standardise,
            dtype=decoder.dtype,
            seed=seed,
        )
        return bridge.fit(None, targets, factor=factor)

    # --------------------------------------------------------------------- several subjects

    def fit_across(
        self, recordings: Sequence[Recording], stimuli: Stimuli, **options: Any
    ) -> BrainDiffuser:
        """One decoder for several people; see `brain_diffuser_subjects.fit_subjects`."""
        from neurodiff.pipelines.brain_diffuser_subjects import fit_subjects

        return fit_subjects(self, recordings, stimuli, **options)

    def adapt(self, recording: Recording, stimuli: Stimuli, **options: Any) -> BrainDiffuser:
        """A new person's input layer; see `brain_diffuser_subjects.adapt_subject`."""
        from neurodiff.pipelines.brain_diffuser_subjects import adapt_subject

        return adapt_subject(self, recording, stimuli, **options)

    # -------------------------------------------------------------------------------- predict

    def predict(
        self,
        recording: Recording | None,
        *,
        samples: int = 1,
        seed: int = 0,
        average: bool = True,
        progress: Progress = SILENT,
    ) -> Pictures:
        """Images of trials.

        Parameters
        ----------
        recording : any trials of the subject.
        samples : images of each.
        average : average the repeats of a stimulus first, as published.

        Raises
        ------
        UsageError, DataError : not fitted; as `predict_features`.
        """
        if recording is None or not self.heads:
            raise UsageError("this pipeline is not fitted; call fit, or load one that was saved")
        if average:
            recording = averaged(recording)
        features = self.predict_features(recording)
        keys = list(
            zip(
                recording.trials["subject"],
                recording.trials["stimulus"],
                recording.trials["repeat"],
                strict=True,
            )
        )
        found = Pictures()
        for sample in range(samples):
            found += self.generate(features, keys, sample=sample, seed=seed, progress=progress)
        return found

    def predict_features(self, recording: Recording) -> Features:
        """Decoded features, re-standardised as the recipe says, row by row of the recording.

        Raises
        ------
        DataError : another subject's voxels, NaN; one trial alone under standardise="test".
        """
        if self.input is None:
            raise UsageError("this pipeline is not fitted; call fit, or load one that was saved")
        return self.decode_features(self.input(recording))

    def decode_features(self, X: Float[np.ndarray, "n voxels"]) -> Features:
        """Decoded features of standardised betas."""
        return Features(**{h: self.heads[h].predict(X).astype(np.float32) for h in HEADS})

    def true_features(self, stimuli: Stimuli, ids: Sequence[str], *, seed: int = 0) -> Features:
        """Features of the stimuli themselves: what a perfect decoder would give."""
        networks = self._networks()
        shown = Shown(stimuli, tuple(ids))
        seeds = posterior_seeds(shown.ids, seed)
        return Features(**{h: networks.encode(h, shown, 0, len(shown), seeds=seeds) for h in HEADS})

    def generate(
        self,
        features: Features,
        keys: Sequence[tuple[str, str, int]],
        *,
        sample: int = 0,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Pictures:
        """One picture a row of features.

        Parameters
        ----------
        keys : (subject, stimulus, repeat) of each row; with ``seed`` and ``sample`` they decide a
            picture's noise, so it does not change with the other rows.
        """
        networks, settings = self._networks(), self.recipe.generator
        assert networks.generator is not None

        def seeds(stage: str, rows: slice) -> list[int]:
            return [
                item_seed(seed, subject=f"{s} {r}", stimulus=i, sample=sample, stage=stage)
                for s, i, r in keys[rows]
            ]

        found = Pictures()
        block = max(1, settings.batch)
        for k in progress.over(range(0, len(keys), block), "pictures"):
            rows = slice(k, k + block)
            low = networks.low_level(features.vdvae[rows], seeds("vdvae", rows))
            images = networks.generator.generate(
                low,
                features.text[rows],
                features.vision[rows],
                strength=settings.strength,
                guidance=settings.guidance,
                mix=settings.mix,
                steps=settings.steps,
                seed=seeds("generator", rows),
            )
            for (subject, stimulus, repeat), image, first in zip(
                keys[rows], images, low, strict=True
            ):
                found.append(Picture(subject, stimulus, int(repeat), sample, image, first))
        return found

    # ---------------------------------------------------------------------------------- files

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write a fitted pipeline; see `brain_diffuser_files`."""
        from neurodiff.pipelines.brain_diffuser_files import save_pretrained

        return save_pretrained(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> BrainDiffuser:
        """Read a fitted pipeline; see `brain_diffuser_files`."""
        from neurodiff.pipelines.brain_diffuser_files import from_pretrained

        return from_pretrained(Path(folder))

    # ---------------------------------------------------------------------------------- parts

    def _networks(self) -> Networks:
        if self.networks is None:
            raise UsageError("this pipeline has no networks; call fit, or load one that was saved")
        return self.networks

    def _gate(self, head: str) -> dict[str, Any]:
        bridge = self.heads[head]
        r2 = bridge.sketch_r2_
        alpha = bridge.alpha_
        return {
            "stage": f"decoder, {head}",
            "targets": bridge.targets_.shape[1],
            "alpha": float(np.median(alpha)),
            "leave-one-out R2": None if r2 is None else float(np.max(r2)),
        }

    def _told(self, head: str) -> str:
        gate = self._gate(head)
        r2 = gate["leave-one-out R2"]
        told = "" if r2 is None else f", leave-one-out R2 {r2:.3f}"
        return f"{gate['targets']:,} targets, alpha {gate['alpha']:.4g}{told}"
