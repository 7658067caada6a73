"""Fitted pipelines as attribution asks them: `MinD3D`, `BrainDiffuser`, any regression.

A stage that is a sum over features of the brain plus a constant has a :class:`LinearStage`;
methods then compute the part of each region once and add parts up.

    MinD3D          "anchor" (ridge on the mean over frames; linear) and "bridge" (network; not)
    BrainDiffuser   "vdvae", "text", "vision": linear, unless re-standardised by the test set
    RidgeDecoder    "features": linear where the estimator has coef_
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.seeds import numpy_generator
from neurodiff.core.stimuli import Stimuli
from neurodiff.geometry.bank import ShapeBank, grey_views
from neurodiff.pipelines.brain_input import as_frames, in_space

if TYPE_CHECKING:
    from neurodiff.analysis.attribution_bridge import PreparedMinD3D

_MOST_WEIGHTS = 2 * 2**30  # bytes of the weights of one stage that are made


@dataclass(frozen=True, eq=False)
class LinearStage:
    """A stage that is ``constant + part(read(data))``.

    ``read``: (n, *frames, features) -> (n, features), float64, linear in the data up to a constant;
    ``part``: (n, features) -> (n, d), linear; ``weights`` (features, d) where they are small enough
    to be held, so that a region's part is made of its own columns alone.
    """

    read: Callable[[np.ndarray], np.ndarray]
    part: Callable[[np.ndarray], np.ndarray]
    constant: np.ndarray
    weights: np.ndarray | None = None

    def of(self, rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The part of the features in ``mask``; (n, d)."""
        if self.weights is not None:
            return rows[:, mask] @ self.weights[mask]
        return self.part(np.where(mask, rows, 0.0))


