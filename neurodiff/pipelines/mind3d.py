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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.bridges.prior import denoising_loss, sample_embeddings
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.config import dump, load
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import item_seed, torch_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.core.training import train
from neurodiff.diffusion.paths import cosine
from neurodiff.features.view_embedding import ViewEmbedding
from neurodiff.geometry.bank import ShapeBank, bank_from_stimuli
from neurodiff.geometry.mise import extract, grid_to_mesh
from neurodiff.models.codebook import code_usage, reseed_dead_codes
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.pipelines.brain_input import BrainInput, frames_at_test
from neurodiff.pipelines.mind3d_settings import MinD3DRecipe
from neurodiff.pipelines.stages import Stages

if TYPE_CHECKING:
    import pandas as pd
    import trimesh

    from neurodiff.core.run import Run

BridgeName = Literal["network", "ridge"]
BOX = 1.1  # occupancy is evaluated in a cube a little larger than the objects


@dataclass(frozen=True)
class Reconstruction:
    """One decoded trial. ``mesh`` may be empty: the decoder can say "nothing is here"."""

    subject: str
    stimulus: str
    repeat: int
    sample: int
    embedding: Float[np.ndarray, " d"]
    codes: Int[np.ndarray, " codes"]
    mesh: trimesh.Trimesh


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
        first = stages.do(
            "tokenizer",
            settings=recipe.tokenizer,
            inputs=[key, str(seed)],
            version=1,
            fit=lambda folder, log: self._fit_tokenizer(bank, seed, folder, log, progress),
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
            fit=lambda folder, log: self._fit_decoder(bank, seed, folder, log, progress),
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
            fit=lambda folder, log: _fit_ridge(ridge, brain.betas(recording), target),
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
            fit=lambda folder, log: self._fit_bridge(
                recording, target, seed, folder, log, progress
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
                fit=lambda folder, log: self._fit_adapters(
                    bank, shown, adapters, seed, folder, log, progress
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

    def _fit_tokenizer(self, bank, seed, folder, log, progress) -> dict:
        """Reconstruct occupancy at labelled points from surface points."""
        settings = self.recipe.tokenizer
        module = _TokenizerTraining(
            self.shapes.vqvae_model, int(settings.continuous * settings.training.steps)
        )

        def loss(model, rows, generator):
            points = _pick(bank.surface, rows, settings.n_points, generator)
            chosen = _choices(len(rows), bank.queries.shape[1], settings.n_queries, generator)
            queries = _tensor(np.take_along_axis(bank.queries[rows], chosen[..., None], axis=1))
            occupied = _tensor(np.take_along_axis(bank.occupied[rows], chosen, axis=1))
            return model(points, queries, occupied)

        def upkeep(step):
            module.steps += 1
            after = int(module.steps) - module.continuous  # quantised steps done so far
            late = step > settings.reseed_until * settings.training.steps
            if after >= 0 and after % settings.reseed_every == 0 and not late:
                key = item_seed(seed, subject="", stimulus=f"step {step}", stage="reseed")
                module.reseed(torch_generator(key))

        train(
            module,
            loss,
            n_items=len(bank),
            settings=settings.training,
            seed=seed,
            stage="tokenizer",
            folder=folder,
            log=log,
            progress=progress,
            after_step=upkeep,
        )
        return {"codes in use": len(np.unique(self.encode(bank))), "objects": len(bank)}

    def _fit_decoder(self, bank, seed, folder, log, progress) -> dict:
        """Codes from the embedding; noise on it teaches the decoder what a blurred one means."""
        settings, model = self.recipe.decoder, self.shapes.transformer_model
        codes = torch.from_numpy(self.encode(bank))
        target = torch.from_numpy(self._fitted("embedding")(bank.views))

        def loss(model, rows, generator):
            clean = target[rows]
            spread = settings.condition_noise * torch.rand(len(rows), 1, generator=generator)
            noisy = clean + spread * torch.randn(clean.shape, generator=generator)
            logits = model(codes[rows], _renormed(noisy), use_adapters=False)
            return {"loss": F.cross_entropy(logits.flatten(0, 1), codes[rows].flatten())}

        train(
            model,
            loss,
            n_items=len(bank),
            settings=settings.training,
            seed=seed,
            stage="shape-decoder",
            folder=folder,
            log=log,
            progress=progress,
        )
        return self._decoder_gate(codes[:256], target[:256], use_adapters=False)

    def _fit_bridge(self, recording, target, seed, folder, log, progress) -> dict:
        """Embedding from frames, by diffusion, on top of the leave-one-out anchor."""
        settings, brain = self.recipe.bridge, self._fitted("brain")
        networks = self._fitted("networks")
        goal = torch.from_numpy(target)
        anchors = self._training_anchor()

        def loss(model, rows, generator):
            frames = brain.standardised(recording.data[np.sort(rows)])
            frames = frames[np.argsort(np.argsort(rows))]
            order = torch.rand(frames.shape[:2], generator=generator).argsort(dim=1)
            n = settings.frames
            chosen = (
                order[:, :n].sort(dim=1).values.numpy()
                if frames.shape[1] > n
                else np.tile(frames_at_test(frames.shape[1], n), (len(rows), 1))
            )
            maps = np.take_along_axis(frames, chosen[..., None], axis=1)
            maps = torch.from_numpy(maps.reshape(-1, maps.shape[-1]))
            maps += settings.input_noise * torch.randn(maps.shape, generator=generator)
            tokens = model.tokens(brain.patches(maps), n)
            anchor = None if anchors is None else anchors[rows]
            return {
                "loss": denoising_loss(
                    model.prior_network,
                    goal[rows],
                    tokens,
                    path=self.path,
                    generator=generator,
                    anchor=anchor,
                    dropout=settings.condition_dropout,
                )
            }

        train(
            networks,
            loss,
            n_items=recording.n_trials,
            settings=settings.training,
            seed=seed,
            stage="bridge",
            folder=folder,
            log=log,
            progress=progress,
        )
        return {"trials": recording.n_trials}

    def _fit_adapters(self, bank, shown, adapters, seed, folder, log, progress) -> dict:
        """Published stage 2: only the adapters learn, fed with predictions from the brain.

        The predictions are the anchor's leave-one-out ones, so their errors are those of trials
        that the bridge has not seen.
        """
        model = self.shapes.transformer_model
        codes = torch.from_numpy(self.encode(bank))[shown]
        anchors = self._training_anchor(always=True)

        def loss(_, rows, generator):
            logits = model(codes[rows], _renormed(anchors[rows]))
            return {"loss": F.cross_entropy(logits.flatten(0, 1), codes[rows].flatten())}

        train(
            adapters,
            loss,
            n_items=len(codes),
            settings=self.recipe.decoder.adapters,
            seed=seed,
            stage="adapters",
            folder=folder,
            log=log,
            progress=progress,
        )
        return self._decoder_gate(codes[:256], anchors[:256], use_adapters=True)

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        recording: Recording,
        *,
        samples: int = 1,
        seed: int = 0,
        bridge: BridgeName = "network",
        progress: Progress = SILENT,
    ) -> list[Reconstruction]:
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
        return [results[j] for j in order]

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
            return _renormed(torch.from_numpy(anchors)).numpy()
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
        return _renormed(torch.cat(parts)).numpy()

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
        return _renormed(drawn).numpy()

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
            model.quantise(model.encode_planes(_tensor(bank.surface[k : k + batch, :n])))[0]
            for k in range(0, len(bank), batch)
        ]
        model.train(was_training)
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def meshes(self, codes: Int[np.ndarray, "n codes"]) -> Iterator[trimesh.Trimesh]:
        """The mesh of each row of codes: occupancy is asked only near the surface."""
        self._fitted("embedding")
        settings, model = self.recipe.mesh, self.shapes.vqvae_model
        level = float(np.log(settings.threshold / (1 - settings.threshold)))
        for part in torch.from_numpy(codes).split(16):
            for planes in model.planes_from_ids(part):

                def field(points: np.ndarray, planes: Tensor = planes) -> np.ndarray:
                    return model.occupancy(planes[None], _tensor(points)[None])[0].numpy()

                values, _ = extract(
                    field,
                    threshold=level,
                    resolution0=settings.resolution // 4,
                    upsampling_steps=2,
                    box=BOX,
                )
                yield grid_to_mesh(values, threshold=level, box=BOX)

    # ------------------------------------------------------------------ helpers

    def _fitted(self, name: str):
        value = getattr(self, name)
        if value is None:
            raise UsageError("this MinD3D is not fitted yet: call fit, or load a fitted one")
        return value

    def _training_anchor(self, *, always: bool = False) -> Float[Tensor, "trials d"] | None:
        if self.recipe.bridge.anchor != "ridge" and not always:
            return None
        return torch.from_numpy(self._fitted("ridge").loo_predictions_.astype(np.float32))

    @torch.no_grad()
    def _decoder_gate(self, codes: Tensor, embedding: Tensor, *, use_adapters: bool) -> dict:
        model = self.shapes.transformer_model
        logits = model(codes, _renormed(embedding), use_adapters=use_adapters)
        return {
            "cross-entropy (training objects)": float(
                F.cross_entropy(logits.flatten(0, 1), codes.flatten())
            ),
            "code accuracy (training objects)": float((logits.argmax(-1) == codes).float().mean()),
        }


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


class _TokenizerTraining(nn.Module):
    """The tokenizer with what its training remembers (so that a checkpoint holds it).

    The first ``continuous`` steps leave the codes unquantised and the codebook is then set to
    encoder outputs: from the published initial codebook (all codes near 0) a training this short
    collapses to a single code.
    """

    def __init__(self, model: nn.Module, continuous: int):
        super().__init__()
        self.model, self.continuous = model, continuous
        self.register_buffer("usage", torch.zeros(model.size.vocab))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._planes: Tensor | None = None

    def forward(self, points, queries, occupied) -> dict[str, Tensor]:
        self._planes = self.model.encode_planes(points)
        if self.steps < self.continuous:
            codes, vq = self.model.encode(self._planes), torch.zeros(())
        else:
            ids, codes, vq = self.model.quantise(self._planes)
            self.usage.mul_(0.9).add_(code_usage(ids, len(self.usage)))
        logits = self.model.occupancy(self.model.planes_from_codes(codes), queries)
        occupancy = F.binary_cross_entropy_with_logits(logits, occupied)
        return {"loss": occupancy + vq, "occupancy": occupancy, "vq": vq}

    @torch.no_grad()
    def reseed(self, generator: torch.Generator) -> None:
        """Codes that nothing chose lately move onto vectors of the last batch."""
        vectors = self.model.encode(self._planes.detach()).flatten(0, 1)
        codebook = self.model.quantizer.quantizer.embedding.weight
        reseed_dead_codes(codebook, self.usage, vectors, generator)


def _pick(points: np.ndarray, rows: np.ndarray, n: int, generator: torch.Generator) -> Tensor:
    chosen = _choices(len(rows), points.shape[1], n, generator)
    return _tensor(np.take_along_axis(points[rows], chosen[..., None], axis=1))


def _choices(rows: int, available: int, n: int, generator: torch.Generator) -> np.ndarray:
    """``n`` different positions a row."""
    return torch.rand(rows, available, generator=generator).topk(n, dim=1).indices.numpy()


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _renormed(embedding: Tensor) -> Tensor:
    """To norm sqrt(d): a prediction's length says how sure it is, not what it is."""
    return F.normalize(embedding, dim=-1) * embedding.shape[-1] ** 0.5


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


def _fit_ridge(ridge: MultiTargetRidge, betas: np.ndarray, target: np.ndarray) -> dict:
    ridge.fit(betas, target)
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
