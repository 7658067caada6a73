"""The fitted bridge of MinD-3D: frames to embeddings by diffusion, one noise generator a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neurodiff.bridges.prior import sample_embeddings
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.diffusion.paths import VariancePreserving
from neurodiff.models.mind3d import BrainNetworks
from neurodiff.pipelines.brain_input import BrainInput, frames_at_test
from neurodiff.pipelines.mind3d_settings import BridgeSettings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FittedBridge:
    """The networks between brain and embedding, and how their diffusion is walked."""

    networks: BrainNetworks
    settings: BridgeSettings
    path: VariancePreserving

    @torch.no_grad()
    def predict(
        self,
        recording: Recording,
        brain: BrainInput,
        anchors: Float[np.ndarray, "trials d"],
        *,
        sample: int = 0,
        seed: int = 0,
        batch: int = 64,
    ) -> Float[Tensor, "trials d"]:
        """One draw of each trial, of any length.

        Parameters
        ----------
        recording : as `BrainInput.accept` returns it.
        anchors : the ridge's predictions, read where the bridge was fitted on top of them.
        batch : trials at a time; a trial's draw is the same in any batch.
        """
        networks, settings = self.networks, self.settings
        parts = []
        for start in range(0, recording.n_trials, batch):
            trials = recording.trials.iloc[start : start + batch]
            frames = brain.standardised(recording.data[start : start + len(trials)])
            frames = frames[:, frames_at_test(frames.shape[1], settings.frames)]
            maps = torch.from_numpy(frames.reshape(-1, frames.shape[-1]))
            generators = trial_generators(trials, seed, sample, "bridge")
            anchor = torch.from_numpy(anchors[start : start + len(trials)])
            parts.append(
                sample_embeddings(
                    networks.prior_network,
                    networks.tokens(brain.patches(maps), settings.frames),
                    generators,
                    path=self.path,
                    anchor=anchor if settings.anchor == "ridge" else None,
                    candidates=settings.candidates,
                    steps=settings.steps,
                    eta=settings.eta,
                    choose=settings.choose,
                )
            )
        return torch.cat(parts)

    @torch.no_grad()
    def draw(self, names: Sequence[str], *, seed: int = 0) -> Float[Tensor, "n d"]:
        """One draw without any brain data for each name, from a generator of its own."""
        settings = self.settings
        n_tokens = settings.frames * settings.aggregated_tokens
        generators = [
            torch_generator(item_seed(seed, subject="no brain", stimulus=name, stage="bridge"))
            for name in names
        ]
        nothing = torch.zeros(len(names), settings.network.dim)
        return sample_embeddings(
            self.networks.prior_network,
            torch.zeros(len(names), n_tokens, settings.network.dim),
            generators,
            path=self.path,
            anchor=nothing if settings.anchor == "ridge" else None,
            candidates=1,
            steps=settings.steps,
            eta=settings.eta,
            unconditional=True,
        )


def trial_generators(
    trials: pd.DataFrame, seed: int, sample: int, stage: str
) -> list[torch.Generator]:
    """One a trial; what it draws depends on nothing but the trial, the sample and the seed."""
    return [
        torch_generator(
            item_seed(
                seed,
                subject=row.subject,
                stimulus=f"{row.stimulus} r{row.repeat}",
                sample=sample,
                stage=stage,
            )
        )
        for row in trials.itertuples()
    ]
