"""The judge of simulated scenes: a small network that names object, place and colour.

It shares nothing with the features that a decoder predicts (sentence and ImageNet networks), so
scores by it are not circular. Trained on true training scenes only. Called on pictures it gives the
activations below its answers, which makes it a `FeatureExtractor`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed
from neurodiff.core.training import TrainingSettings, train

if TYPE_CHECKING:
    from pathlib import Path

SIZE, FEATURES = 64, 128
SCHEDULE = TrainingSettings(steps=600, batch_size=48, learning_rate=2e-3, weight_decay=0.05)


class SceneJudge(nn.Module):
    """RGB pictures to probabilities of each question's answers.

    Parameters
    ----------
    answers : question -> its possible answers, such as category -> the names of categories.
    """

    name, published = "scene judge", False

    def __init__(self, answers: Mapping[str, Sequence[str]], width: int = 24):
        super().__init__()
        self.answers = {question: tuple(names) for question, names in answers.items()}
        widths = [3, width, 2 * width, 3 * width, 4 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, b) for b in widths[1:])
        self.pool = nn.Linear(4 * width * (SIZE // 16) ** 2, FEATURES)
        self.heads = nn.ModuleDict(
            {question: nn.Linear(FEATURES, len(names)) for question, names in self.answers.items()}
        )

    def forward(self, x: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n d"]:
        """Activations below the answers, of values in -1..1."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x)))
        return F.gelu(self.pool(x.flatten(1)))

    def __call__(self, images: Any) -> Any:
        """Features (n, d), float32, of uint8 pictures (n, h, w, 3) of any size; a tensor goes to
        `forward`, with gradients."""
        if isinstance(images, Tensor):
            return super().__call__(images)
        with torch.no_grad():
            parts = [super(SceneJudge, self).__call__(part) for part in _tensors(images)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def probabilities(
        self, images: UInt8[np.ndarray, "n h w 3"]
    ) -> dict[str, Float[np.ndarray, "n answers"]]:
        """Question -> probability of each of its answers."""
        features = torch.tensor(self(images))
        return {q: head(features).softmax(-1).numpy() for q, head in self.heads.items()}

    def accuracy(
        self, images: UInt8[np.ndarray, "n h w 3"], truth: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """Question -> whether each picture's likeliest answer is the true one."""
        found = self.probabilities(images)
        return {
            q: np.array(
                [self.answers[q][k] == t for k, t in zip(found[q].argmax(1), names, strict=True)],
                float,
            )
            for q, names in truth.items()
        }


def fit_judge(
    images: UInt8[np.ndarray, "n 64 64 3"],
    labels: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    schedule: TrainingSettings = SCHEDULE,
    folder: Path | None = None,
    log: Any = None,
    progress: Progress = SILENT,
) -> SceneJudge:
    """Train a judge on true scenes; ``labels`` holds each question's answer for every picture.

    Raises
    ------
    UsageError : labels of another number than pictures.
    """
    for question, names in labels.items():
        if len(names) != len(images):
            raise UsageError(f"{len(images)} pictures and {len(names)} labels of {question}")
    judge = new_judge({q: sorted(set(names)) for q, names in labels.items()}, seed=seed)
    targets = {
        q: torch.tensor([judge.answers[q].index(name) for name in names])
        for q, names in labels.items()
    }
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)

    def loss(model: nn.Module, rows: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        x = pixels[rows].float() / 127.5 - 1
        # mirrored, shifted and blurred: reconstructions are softer than true scenes
        if float(torch.rand((), generator=generator)) < 0.5:
            x = x.flip(3)
        shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
        x = torch.roll(x, shift, dims=(2, 3))
        if float(torch.rand((), generator=generator)) < 0.3:
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        features = model(x + 0.05 * torch.randn(x.shape, generator=generator))
        terms = {q: F.cross_entropy(judge.heads[q](features), t[rows]) for q, t in targets.items()}
        return {"loss": sum(terms.values()) / len(terms), **terms}

    train(
        judge,
        loss,
        n_items=len(images),
        settings=schedule,
        seed=seed,
        stage="scene judge",
        folder=folder,
        log=log,
        progress=progress,
    )
    return judge.eval()


def new_judge(answers: Mapping[str, Sequence[str]], *, seed: int = 0) -> SceneJudge:
    """An untrained judge whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(item_seed(seed, subject="", stimulus="", stage="scene judge"))
        return SceneJudge(answers)


def _tensors(images: UInt8[np.ndarray, "n h w 3"]) -> list[Tensor]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"the judge got pictures of {images.dtype} {images.shape}; expected uint8 (n, h, w, 3)"
        )
    if images.shape[1:3] != (SIZE, SIZE):
        images = np.stack(
            [
                np.asarray(Image.fromarray(i).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
                for i in images
            ]
        )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(x.split(256))
