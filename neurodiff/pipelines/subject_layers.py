"""One model for several people: a linear input layer each, one shared space behind it.

    person s:  vertices --z-score--> x --layer s--> latent --shared model--> embedding -> mesh

The latent has the dimensions of the target embedding; layer s is the ridge regression from person
s's response estimates to the embedding of what was shown, and reads every frame of a trial.  What
is behind it (anchor, encoder, bridge, shape decoder) is one model, fitted on the latents of all.

For training trials the mean of a trial's latents is the exact leave-one-out prediction: the layer
was fitted on these trials, and what it says of them is too good to learn from.

A new person gets a layer and nothing else.  On N trials it is the group's mean layer, scaled, plus
a ridge regression of what that leaves over, which shrinks to nothing where N trials tell nothing;
or a ridge regression from these N trials alone.  z-scores are by the group's mean and SD, or by
those of the N trials (few trials give a mean that is noise, and other scanners' units give a group
mean that is wrong).  Whichever predicts the trials best when each is left out in turn is taken.
Without trials, and with one, it is the group's layer.  The group's layer exists only where all
people share their vertices, as on fsLR-32k.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.spaces import VectorSpace
from neurodiff.pipelines.brain_input import as_frames, feature_statistics, in_space

ALPHAS = tuple(np.logspace(-3, 6, 19))
"""Penalties: the largest leave next to nothing of a correction that N trials do not support."""


@dataclass(frozen=True, eq=False)
class InputLayer:
    """``latent = (x - mean) / std @ weights.T + bias``.

    Attributes
    ----------
    trials : fitted on so many trials of this person.
    how : "own trials", "group" or "group and own trials".
    """

    weights: Float[np.ndarray, "latents features"]
    bias: Float[np.ndarray, " latents"]
    mean: Float[np.ndarray, " features"]
    std: Float[np.ndarray, " features"]
    space_name: str
    space_fingerprint: str
    trials: int
    how: str = "own trials"

    def __call__(self, data: np.ndarray) -> Float[np.ndarray, "trials frames latents"]:
        """Trials (trials, frames, features), or without frames, to latents."""
        z = (as_frames(data) - self.mean) / self.std
        return (z @ self.weights.T + self.bias).astype(np.float32)

    def betas(self, recording: Recording) -> Float[np.ndarray, "trials features"]:
        """z-scored mean over frames."""
        out = np.zeros((recording.n_trials, recording.n_features), np.float32)
        for start in range(0, recording.n_trials, 64):
            block = as_frames(recording.data[start : start + 64])
            out[start : start + len(block)] = ((block - self.mean) / self.std).mean(axis=1)
        return out


class LatentSpace:
    """The shared space; its identity is that of the layers that define it."""

    def __init__(self, n_features: int, identity: str) -> None:
        self.name = f"shared latent of {n_features}"
        self.n_features = n_features
        self._identity = identity

    def fingerprint(self) -> str:
        return self._identity

    def to_image(self, values: Any) -> np.ndarray:
        return VectorSpace(self.n_features).to_image(values)


@dataclass(frozen=True, eq=False)
class SubjectLayers:
    """Layers by the name that trials have in the column subject.

    ``shared`` names the people of the shared model, in order; the others were adapted to it.
    """

    layers: Mapping[str, InputLayer]
    shared: tuple[str, ...]

    @property
    def n_latents(self) -> int:
        return len(self.layers[self.shared[0]].bias)

    def space(self) -> LatentSpace:
        """The same space whoever is adapted later."""
        digest = hashlib.sha256()
        for name in self.shared:
            layer = self.layers[name]
            for array in (layer.weights, layer.bias, layer.mean, layer.std):
                digest.update(np.ascontiguousarray(array, "<f4").data)
        return LatentSpace(self.n_latents, digest.hexdigest()[:16])

    def to_latent(self, recording: Recording) -> Recording:
        """Every trial through the layer of its subject; stays lazy.

        Raises
        ------
        UsageError : a subject without a layer, or other vertices than its layer's.
        """
        names = list(dict.fromkeys(recording.trials["subject"]))
        for name in names:
            if name not in self.layers:
                raise UsageError(
                    f"the model has no input layer for subject {name!r}; it has "
                    f"{', '.join(self.layers)}: adapt it with neurodiff fit --adapt-to."
                    f"{suggest(name, self.layers)}"
                )
        first = self.layers[names[0]]
        for name in names:
            layer = self.layers[name]
            recording = in_space(
                recording, layer.space_fingerprint, layer.weights.shape[1], layer.space_name
            )
            if layer.space_fingerprint != first.space_fingerprint:
                raise UsageError("subjects of different vertices are read one at a time")
        subjects = recording.trials["subject"].tolist()
        data = _Latents(recording.data, [self.layers[name] for name in subjects])
        return replace(recording, data=data, rois={}, space=self.space())

    def with_layer(self, subject: str, layer: InputLayer) -> SubjectLayers:
        """With one more person; the shared model's own people stay as they are."""
        if subject in self.shared:
            raise UsageError(
                f"subject {subject!r} is one of the shared model's {len(self.shared)}; adapt to "
                "somebody else"
            )
        return replace(self, layers={**self.layers, subject: layer})

    def group_layer(self) -> InputLayer:
        """The mean of the shared model's layers.

        Raises
        ------
        UsageError : its people have different vertices.
        """
        layers = [self.layers[name] for name in self.shared]
        if len({layer.space_fingerprint for layer in layers}) != 1:
            raise UsageError("people with different vertices have no mean layer; give trials")
        deviations = np.stack([layer.std for layer in layers])
        varies = np.isfinite(deviations)  # an SD of infinity marks what is constant in a person
        known = varies.any(axis=0)
        std = np.full(deviations.shape[1], np.inf, np.float32)
        std[known] = np.where(varies, deviations, 0)[:, known].sum(0) / varies[:, known].sum(0)
        return replace(
            layers[0],
            weights=np.stack([layer.weights for layer in layers]).mean(axis=0),
            bias=np.stack([layer.bias for layer in layers]).mean(axis=0),
            mean=np.stack([layer.mean for layer in layers]).mean(axis=0),
            std=std,
            trials=0,
            how="group",
        )


