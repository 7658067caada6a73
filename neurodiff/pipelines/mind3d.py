"""MinD-3D: fMRI to a 3D mesh (Gao et al. 2024, ECCV; reference mind3d.md section 2).

Read from the top: what is fitted, in which order, and how a recording becomes a mesh.

    shapes alone    views -> embedding ; points -> three planes -> codes ; embedding -> codes
    with the brain  betas -> ridge anchor ; frames -> tokens -> bridge diffusion -> embedding ;
                    adapters of the shape decoder on what the anchor predicts
    prediction      frames -> embedding -> codes -> planes -> occupancy -> mesh

The published code has no trainer for the tokenizer and the shape decoder; both are trained here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.config import dump, load
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.diffusion.paths import cosine
from neurodiff.features.view_embedding import ViewEmbedding
from neurodiff.geometry.bank import ShapeBank, bank_from_stimuli
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.pipelines.brain_input import BrainInput
from neurodiff.pipelines.mind3d_bridge import FittedBridge, trial_generators
from neurodiff.pipelines.mind3d_codes import codes_of_embedding, codes_of_shapes
from neurodiff.pipelines.mind3d_fitting import (
    Loop,
    anchor_state,
    first_weights,
    fit_adapters,
    fit_anchor,
    fit_bridge,
    fit_shape_decoder,
    fit_tokenizer,
    renormed,
    reset_adapters,
    restore_anchor,
    shapes_hash,
)
from neurodiff.pipelines.mind3d_settings import MinD3DRecipe
from neurodiff.pipelines.reconstructions import Reconstruction, Reconstructions
from neurodiff.pipelines.shape_meshes import meshes_of_codes
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    import trimesh

    from neurodiff.core.run import Run
    from neurodiff.pipelines.mind3d_published import PublishedMinD3D

#: settings of the bridge that its training does not read
_ONLY_AT_SAMPLING = {"candidates", "steps", "eta", "choose"}
BridgeName = Literal["network", "ridge"]


class MinD3D:
    """fMRI to mesh: ``from_recipe(...).fit(train, stimuli)``, then ``predict(test)``.

    Attributes (after ``fit``)
    ----------
    shapes : tokenizer and shape decoder (published names)
    networks : encoder, aggregation and bridge (published names)
    embedding : the bridge's target, a function of rendered views
    ridge, brain : the anchor, and how a recording is read
    gates : one row a stage: what it reached
    """

    def __init__(self, recipe: MinD3DRecipe):
        self.recipe = recipe
        with first_weights(0, "shapes"):
            self.shapes = ShapeGenerator(recipe.decoder.size, recipe.tokenizer.size)
        self.path = cosine(recipe.bridge.network.timesteps)
        self.embedding: ViewEmbedding | None = None
        self.brain: BrainInput | None = None
        self.ridge: MultiTargetRidge | None = None
        self.networks: BrainNetworks | None = None
        self.gates: list[dict] = []

    @classmethod
    def from_recipe(cls, recipe: str | Path, overrides: Sequence[str] = ()) -> MinD3D:
        """By name (``pipelines/*.yaml``) or path; ``overrides`` are "key.sub=value"."""
        return cls(load(recipe, MinD3DRecipe, list(overrides)))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MinD3D:
        """A fitted pipeline from a folder of `save_pretrained`, or of a run."""
        from neurodiff.pipelines.mind3d_files import from_pretrained

        return from_pretrained(folder)

    @staticmethod
    def from_published(path: str | Path, **how) -> PublishedMinD3D:
        """The published weights (a released file or a stage-2 checkpoint), ready to ``predict``.

        They are decoded as published (protocol ``mind3d-2024``); the options are those of
        `PublishedMinD3D.load`.
        """
        from neurodiff.pipelines.mind3d_published import PublishedMinD3D

        return PublishedMinD3D.load(path, **how)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write what is fitted: JSON and safetensors, one sub-folder a component."""
        from neurodiff.pipelines.mind3d_files import save_pretrained

        return save_pretrained(self, folder)

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        recording: Recording,
        stimuli: Stimuli,
        *,
        bank: ShapeBank | None = None,
        seed: int = 0,
        run: Run | None = None,
        progress: Progress = SILENT,
    ) -> MinD3D:
        """Fit every stage; with a ``run``, stages that it already holds are loaded.

        Parameters
        ----------
        recording : training trials (trials, frames, features) or (trials, features).
        stimuli : hold a mesh for each stimulus of the recording.
        bank : the shapes as arrays, if they are at hand; else made from the meshes.

        Raises
        ------
        MissingDataError, DataError : a stimulus without mesh, or with a broken one.
        """
        if bank is None:
            shown = list(dict.fromkeys(recording.trials.stimulus))
            bank = bank_from_stimuli(stimuli.select(shown), seed=seed, progress=progress)
        self.fit_shapes(bank, seed=seed, run=run, progress=progress)
        return self.fit_brain(recording, bank, seed=seed, run=run, progress=progress)

    def fit_shapes(
        self,
        bank: ShapeBank,
        *,
        seed: int = 0,
        run: Run | None = None,
        progress: Progress = SILENT,
    ) -> MinD3D:
        """The part that needs no brain: embedding, tokenizer, shape decoder."""
        stages, recipe = Stages(run, progress), self.recipe
        key = bank.fingerprint()
        with first_weights(seed, "shapes"):
            self.shapes = ShapeGenerator(recipe.decoder.size, recipe.tokenizer.size)
        self.embedding = ViewEmbedding.fit(
            bank.views, recipe.embedding.dim, whiten=recipe.embedding.whiten
        )
        tokenizer, decoder = self.shapes.vqvae_model, self.shapes.transformer_model

        def fit_codes(folder, log) -> dict:
            fit_tokenizer(tokenizer, bank, recipe.tokenizer, Loop(seed, folder, log, progress))
            return {"codes in use": len(np.unique(self.encode(bank))), "objects": len(bank)}

        first = stages.do(
            "tokenizer",
            settings=recipe.tokenizer,
            inputs=[key, str(seed)],
            version=1,
            fit=fit_codes,
            state=tokenizer.state_dict,
            restore=tokenizer.load_state_dict,
        )
        stages.do(
            "shape-decoder",
            settings={
                "size": recipe.decoder.size,
                "training": recipe.decoder.training,
                "condition_noise": recipe.decoder.condition_noise,
                "embedding": recipe.embedding,
            },
            inputs=[key, str(seed), first],
            version=1,
            fit=lambda folder, log: fit_shape_decoder(
                decoder,
                torch.from_numpy(self.encode(bank)),
                torch.from_numpy(self._fitted("embedding")(bank.views)),
                recipe.decoder,
                Loop(seed, folder, log, progress),
            ),
            state=decoder.state_dict,
            restore=decoder.load_state_dict,
        )
        self.shapes.eval()
        self.gates = stages.gates
        return self

    def fit_brain(
        self,
        recording: Recording,
        bank: ShapeBank,
        *,
        seed: int = 0,
        run: Run | None = None,
        progress: Progress = SILENT,
        name: str = "",
    ) -> MinD3D:
        """Anchor, bridge and adapters for one recording; the shapes must be fitted.

        ``name`` is appended to the stages' names (several recordings in one run).
        """
        embedding = self._fitted("embedding")
        settings = self.recipe.bridge
        stages = Stages(run, progress)
        self.brain = brain = BrainInput.fit(
            recording,
            patch_size=settings.encoder.patch_size,
            image_size=settings.encoder.image_size,
        )
        shown = bank.rows(list(recording.trials.stimulus))
        target = embedding(bank.views)[shown]
        key = [recording.fingerprint(), bank.fingerprint(), str(seed)]

        self.ridge = ridge = MultiTargetRidge()
        anchored = stages.do(
            f"ridge{name}",
            settings={"embedding": self.recipe.embedding},
            inputs=key,
            version=1,
            fit=lambda folder, log: fit_anchor(
                ridge, brain.betas(recording), target, recording.trials.stimulus
            ),
            state=lambda: anchor_state(ridge),
            restore=lambda state: restore_anchor(ridge, state),
        )
        with first_weights(seed, "networks"):
            self.networks = networks = BrainNetworks(
                settings.encoder_for(brain.image_size),
                settings.network,
                patches=torch.from_numpy(brain.kept),
                aggregated_tokens=settings.aggregated_tokens,
            )
        if settings.anchor == "ridge":  # start exactly at the anchor
            nn.init.zeros_(networks.prior_network.causal_transformer.project_out.weight)
        stages.do(
            f"bridge{name}",
            settings={k: v for k, v in dump(settings).items() if k not in _ONLY_AT_SAMPLING},
            inputs=[*key, anchored],
            version=1,
            fit=lambda folder, log: fit_bridge(
                networks,
                recording,
                brain,
                target,
                self._training_anchor() if settings.anchor == "ridge" else None,
                settings,
                Loop(seed, folder, log, progress),
                path=self.path,
            ),
            state=networks.state_dict,
            restore=networks.load_state_dict,
        )
        adapters = nn.ParameterList(self.shapes.transformer_model.adapter_parameters())
        reset_adapters(self.shapes.transformer_model, seed)
        if len(adapters):
            stages.do(
                f"adapters{name}",
                settings={
                    "size": self.recipe.decoder.size,
                    "adapters": self.recipe.decoder.adapters,
                },
                inputs=[*key, anchored, shapes_hash(self.shapes)],
                version=1,
                fit=lambda folder, log: fit_adapters(
                    self.shapes.transformer_model,
                    adapters,
                    torch.from_numpy(self.encode(bank)[shown]),
                    self._training_anchor(),
                    self.recipe.decoder,
                    Loop(seed, folder, log, progress),
                ),
                state=adapters.state_dict,
                restore=adapters.load_state_dict,
            )
        networks.eval()
        self.shapes.eval()
        again = {gate["stage"] for gate in stages.gates}
        self.gates = [gate for gate in self.gates if gate["stage"] not in again] + stages.gates
        return self

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        recording: Recording,
        *,
        samples: int = 1,
        seed: int = 0,
        bridge: BridgeName = "network",
        progress: Progress = SILENT,
    ) -> Reconstructions:
        """Each trial decoded ``samples`` times; order: trial, then sample.

        Raises
        ------
        UsageError : the recording has other vertices than the model, or nothing is fitted.
        """
        results = []
        for k in range(samples):
            embedding = self.predict_embedding(recording, sample=k, seed=seed, bridge=bridge)
            generators = None
            if self.recipe.decoder.temperature > 0:
                generators = trial_generators(recording.trials, seed, k, "codes")
            codes = self.codes_from_embedding(embedding, generators=generators)
            for i, mesh in enumerate(
                progress.over(self.meshes(codes), f"decoding, sample {k}", len(codes))
            ):
                row = recording.trials.iloc[i]
                about = (str(row.subject), str(row.stimulus), int(row["repeat"]), k)
                results.append(Reconstruction(*about, embedding[i], codes[i], mesh))
        order = sorted(range(len(results)), key=lambda j: (j % recording.n_trials, j))
        return Reconstructions(results[j] for j in order)

    def predict_embedding(
        self,
        recording: Recording,
        *,
        sample: int = 0,
        seed: int = 0,
        bridge: BridgeName = "network",
        batch: int = 64,
    ) -> Float[np.ndarray, "trials d"]:
        """Predicted embedding of each trial, scaled to norm sqrt(d) as the targets are."""
        brain, ridge = self._fitted("brain"), self._fitted("ridge")
        recording = brain.accept(recording)
        anchors = ridge.predict(brain.betas(recording)).astype(np.float32)
        if bridge == "ridge":
            return renormed(torch.from_numpy(anchors)).numpy()
        drawn = self._bridge().predict(
            recording, brain, anchors, sample=sample, seed=seed, batch=batch
        )
        return renormed(drawn).numpy()

    def draw_embedding(self, names: Sequence[str], *, seed: int = 0) -> Float[np.ndarray, "n d"]:
        """One draw of the bridge without any brain data for each name: the no-brain baseline."""
        return renormed(self._bridge().draw(names, seed=seed)).numpy()

    def codes_from_embedding(
        self,
        embedding: Float[np.ndarray, "n d"],
        *,
        use_adapters: bool = True,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Int[np.ndarray, "n codes"]:
        """Shape codes: the most likely ones, or drawn at the recipe's temperature.

        ``use_adapters=False`` for embeddings that are not predictions; ``generators``, one an item,
        to draw (a recipe with temperature 0 is greedy all the same).
        """
        self._fitted("embedding")
        return codes_of_embedding(
            self.shapes.transformer_model,
            embedding,
            self.recipe.decoder,
            use_adapters=use_adapters,
            generators=generators,
        )

    def encode(self, bank: ShapeBank, *, batch: int = 64) -> Int[np.ndarray, "n codes"]:
        """Codes of known shapes."""
        self._fitted("embedding")
        n_points = self.recipe.tokenizer.n_points
        return codes_of_shapes(self.shapes.vqvae_model, bank, n_points, batch=batch)

    def meshes(self, codes: Int[np.ndarray, "n codes"]) -> Iterator[trimesh.Trimesh]:
        """The mesh of each row of codes: occupancy is asked only near the surface."""
        self._fitted("embedding")
        model, mesh = self.shapes.vqvae_model, self.recipe.mesh
        return meshes_of_codes(model, codes, resolution=mesh.resolution, threshold=mesh.threshold)

    # ------------------------------------------------------------------ helpers

    def _fitted(self, name: str):
        value = getattr(self, name)
        if value is None:
            raise UsageError("this MinD3D is not fitted yet: call fit, or load a fitted one")
        return value

    def _bridge(self) -> FittedBridge:
        return FittedBridge(self._fitted("networks"), self.recipe.bridge, self.path)

    def _training_anchor(self) -> Float[Tensor, "trials d"]:
        return torch.from_numpy(self._fitted("ridge").loo_predictions_.astype(np.float32))
