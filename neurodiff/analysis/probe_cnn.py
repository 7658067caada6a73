"""The supervised baseline: a small network fitted to the scans of each fold's training subjects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from neurodiff.analysis.probe_folds import FoldFeatures


@dataclass(frozen=True, kw_only=True)
class CNNSettings:
    """Of the supervised network.

    Attributes
    ----------
    folds : "first" fits one network a task, on the first fold, and scores its subjects alone.
    widths : of the stages, see `VolumeCNNSize`.
    steps, batch_size, learning_rate : of the training; the last step is taken, none is chosen.
    """

    folds: Literal["first", "all"] = "first"
    widths: tuple[int, ...] = (8, 16, 32, 64)
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 2e-3


@dataclass(eq=False)
class SmallCNN:
    """A predictor for `FoldFeatures`: volumes (n, 1, i, j, k) to probabilities or numbers.

    Intensities, and numbers to predict, are brought to mean 0 and SD 1 of the training scans; half
    of the training volumes are mirrored from left to right.
    """

    settings: CNNSettings = field(default_factory=CNNSettings)
    seed: int = 0

    def fit(self, values: np.ndarray, truth: np.ndarray, groups: Any = None) -> SmallCNN:
        """``truth`` (n,) is boolean for a class; ``groups`` are not needed."""
        import torch
        from torch.nn import functional

        from neurodiff.core.seeds import item_seed, seeded_layers
        from neurodiff.core.training import TrainingSettings, train

        self.is_class = truth.dtype.kind == "b"
        self.mean, self.deviation = float(values.mean()), float(values.std()) or 1.0
        target = truth.astype(np.float32)
        self.centre, self.spread = 0.0, 1.0
        if not self.is_class:
            self.centre, self.spread = float(target.mean()), float(target.std()) or 1.0
        wanted = torch.from_numpy((target - self.centre) / self.spread)
        with seeded_layers(item_seed(self.seed, subject="", stimulus="", stage="small CNN")):
            self.network = self._new()

        def loss(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict:
            batch = self._ready(values[rows])
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            batch = torch.where(mirrored[:, None, None, None, None], batch.flip(2), batch)
            out = model(batch)
            error = (
                functional.binary_cross_entropy_with_logits(out, wanted[rows])
                if self.is_class
                else functional.mse_loss(out, wanted[rows])
            )
            return {"loss": error}

        one = self.settings
        train(
            self.network,
            loss,
            n_items=len(values),
            settings=TrainingSettings(
                steps=one.steps, batch_size=one.batch_size, learning_rate=one.learning_rate
            ),
            seed=self.seed,
            stage="small CNN",
        )
        return self

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Probability of the positive class, or the number; float64 (n,)."""
        import torch

        out = []
        with torch.inference_mode():
            for start in range(0, len(values), 16):
                out.append(self.network(self._ready(values[start : start + 16])).double())
        raw = torch.cat(out)
        raw = torch.sigmoid(raw) if self.is_class else raw * self.spread + self.centre
        return raw.numpy()

    @property
    def parameter_count(self) -> int:
        return self._new().parameter_count

    def _new(self) -> Any:
        from neurodiff.models.volume_cnn import VolumeCNN, VolumeCNNSize

        return VolumeCNN(VolumeCNNSize(widths=self.settings.widths))

    def _ready(self, values: np.ndarray) -> Any:
        import torch

        return (torch.from_numpy(np.array(values, np.float32)) - self.mean) / self.deviation


def cnn_features(
    volumes: np.ndarray, settings: CNNSettings | None = None, *, seed: int = 0
) -> tuple[str, FoldFeatures]:
    """Name, with the number of parameters, and what :func:`evaluate_probes` takes."""
    settings = settings or CNNSettings()
    model = SmallCNN(settings, seed)
    one_fold = settings.folds == "first"
    name = f"small supervised CNN, {model.parameter_count:,} parameters"
    return name + (", first fold" if one_fold else ""), FoldFeatures(
        values=volumes, model=model, first_fold_only=one_fold
    )