def fit_layer(
    recording: Recording, target: Float[np.ndarray, "trials latents"]
) -> tuple[InputLayer, Float[np.ndarray, "trials latents"]]:
    """A person's layer from all their trials, and its exact leave-one-out predictions.

    Repeats of a stimulus are left out together.
    """
    layer = _blank(recording, target.shape[1])
    ridge = MultiTargetRidge().fit(
        layer.betas(recording), target, groups=recording.trials["stimulus"]
    )
    layer = replace(
        layer,
        weights=ridge.coef_.astype(np.float32),
        bias=np.asarray(ridge.intercept_, np.float32),
        trials=recording.n_trials,
    )
    return layer, ridge.loo_predictions_.astype(np.float32)


def training_latents(
    layer: InputLayer, recording: Recording, left_out: Float[np.ndarray, "trials latents"]
) -> Float[np.ndarray, "trials frames latents"]:
    """Latents of the trials that a layer was fitted on; each trial's mean is the left-out one."""
    parts = []
    for start in range(0, recording.n_trials, 64):
        latents = layer(recording.data[start : start + 64])
        shift = left_out[start : start + len(latents)] - latents.mean(axis=1)
        parts.append(latents + shift[:, None])
    return np.concatenate(parts)


def joined(
    layers: SubjectLayers,
    recordings: list[Recording],
    latents: list[Float[np.ndarray, "trials frames latents"]],
) -> Recording:
    """The training trials of all people as one recording in the shared space."""
    return Recording(
        data=np.concatenate(latents),
        trials=pd.concat([one.trials for one in recordings], ignore_index=True),
        rois={},
        space=layers.space(),
        unit="latent",
        simulated=any(one.simulated for one in recordings),
        name=f"{len(recordings)} subjects",
    )


def adapt_layer(
    layers: SubjectLayers,
    recording: Recording | None,
    target: Float[np.ndarray, "trials latents"] | None = None,
    *,
    group: bool = True,
) -> InputLayer:
    """The layer of a new person from N trials; see the module.

    Parameters
    ----------
    recording, target : the trials and the embedding of what they showed; None for no trials.
    group : use the group's layer; without it, this is the ridge regression of N trials alone.

    Raises
    ------
    UsageError : too few trials without a group.
    DataError : lengths that differ.
    """
    prior = None
    if group:
        try:
            prior = layers.group_layer()
        except UsageError:
            if recording is None or recording.n_trials < 2:
                raise
    if recording is not None and prior is not None:
        fits = recording.space.fingerprint() == prior.space_fingerprint
        prior = prior if fits else None  # other vertices: the group knows nothing of them
    if recording is None or recording.n_trials < 2:
        if prior is None:
            raise UsageError(
                "a layer without the group's needs at least 2 trials; give --trials 2 or more"
            )
        return prior
    if target is None or len(target) != recording.n_trials:
        raise DataError(f"{recording.n_trials} trials, and targets of another number")
    layer = _blank(recording, target.shape[1])
    betas, shown = layer.betas(recording), recording.trials["stimulus"]
    own = MultiTargetRidge(ALPHAS).fit(betas, target, groups=shown)
    best = replace(
        layer,
        weights=own.coef_.astype(np.float32),
        bias=np.asarray(own.intercept_, np.float32),
        trials=recording.n_trials,
    )
    if prior is None:
        return best
    errors = [float(((target - own.loo_predictions_) ** 2).sum())]
    candidates = [best]
    for known in (layer, replace(layer, mean=prior.mean, std=prior.std)):
        x = known.betas(recording)
        base = x @ prior.weights.T + prior.bias
        scale = max(float((base * target).sum() / max((base**2).sum(), 1e-12)), 0.0)
        weights, bias, left_out = _correction(x, target - scale * base, list(shown))
        errors.append(float((left_out**2).sum()))
        candidates.append(
            replace(
                known,
                weights=(scale * prior.weights + weights).astype(np.float32),
                bias=(scale * prior.bias + bias).astype(np.float32),
                trials=recording.n_trials,
                how="group and own trials",
            )
        )
    return candidates[int(np.argmin(errors))]


