"""A judge of scenes: a small network that tells from a picture which object and which place it is.

It shares nothing with the features that are decoded: it is trained on the labels of true training
scenes, and sees them blurred, shifted and dimmed at random, since decoded pictures are not sharp.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from neurodiff.core.errors import DataError, UsageError, suggest
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed, seeded_layers
from neurodiff.core.training import TrainingSettings, train

SIDE = 64  # pixels on a side that the network reads
TRAINING = TrainingSettings(
    steps=520, batch_size=48, learning_rate=5e-3, warmup=10, weight_decay=0.05, ema_decay=0.9
)


class SceneJudge(nn.Module):
    """RGB pictures -> the probability of each label in each task, such as category and place.

    Parameters
    ----------
    classes : task -> its labels.

    Examples
    --------
    >>> judge = SceneJudge({"place": ("snow", "beach")})
    >>> judge.probabilities(np.zeros((3, 64, 64, 3), np.uint8))["place"].shape
    (3, 2)
    """

    def __init__(self, classes: Mapping[str, Sequence[str]], width: int = 16):
        super().__init__()
        self.classes = {task: tuple(labels) for task, labels in classes.items()}
        widths = (3, width, 2 * width, 4 * width, 6 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, b) for b in widths[1:])
        self.heads = nn.ModuleDict(
            {task: nn.Linear(2 * widths[-1], len(labels)) for task, labels in self.classes.items()}
        )

    @classmethod
    def fit(
        cls,
        images: UInt8[np.ndarray, "n h w 3"],
        labels: Mapping[str, Sequence[str]],
        *,
        seed: int = 0,
        settings: TrainingSettings = TRAINING,
        progress: Progress = SILENT,
    ) -> SceneJudge:
        """Train on true scenes.

        Parameters
        ----------
        labels : task -> the label of each picture; one that a mirror changes, such as left and
            right, cannot be learnt, for training mirrors pictures.

        Raises
        ------
        UsageError : no task, or a task with a single label.
        DataError : labels of another number than pictures.
        """
        for task, values in labels.items():
            if len(values) != len(images):
                raise DataError(f"{len(images)} pictures, but {len(values)} labels of {task!r}")
        classes = {task: tuple(sorted(set(values))) for task, values in labels.items()}
        if not classes or min(map(len, classes.values())) < 2:
            raise UsageError("a judge tells labels apart: give a task with two labels or more")
        with seeded_layers(item_seed(seed, subject="", stimulus="", stage="scene judge")):
            judge = cls(classes)
        pixels = prepared(images)
        numbers = {
            task: torch.tensor([classes[task].index(value) for value in values])
            for task, values in labels.items()
        }

        def loss(model: Any, rows: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
            logits = model(altered(pixels[rows], generator))
            terms = {
                task: F.cross_entropy(logits[task], numbers[task][rows], label_smoothing=0.05)
                for task in classes
            }
            return {"loss": torch.stack(list(terms.values())).sum(), **terms}

        train(
            judge,
            loss,
            n_items=len(images),
            settings=settings,
            seed=seed,
            stage="scene judge",
            progress=progress,
        )
        return judge

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> dict[str, Tensor]:
        """Logits of each task for pictures of -1 to 1."""
        pooled = self.pooled(x)
        return {task: head(pooled) for task, head in self.heads.items()}

    def pooled(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Activations below the answers: means and maxima over the picture."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x)))
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)

    @torch.no_grad()
    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """`pooled` of pictures, float32."""
        return torch.cat([self.pooled(part) for part in prepared(images).split(256)]).numpy()

    @torch.no_grad()
    def probabilities(
        self, images: UInt8[np.ndarray, "n h w 3"]
    ) -> dict[str, Float[np.ndarray, "n classes"]]:
        """Probabilities by task, columns as in ``classes``."""
        parts = [self(part) for part in prepared(images).split(256)]
        return {
            task: torch.cat([part[task] for part in parts]).softmax(-1).numpy()
            for task in self.classes
        }

    def score(
        self, images: UInt8[np.ndarray, "n h w 3"], task: str, label: str
    ) -> Float[np.ndarray, " n"]:
        """How much more likely a label is than all others together, as log odds.

        Raises
        ------
        UsageError : no such task or label.
        """
        for name, known in ((task, self.classes), (label, self.classes.get(task, ()))):
            if name not in known:
                raise UsageError(
                    f"the judge does not know {name!r}; it knows {', '.join(known)}."
                    f"{suggest(name, known)}"
                )
        p = self.probabilities(images)[task][:, self.classes[task].index(label)].astype(float)
        p = np.clip(p, 1e-9, 1 - 1e-9)
        return np.log(p / (1 - p))

    def accuracy(
        self, images: UInt8[np.ndarray, "n h w 3"], labels: Mapping[str, Sequence[str]]
    ) -> dict[str, float]:
        """Share of pictures that are told rightly, by task."""
        found = self.probabilities(images)
        return {
            task: float(
                np.mean([self.classes[task][k] for k in found[task].argmax(1)] == np.array(values))
            )
            for task, values in labels.items()
        }


def prepared(images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 64 64"]:
    """Pictures as the judge reads them: 64 pixels on a side, -1 to 1.

    Raises
    ------
    DataError : no pictures of 8 bits a colour.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise DataError(f"pictures are {images.dtype} of {images.shape}; give uint8 (n, h, w, 3)")
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[2:] != (SIDE, SIDE):
        x = F.interpolate(x, size=(SIDE, SIDE), mode="area")
    return x


def altered(x: Float[Tensor, "n 3 s s"], generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Mirrored, blurred (or not), shifted by up to 4 pixels, dimmed and with noise; one blur and
    one mirror a batch."""
    if float(torch.rand((), generator=generator)) < 0.5:
        x = x.flip(3)
    coarse = (0, 0, 32, 16)[int(torch.randint(4, (), generator=generator))]
    if coarse:
        side = x.shape[-1]
        x = F.interpolate(F.interpolate(x, size=coarse, mode="area"), size=side, mode="bilinear")
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    padded = F.pad(x, (4, 4, 4, 4), mode="replicate")
    x = padded[:, :, 4 + shift[0] : 4 + shift[0] + SIDE, 4 + shift[1] : 4 + shift[1] + SIDE]
    gain = 1 + 0.2 * torch.randn(len(x), 1, 1, 1, generator=generator)
    level = 0.15 * torch.randn(len(x), 3, 1, 1, generator=generator)
    noise = 0.15 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return x * gain + level + noise * torch.randn(x.shape, generator=generator)