class RidgeDecoder:
    """A fitted regression from responses (n, features) to features of stimuli (n, d).

    Parameters
    ----------
    model : has ``predict``; with ``coef_`` (d, features) and ``intercept_`` it is taken as linear.
    features : name of a stimulus -> (d,), or a table with these names as index.
    name, stage : for the result.

    Raises
    ------
    UsageError : a model without ``predict``.
    DataError : in `truth`, a stimulus without features.
    """

    def __init__(
        self,
        model: Any,
        features: Mapping[str, np.ndarray] | pd.DataFrame,
        *,
        name: str = "ridge",
        stage: str = "features",
    ) -> None:
        if not hasattr(model, "predict"):
            raise UsageError(
                f"{type(model).__name__} has no predict; give a fitted pipeline or regression"
            )
        if isinstance(features, pd.DataFrame):
            features = {k: row.to_numpy(float) for k, row in features.iterrows()}
        if not isinstance(features, Mapping):
            raise UsageError(
                f"the stimuli are {type(features).__name__}; a regression does not know how their "
                "features are made: give name of a stimulus -> (d,), or a table with the names as "
                "index"
            )
        self.model, self.name, self.stages = model, name, (stage,)
        self.features = {str(k): np.ravel(v) for k, v in features.items()}

    def decode(self, data: np.ndarray, trials: pd.DataFrame) -> dict[str, np.ndarray]:
        width = getattr(self.model, "n_features_in_", data.shape[-1])
        if data.shape[-1] != width:
            raise DataError(
                f"the recording has {data.shape[-1]} features and the regression was fitted on "
                f"{width}; give the same features, in the same order"
            )
        found = np.asarray(self.model.predict(flat(data)))
        if found.dtype.kind not in "fiu":
            raise UsageError(
                f"{type(self.model).__name__} predicts labels; attribution scores features: give a "
                "regression, or a decoder that gives probabilities"
            )
        return {self.stages[0]: found.reshape(len(data), -1)}

    def truth(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        missing = sorted({str(i) for i in ids} - set(self.features))
        if missing:
            raise DataError(
                f"{len(missing)} stimuli have no features, first {missing[0]!r}; give those of "
                "every test stimulus"
            )
        rows = [self.features[str(i)] for i in ids]
        widths = sorted({len(row) for row in rows})
        if len(widths) > 1:
            raise DataError(
                f"stimuli have {widths[0]} and {widths[-1]} features; give as many for each"
            )
        return {self.stages[0]: np.stack(rows)}

    def linear(self, stage: str) -> LinearStage | None:
        if all(hasattr(self.model, n) for n in ("factor_", "statistics_", "patterns")):
            return _factored_stage(self.model, flat, self.model.predict)
        coef = getattr(self.model, "coef_", None)
        if coef is None or getattr(self.model, "intercept_", None) is None:
            return None
        weights = np.atleast_2d(np.asarray(coef, np.float64)).T
        constant = np.broadcast_to(np.asarray(self.model.intercept_, float), weights.shape[1:])
        if not self._is_affine(weights):
            return None
        return LinearStage(flat, lambda rows: rows @ weights, constant, weights)

    def _is_affine(self, weights: np.ndarray) -> bool:
        """Whether predict is its coefficients' product: not so for a link or a class."""
        rows = numpy_generator(0).standard_normal((4, len(weights)))
        rows[0] = 0.0
        found = np.asarray(self.model.predict(rows))
        if found.dtype.kind not in "fiu" or found.size != 4 * weights.shape[1]:
            return False
        added = found.reshape(4, -1) - found.reshape(4, -1)[:1]
        asked = rows @ weights
        return bool(np.allclose(added, asked, rtol=1e-3, atol=1e-4 * float(np.abs(asked).max())))


class BrainDiffuserDecoder:
    """The three heads of a fitted `BrainDiffuser`, before any picture is made."""

    name = "brain-diffuser"

    def __init__(self, pipe: Any, stimuli: Stimuli, *, heads: Sequence[str] | None = None) -> None:
        if pipe.input is None:
            raise UsageError("this pipeline is not fitted; call fit, or load one that was saved")
        self.pipe, self.stimuli = pipe, stimuli
        self.stages = tuple(heads or pipe.heads)
        self._true: dict[str, dict[str, np.ndarray]] = {}

    def decode(self, data: np.ndarray, trials: pd.DataFrame) -> dict[str, np.ndarray]:
        rows = self._read(data)
        return {s: self.pipe.heads[s].predict(rows).reshape(len(rows), -1) for s in self.stages}

    def truth(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        unique = list(dict.fromkeys(map(str, ids)))
        found = self.pipe.true_features(self.stimuli, unique)
        where = [unique.index(str(i)) for i in ids]
        return {s: getattr(found, s).reshape(len(unique), -1)[where] for s in self.stages}

    compared = "PixCorr"

    def draw(self, data: np.ndarray, trials: pd.DataFrame) -> list[Any]:
        """Pictures of single trials, with each trial's own noise."""
        features = self.pipe.decode_features(self._read(data))
        keys = list(zip(trials["subject"], trials["stimulus"], trials["repeat"], strict=True))
        return [one.image for one in self.pipe.generate(features, keys)]

    def compare(self, drawn: list[Any], ids: Sequence[str]) -> np.ndarray:
        from neurodiff.analysis.attribution_through import pixcorr_scores

        return pixcorr_scores(drawn, [self.stimuli[name].image() for name in ids])

    def linear(self, stage: str) -> LinearStage | None:
        bridge = self.pipe.heads[stage]
        return _factored_stage(bridge, self._read, bridge.predict)

    def _read(self, data: np.ndarray) -> np.ndarray:
        return (flat(data) - self.pipe.input.mean) / self.pipe.input.std


class MinD3DDecoder:
    """The anchor and the bridge of a fitted `MinD3D`, before any mesh is made.

    Parameters
    ----------
    embeddings : name of a stimulus -> its embedding (d,).
    stimuli : with their meshes, to compare drawn ones with; None draws none.
    like : a recording in the model's vertices; its space is that of the data that come.
    seed : of the bridge's draws.
    """

    name = "mind3d"

    def __init__(
        self,
        pipe: Any,
        embeddings: Mapping[str, np.ndarray],
        like: Recording,
        *,
        stages: Sequence[str] = ("anchor", "bridge"),
        seed: int = 0,
        stimuli: Stimuli | None = None,
    ) -> None:
        if pipe.brain is None or pipe.ridge is None:
            raise UsageError("this pipeline is not fitted; call fit, or load one that was saved")
        if strange := set(stages) - {"anchor", "bridge"}:
            raise UsageError(f"MinD3D has no stage {sorted(strange)[0]!r}; give anchor or bridge")
        self.pipe, self.embeddings, self.like, self.seed = pipe, embeddings, like, seed
        self.stages, self.stimuli = tuple(stages), stimuli

    compared = "minus Chamfer distance"

    @classmethod
    def of(cls, pipe: Any, stimuli: Stimuli, like: Recording, **options: Any) -> MinD3DDecoder:
        """With the embeddings of the stimuli's views, as the pipeline was fitted to."""
        ids = list(dict.fromkeys(like.trials["stimulus"].astype(str)))
        views = np.stack([grey_views(stimuli[name].mesh()) for name in ids])
        rows = np.asarray(pipe.embedding(views))
        table = dict(zip(ids, rows, strict=True))
        return cls(pipe, table, like, **{"stimuli": stimuli, **options})

    @classmethod
    def of_bank(cls, pipe: Any, bank: ShapeBank, like: Recording, **options: Any) -> MinD3DDecoder:
        """With the embeddings of a bank of shapes that is there already."""
        ids = list(dict.fromkeys(like.trials["stimulus"].astype(str)))
        rows = np.asarray(pipe.embedding(bank.views))[bank.rows(ids)]
        return cls(pipe, dict(zip(ids, rows, strict=True)), like, **options)

    @property
    def latent(self) -> bool:
        """Whether the responses are those of the shared space of a model of several subjects."""
        return self.like.space.fingerprint() == self.pipe.brain.space_fingerprint

    def prepared(
        self, data: np.ndarray, trials: pd.DataFrame, stages: Sequence[str]
    ) -> PreparedMinD3D | None:
        """What is the same in all conditions of these trials; None where it is too large."""
        from neurodiff.analysis.attribution_bridge import PreparedMinD3D

        if self.pipe.networks is None or not PreparedMinD3D.fits(self.pipe, len(data)):
            return None
        return PreparedMinD3D(
            self.pipe, data, trials, seed=self.seed, stages=stages, latent=self.latent
        )

    def _recording(self, data: np.ndarray, trials: pd.DataFrame) -> Recording:
        return Recording(
            np.ascontiguousarray(data, np.float32), trials.reset_index(drop=True), {},
            self.like.space, self.like.unit, self.like.simulated,
        )  # fmt: skip

    def draw(self, data: np.ndarray, trials: pd.DataFrame) -> list[Any]:
        """Meshes of single trials, with each trial's own noise."""
        return [
            one.mesh for one in self.pipe.predict(self._recording(data, trials), seed=self.seed)
        ]

    def compare(self, drawn: list[Any], ids: Sequence[str]) -> np.ndarray:
        from neurodiff.analysis.attribution_through import chamfer_scores

        if self.stimuli is None:
            raise UsageError("meshes are compared with the shapes that were shown; give Stimuli")
        return chamfer_scores(drawn, [self.stimuli[name].mesh() for name in ids])

    def decode(self, data: np.ndarray, trials: pd.DataFrame) -> dict[str, np.ndarray]:
        recording = self._recording(data, trials)
        found = {}
        if "anchor" in self.stages:
            read = self.pipe.brain.accept(recording)
            found["anchor"] = self.pipe.ridge.predict(self.pipe.brain.betas(read))
        if "bridge" in self.stages:
            found["bridge"] = self.pipe.predict_embedding(recording, seed=self.seed)
        return found

    def truth(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        missing = sorted({str(i) for i in ids} - set(self.embeddings))
        if missing:
            raise DataError(
                f"{len(missing)} stimuli have no embedding, first {missing[0]!r}; give their views"
            )
        rows = np.stack([np.asarray(self.embeddings[str(i)], np.float64) for i in ids])
        return dict.fromkeys(self.stages, rows)

    def linear(self, stage: str) -> LinearStage | None:
        """The anchor; not of several subjects, each of whom is read by a layer of their own."""
        if stage != "anchor":
            return None
        ridge, brain = self.pipe.ridge, self.pipe.brain
        weights, constant = np.atleast_2d(ridge.coef_).T, ridge.intercept_
        mean, std = brain.mean, brain.std
        if brain.layers is not None and not self.latent:
            people = list(dict.fromkeys(self.like.trials["subject"].astype(str)))
            if len(people) != 1:
                return None
            layer = brain.layers.layers[people[0]]
            to_ridge = (np.float64(1) / brain.std)[:, None] * weights
            constant = constant + (np.asarray(layer.bias, np.float64) - brain.mean) @ to_ridge
            weights = np.asarray(layer.weights, np.float64).T @ to_ridge
            mean, std = layer.mean, layer.std

        def read(data: np.ndarray) -> np.ndarray:
            return np.asarray(((as_frames(data) - mean) / std).mean(axis=1), np.float64)

        return LinearStage(read, lambda rows: rows @ weights, constant, weights)


def _factored_stage(
    bridge: Any,
    read: Callable[[np.ndarray], np.ndarray],
    predict: Callable[[np.ndarray], np.ndarray],
) -> LinearStage | None:
    """Of a `FactoredRidge`; None where it re-standardises by the test trials."""
    if bridge.standardise == "test":
        return None
    known = bridge.statistics_
    targets, features = len(known.mean), bridge.n_features_in_
    scale = np.ones(targets)
    if bridge.standardise == "loo":
        spread = np.where(known.std == 0, 1.0, known.loo_std)
        scale = np.where(known.std == 0, 1.0, known.std / spread)

    def part(rows: np.ndarray) -> np.ndarray:
        return bridge.patterns(rows)[0].reshape(len(rows), -1) * scale

    weights = None
    if targets * features * 8 <= _MOST_WEIGHTS:
        weights = bridge.weights(0, targets)[0].T * scale
    constant = predict(np.zeros((1, features))).reshape(-1)
    return LinearStage(read, part, constant, weights)


def decoder_for(
    pipe: Any, recording: Recording, stimuli: Any, **options: Any
) -> tuple[Any, Recording]:
    """The decoder of a pipeline, and the recording in the features that it reads.

    Parameters
    ----------
    pipe : `MinD3D`, `BrainDiffuser`, a decoder already, or a fitted regression.
    stimuli : `Stimuli`, or for MinD3D and a regression a mapping of names to features.

    Raises
    ------
    UsageError : nothing of these kinds, or not fitted.
    """
    if all(hasattr(pipe, name) for name in ("decode", "truth", "stages")):
        return pipe, recording
    kind = type(pipe).__name__
    if kind == "BrainDiffuser":
        return BrainDiffuserDecoder(pipe, stimuli, **options), recording
    if kind == "MinD3D":
        if pipe.brain is None:
            raise UsageError("this pipeline is not fitted; call fit, or load one that was saved")
        recording = _in_place(pipe.brain, recording)
        if isinstance(stimuli, ShapeBank):
            return MinD3DDecoder.of_bank(pipe, stimuli, recording, **options), recording
        if isinstance(stimuli, Mapping):
            options = {"stimuli": getattr(stimuli, "shapes", None), **options}
            return MinD3DDecoder(pipe, stimuli, recording, **options), recording
        return MinD3DDecoder.of(pipe, stimuli, recording, **options), recording
    if hasattr(pipe, "predict"):
        return RidgeDecoder(pipe, stimuli, **options), recording
    raise UsageError(
        f"{kind} is no pipeline that attribution knows; give a fitted MinD3D, BrainDiffuser, "
        "regression, or an object with decode, truth and stages"
    )


def _in_place(brain: Any, recording: Recording) -> Recording:
    """The recording in the features that a MinD-3D reads, before any layer: regions have places."""
    if brain.layers is None or recording.space.fingerprint() == brain.space_fingerprint:
        return brain.accept(recording)
    brain.layers.to_latent(recording)  # refuses what the model cannot read; nothing is read yet
    layer = brain.layers.layers[str(recording.trials["subject"].iloc[0])]
    return in_space(recording, layer.space_fingerprint, layer.weights.shape[1], layer.space_name)


def linear_stage(decoder: Any, stage: str) -> LinearStage | None:
    """The linear form of a stage, where the decoder tells one."""
    tell = getattr(decoder, "linear", None)
    return None if tell is None else tell(stage)


def flat(data: np.ndarray) -> np.ndarray:
    """(n, features), float64; UsageError for data with frames."""
    if data.ndim != 2:
        raise UsageError(
            f"the data have shape {data.shape}; this decoder reads one number a trial and feature: "
            "average or model the frames first"
        )
    return np.asarray(data, np.float64)
