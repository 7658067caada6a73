"""MinD-3D: fMRI to a 3D mesh (Gao et al. 2024, ECCV; reference mind3d.md section 2).

Read from the top: what is fitted, in which order, and how a recording becomes a mesh.

    shapes alone    views -> embedding ; points -> three planes -> codes ; embedding -> codes
    with the brain  betas -> ridge anchor ; frames -> tokens -> bridge diffusion -> embedding ;
                    adapters of the shape decoder on what the anchor predicts
    prediction      frames -> embedding -> codes -> planes -> occupancy -> mesh

The published code has no trainer for the tokenizer and the shape decoder; both are trained here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neurodiff.bridges.prior import sample_embeddings
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.config import dump, load
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.diffusion.paths import cosine
from neurodiff.features.view_embedding import ViewEmbedding
from neurodiff.geometry.bank import ShapeBank, bank_from_stimuli
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.pipelines.brain_input import BrainInput, frames_at_test
from neurodiff.pipelines.mind3d_fitting import (
    Loop,
    as_tensor,
    fit_adapters,
    fit_bridge,
    fit_shape_decoder,
    fit_tokenizer,
    renormed,
)
from neurodiff.pipelines.mind3d_settings import MinD3DRecipe
from neurodiff.pipelines.reconstructions import Reconstruction, Reconstructions
from neurodiff.pipelines.shape_meshes import meshes_of_codes
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    import pandas as pd
    import trimesh

    from neurodiff.core.run import Run
    from neurodiff.pipelines.mind3d_published import PublishedMinD3D

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
        with _seeded(0, "shapes"):
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
        with _seeded(seed, "shapes"):
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
            fit=lambda folder, log: _fit_ridge(
                ridge, brain.betas(recording), target, recording.trials.stimulus
            ),
            state=lambda: _ridge_state(ridge),
            restore=lambda state: _restore_ridge(ridge, state),
        )
        with _seeded(seed, "networks"):
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
        self._reset_adapters(seed)
        if len(adapters):
            stages.do(
                f"adapters{name}",
                settings={
                    "size": self.recipe.decoder.size,
                    "adapters": self.recipe.decoder.adapters,
                },
                inputs=[*key, anchored, _weights_hash(self.shapes)],
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

    def _reset_adapters(self, seed: int) -> None:
        """To the identity: another recording may have been fitted before."""
        with _seeded(seed, "adapters"):
            for block in self.shapes.transformer_model.blocks:
                if block.adapter is not None:
                    nn.init.normal_(block.adapter.x_fc1.weight, std=0.02)
                    for values in (block.adapter.x_fc1.bias, *block.adapter.x_fc2.parameters()):
                        nn.init.zeros_(values)

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
                generators = _generators(recording.trials, seed, k, "codes")
            codes = self.codes_from_embedding(embedding, generators=generators)
            for i, mesh in enumerate(
                progress.over(self.meshes(codes), f"decoding, sample {k}", len(codes))
            ):
                row = recording.trials.iloc[i]
                results.append(
                    Reconstruction(
                        str(row.subject),
                        str(row.stimulus),
                        int(row["repeat"]),
                        k,
                        embedding[i],
                        codes[i],
                        mesh,
                    )
                )
        order = sorted(range(len(results)), key=lambda j: (j % recording.n_trials, j))
        return Reconstructions(results[j] for j in order)

    @torch.no_grad()
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
        settings = self.recipe.bridge
        brain, ridge = self._fitted("brain"), self._fitted("ridge")
        recording = brain.accept(recording)
        anchors = ridge.predict(brain.betas(recording)).astype(np.float32)
        if bridge == "ridge":
            return renormed(torch.from_numpy(anchors)).numpy()
        networks = self._fitted("networks")
        parts = []
        for start in range(0, recording.n_trials, batch):
            trials = recording.trials.iloc[start : start + batch]
            frames = brain.standardised(recording.data[start : start + len(trials)])
            frames = frames[:, frames_at_test(frames.shape[1], settings.frames)]
            maps = torch.from_numpy(frames.reshape(-1, frames.shape[-1]))
            generators = _generators(trials, seed, sample, "bridge")
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
        return renormed(torch.cat(parts)).numpy()

    @torch.no_grad()
    def draw_embedding(self, names: Sequence[str], *, seed: int = 0) -> Float[np.ndarray, "n d"]:
        """One draw of the bridge without any brain data for each name: the no-brain baseline."""
        settings, networks = self.recipe.bridge, self._fitted("networks")
        n_tokens = settings.frames * settings.aggregated_tokens
        generators = [
            torch_generator(item_seed(seed, subject="no brain", stimulus=name, stage="bridge"))
            for name in names
        ]
        drawn = sample_embeddings(
            networks.prior_network,
            torch.zeros(len(names), n_tokens, settings.network.dim),
            generators,
            path=self.path,
            anchor=torch.zeros(len(names), settings.network.dim)
            if settings.anchor == "ridge"
            else None,
            candidates=1,
            steps=settings.steps,
            eta=settings.eta,
            unconditional=True,
        )
        return renormed(drawn).numpy()

    @torch.no_grad()
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
        decoder, settings = self.shapes.transformer_model, self.recipe.decoder
        parts = []
        for start in range(0, len(embedding), 128):
            part = slice(start, start + 128)
            how: dict = {"greedy": True}
            if generators is not None and settings.temperature > 0:
                how = {
                    "temperature": settings.temperature,
                    "top_k": settings.top_k,
                    "generators": generators[part],
                }
            condition = torch.from_numpy(embedding[part])
            parts.append(decoder.generate(condition, use_adapters=use_adapters, **how))
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def encode(self, bank: ShapeBank, *, batch: int = 64) -> Int[np.ndarray, "n codes"]:
        """Codes of known shapes."""
        self._fitted("embedding")
        model, n = self.shapes.vqvae_model, self.recipe.tokenizer.n_points
        was_training = model.training
        model.eval()
        parts = [
            model.quantise(model.encode_planes(as_tensor(bank.surface[k : k + batch, :n])))[0]
            for k in range(0, len(bank), batch)
        ]
        model.train(was_training)
        return torch.cat(parts).numpy()

    def meshes(self, codes: Int[np.ndarray, "n codes"]) -> Iterator[trimesh.Trimesh]:
        """The mesh of each row of codes: occupancy is asked only near the surface."""
        self._fitted("embedding")
        settings = self.recipe.mesh
        return meshes_of_codes(
            self.shapes.vqvae_model,
            codes,
            resolution=settings.resolution,
            threshold=settings.threshold,
        )

    # ------------------------------------------------------------------ helpers

    def _fitted(self, name: str):
        value = getattr(self, name)
        if value is None:
            raise UsageError("this MinD3D is not fitted yet: call fit, or load a fitted one")
        return value

    def _training_anchor(self) -> Float[Tensor, "trials d"]:
        return torch.from_numpy(self._fitted("ridge").loo_predictions_.astype(np.float32))


#: settings of the bridge that its training does not read
_ONLY_AT_SAMPLING = {"candidates", "steps", "eta", "choose"}


def _weights_hash(shapes: ShapeGenerator) -> str:
    """Of tokenizer and shape decoder, without the adapters."""
    digest = hashlib.sha256()
    for name, tensor in shapes.state_dict().items():
        if ".adapter." not in name:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def _generators(trials: pd.DataFrame, seed: int, sample: int, stage: str) -> list[torch.Generator]:
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


@contextlib.contextmanager
def _seeded(seed: int, what: str) -> Iterator[None]:
    """Constructors of layers draw from torch's global state; fix it and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(item_seed(seed, subject="", stimulus=what, stage="initial weights"))
        yield


def _fit_ridge(ridge: MultiTargetRidge, betas: np.ndarray, target: np.ndarray, stimuli) -> dict:
    ridge.fit(betas, target, groups=stimuli)  # repeats of a stimulus are left out together
    return {
        "leave-one-out cosine": _cosine(ridge.loo_predictions_, target),
        "alpha": ridge.alpha_[0],
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows."""
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


_RIDGE = ("coef_", "intercept_", "alpha_", "loo_predictions_")


def _ridge_state(ridge: MultiTargetRidge) -> dict[str, Tensor]:
    return {name: torch.tensor(getattr(ridge, name), dtype=torch.float64) for name in _RIDGE}


def _restore_ridge(ridge: MultiTargetRidge, state: dict[str, Tensor]) -> None:
    for name in _RIDGE:
        setattr(ridge, name, state[name].numpy().astype(np.float64))
    ridge.n_features_in_ = ridge.coef_.shape[-1]