def layers_state(layers: SubjectLayers) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is written of layers: plain facts, and arrays by ``<subject>.<name>``."""
    facts = {
        "class": "SubjectLayers",
        "shared": list(layers.shared),
        "layers": {
            name: {field: getattr(layer, field) for field in _FACTS}
            for name, layer in layers.layers.items()
        },
    }
    arrays = {
        f"{name}.{field}": getattr(layer, field)
        for name, layer in layers.layers.items()
        for field in _ARRAYS
    }
    return facts, arrays


def layers_from_state(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SubjectLayers:
    """Inverse of `layers_state`.

    Raises
    ------
    DataError : arrays that do not fit together.
    """
    try:
        layers = {}
        for name, stated in facts["layers"].items():
            values: list[Any] = [np.asarray(arrays[f"{name}.{f}"], np.float32) for f in _ARRAYS]
            values += [kind(stated[field]) for field, kind in _FACTS.items()]
            layers[str(name)] = InputLayer(*values)
        shared = tuple(str(name) for name in facts["shared"])
        sound = bool(shared) and all(name in layers for name in shared)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound, layers, shared = False, {}, ()
    k = len(layers[shared[0]].bias) if sound else 0
    for layer in layers.values():
        n = len(layer.mean)
        sound &= layer.weights.shape == (k, n) and layer.bias.shape == (k,)
        sound &= layer.std.shape == (n,)
    if not sound:
        raise DataError("the subjects' input layers do not fit together; save the model again")
    return SubjectLayers(layers, shared)


# in the order of the fields of `InputLayer`
_FACTS: dict[str, Callable[[Any], Any]] = {
    "space_name": str,
    "space_fingerprint": str,
    "trials": int,
    "how": str,
}
_ARRAYS = ("weights", "bias", "mean", "std")


def _correction(
    x: Float[np.ndarray, "trials features"],
    rest: Float[np.ndarray, "trials latents"],
    shown: list[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge regression towards nothing: weights, bias and exact left-out residuals.

    Unlike `MultiTargetRidge` the intercept is penalised, too, as one more feature that weighs as
    much as all others together: the mean target of a few trials is an accident of their stimuli.
    """
    x = x.astype(np.float64)
    kernel = x @ x.T
    constant = float(np.trace(kernel)) / len(x)  # its squared length
    eigenvalues, u = np.linalg.eigh(kernel + constant)
    eigenvalues = np.clip(eigenvalues, 0, None)
    projected = u.T @ rest
    names = np.unique(shown, return_inverse=True)[1]
    members = [rows for k in range(names.max() + 1) if len(rows := np.flatnonzero(names == k)) > 1]
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for alpha in np.asarray(ALPHAS) * max(float(eigenvalues.mean()), 1e-12):
        inverse = 1 / (eigenvalues + alpha)
        dual = u @ (inverse[:, None] * projected)
        left_out = dual / (u**2 @ inverse)[:, None]
        for rows in members:
            left_out[rows] = np.linalg.solve((u[rows] * inverse) @ u[rows].T, dual[rows])
        error = float((left_out**2).sum())
        if best is None or error < best[0]:
            best = error, dual, left_out
    assert best is not None
    _, dual, left_out = best
    return dual.T @ x, constant * dual.sum(axis=0), left_out


class _Latents:
    """Trials read through layers, one a trial, on index."""

    dtype = np.dtype(np.float32)

    def __init__(self, data: Any, layers: list[InputLayer]) -> None:
        self._data, self._layers = data, layers
        frames = data.shape[1] if data.ndim == 3 else 1
        self.shape = (len(layers), frames, len(layers[0].bias))
        self.ndim = 3

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if np.ndim(rows) == 0:
            return self._layers[int(rows)](self._data[int(rows)][None])[0]
        out = np.zeros((len(rows), *self.shape[1:]), np.float32)
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            block = np.asarray(self._data[part], np.float32)
            for layer in {id(self._layers[row]): self._layers[row] for row in part}.values():
                own = np.array([self._layers[row] is layer for row in part])
                out[start : start + len(part)][own] = layer(block[own])
        return out


def _blank(recording: Recording, n_latents: int) -> InputLayer:
    """A layer that knows how to z-score, and nothing else."""
    mean, std = feature_statistics(recording)
    return InputLayer(
        np.zeros((n_latents, recording.n_features), np.float32),
        np.zeros(n_latents, np.float32),
        mean,
        std,
        recording.space.name,
        recording.space.fingerprint(),
        0,
    )
