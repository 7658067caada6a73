"""The published MinD-3D weights at work: fMRI frames in, meshes out (protocol ``mind3d-2024``).

    pipe = PublishedMinD3D.load("mind3d_sub01.pt")
    objects = pipe.predict(recording, samples=1, seed=0)

As released: frames 2 to 7 of ten, the values of the files as they are; 768 tokens; 128 candidates
by 63 calls of the prior, of which the one nearest to the mean token is kept; 1,024 codes drawn from
the 250 most likely ones; occupancy on 32 to 128 cells a side, surface at 0.2.  What the released
code does inconsistently is in ``neurodiff.pipelines.mind3d_protocol``.

Differences that change no expectation: every draw comes from a generator that belongs to (seed,
trial, sample, candidate), and prefix and codes are cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.diffusion.paths import cosine
from neurodiff.diffusion.sampling import Noise
from neurodiff.models.feature_bridge_2024 import BridgeSamples, sample_bridge_2024
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.models.published_sizes import MinD3DSizes
from neurodiff.models.weights import load_mind3d
from neurodiff.pipelines.brain_input import frames_at_test
from neurodiff.pipelines.mind3d_protocol import MIND3D_2024, MinD3DProtocol
from neurodiff.pipelines.reconstructions import Reconstruction, Reconstructions
from neurodiff.pipelines.shape_meshes import meshes_of_codes

if TYPE_CHECKING:
    import trimesh


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How published weights are sampled; the defaults are the published ones.

    candidates : embeddings drawn for a trial, of which one is kept.  points : of the diffusion
    grid, one more than calls of the prior.  greedy : take the most likely code instead of drawing
    among the ``top_k`` at ``temperature``.  resolution, threshold : of the surface.
    """

    candidates: int = 128
    points: int = 64
    eta: float = 1.0
    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 250
    resolution: int = 128
    threshold: float = 0.2


class PublishedMinD3D:
    """Networks with published weights and the protocol that they are decoded by."""

    def __init__(
        self,
        networks: BrainNetworks,
        shapes: ShapeGenerator,
        sizes: MinD3DSizes,
        *,
        protocol: MinD3DProtocol = MIND3D_2024,
        decoding: Decoding | None = None,
    ):
        self.networks, self.shapes, self.sizes = networks, shapes, sizes
        self.protocol, self.decoding = protocol, decoding or Decoding()
        self.path = cosine(sizes.bridge.timesteps).rounded()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        decoding: Decoding | None = None,
        protocol: MinD3DProtocol = MIND3D_2024,
        any_size: bool = False,
        dtype: torch.dtype | None = torch.float32,
        decoder_dtype: torch.dtype | None = None,
        encoder_heads: int = 16,
        decoder_heads: int = 16,
    ) -> PublishedMinD3D:
        """From a released file or a stage-2 checkpoint; see `neurodiff.models.weights`.

        ``decoder_dtype=torch.bfloat16`` halves the 15 GB of the shape decoder.

        Raises
        ------
        MissingDataError, DataError : no such file, broken, incomplete, or of another size.
        UsageError : a checkpoint without shape decoder (stage 1, encoder, PointNet).
        """
        loaded = load_mind3d(
            path,
            any_size=any_size,
            dtype=dtype,
            decoder_dtype=decoder_dtype,
            protocol=protocol.bridge,
            encoder_heads=encoder_heads,
            decoder_heads=decoder_heads,
        )
        if loaded.shapes is None:
            raise UsageError(
                f"{path} is a stage-1 checkpoint: it has no shape decoder and ends at the "
                "embedding; give the released weights or a stage-2 checkpoint"
            )
        return cls(loaded.brain, loaded.shapes, loaded.sizes, protocol=protocol, decoding=decoding)

    def to(self, device: str | torch.device) -> PublishedMinD3D:
        """Move all networks; returns itself."""
        self.networks.to(device)
        self.shapes.to(device)
        return self

    # ------------------------------------------------------------------ the steps

    @torch.no_grad()
    def tokens(self, maps: Float[Tensor, "trials frames h w"]) -> Float[Tensor, "trials tokens d"]:
        """Aggregated tokens of the frames that are given."""
        trials, frames = maps.shape[:2]
        weight = self.networks.fa_module.fc2.weight
        encoded = self.networks.fmri_encoder(maps.flatten(0, 1)[:, None].to(weight))
        return self.networks.fa_module(encoded, frames).view(trials, -1, weight.shape[0])

    @torch.no_grad()
    def sample(
        self,
        tokens: Float[Tensor, "trials tokens d"],
        generators: Sequence[torch.Generator] | None = None,
        *,
        start: Float[Tensor, "rows d"] | None = None,
        noise: Noise | None = None,
    ) -> BridgeSamples:
        """Candidate embeddings; generators one a (trial, candidate), or start and noise."""
        how = self.decoding
        return sample_bridge_2024(
            self.networks.prior_network,
            self.path,
            self.protocol.tokens_for(tokens, training=False),
            generators=generators,
            candidates=how.candidates,
            points=how.points,
            eta=how.eta,
            start=start,
            noise=noise,
        )

    @torch.no_grad()
    def codes(
        self,
        embedding: Float[Tensor, "n d"],
        generators: Sequence[torch.Generator] | None = None,
    ) -> Int[Tensor, "n codes"]:
        """Shape codes of embeddings; generators one an item, unless greedy."""
        decoder, how = self.shapes.transformer_model, self.decoding
        condition = self.protocol.condition_for(embedding, training=False)
        return decoder.generate(
            condition.to(decoder.clip_project.weight),
            greedy=how.greedy,
            temperature=how.temperature,
            top_k=how.top_k,
            generators=None if how.greedy else generators,
        )

    def meshes(self, codes: Int[np.ndarray, "n codes"]) -> Iterator[trimesh.Trimesh]:
        """The mesh of each row of codes."""
        how = self.decoding
        return meshes_of_codes(
            self.shapes.vqvae_model,
            codes,
            resolution=how.resolution,
            threshold=how.threshold,
            batch=1,
        )

    # ------------------------------------------------------------------ the whole

    def predict(
        self,
        recording: Recording,
        *,
        samples: int = 1,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Reconstructions:
        """Each trial decoded ``samples`` times; order: trial, then sample.

        ``recording`` holds flat maps, (trials, frames, 65,536 pixels), in the values of the
        published files.

        Raises
        ------
        UsageError : other pixels than the encoder reads.
        DataError : values that are not finite.
        """
        results = Reconstructions()
        for trial in progress.over(range(recording.n_trials), "decoding", recording.n_trials):
            row = recording.trials.iloc[trial]
            results += self.predict_trial(
                np.asarray(recording.data[trial]),
                subject=str(row.subject),
                stimulus=str(row.stimulus),
                repeat=int(row["repeat"]),
                samples=samples,
                seed=seed,
            )
        return results

    def predict_trial(
        self,
        frames: np.ndarray,
        *,
        subject: str = "1",
        stimulus: str = "trial",
        repeat: int = 1,
        samples: int = 1,
        first_sample: int = 0,
        seed: int = 0,
    ) -> Reconstructions:
        """One trial, (frames, 256, 256) or (frames, 65536), any number of frames."""
        tokens = self.tokens(torch.from_numpy(self._chosen(frames, stimulus))[None])
        results = Reconstructions()
        for k in range(first_sample, first_sample + samples):

            def generator(stage: str, k: int = k) -> torch.Generator:
                name = f"{stimulus} r{repeat}"
                key = item_seed(seed, subject=subject, stimulus=name, sample=k, stage=stage)
                return torch_generator(key)

            drawn = [generator(f"bridge candidate {c}") for c in range(self.decoding.candidates)]
            embedding = self.sample(tokens, drawn).chosen
            codes = self.codes(embedding, [generator("codes")]).cpu().numpy()
            results.append(
                Reconstruction(
                    subject,
                    stimulus,
                    repeat,
                    k,
                    embedding[0].float().cpu().numpy(),
                    codes[0],
                    next(self.meshes(codes)),
                )
            )
        return results

    def _chosen(self, frames: np.ndarray, stimulus: str) -> Float[np.ndarray, "six h w"]:
        """The frames that are read, as pictures."""
        side = self.sizes.encoder.image_size
        frames = np.array(frames, dtype=np.float32)
        if frames.ndim == 2 and frames.shape[1] == side * side:
            frames = frames.reshape(-1, side, side)
        if frames.ndim != 3 or frames.shape[1:] != (side, side) or len(frames) == 0:
            raise UsageError(
                f"trial {stimulus!r} has shape {frames.shape}; these weights read flat maps "
                f"(frames, {side}, {side})"
            )
        if not np.isfinite(frames).all():
            raise DataError(
                f"trial {stimulus!r} holds NaN or infinity; repair or leave out these values"
            )
        return frames[frames_at_test(len(frames), self.sizes.frames)]
