"""From the tokens of several fMRI frames to the tokens of one trial, and the contrastive header.

``FeatureAggregation`` shortens the tokens of each frame and joins the frames of a trial;
``ClipHeader`` (stage 1 of training only) turns the class tokens of a trial into one vector that
:func:`contrastive_loss` pulls towards the CLIP image feature of what was seen.  Parameter names
are the published ones.

Source: Gao et al., "MinD-3D: Reconstruct High-quality 3D Objects in Human Brain", ECCV 2024.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureAggregation(nn.Module):
    """Tokens of frames (trials * frames, tokens, n_embd) -> (trials, frames * out_tokens, width).

    Rows are frame-major inside a trial: row = trial * frames + frame.

    Parameters
    ----------
    n_embd : width of the encoder's tokens (its ``pred_out``).
    tokens : tokens of a frame (the encoder's kept patches).
    out_tokens : tokens of a frame that are passed on.
    width : their width, the dimension of the feature bridge.
    """

    def __init__(
        self, n_embd: int = 2048, *, tokens: int = 256, out_tokens: int = 128, width: int = 512
    ):
        super().__init__()
        self.ln1 = nn.LayerNorm(n_embd)
        self.fc1 = nn.Linear(tokens, out_tokens)
        self.ln2 = nn.LayerNorm(n_embd)
        self.fc2 = nn.Linear(n_embd, width)

    def forward(
        self, z: Float[Tensor, "rows tokens n_embd"], frames: int
    ) -> Float[Tensor, "trials out width"]:
        """Join ``frames`` consecutive rows to a trial.

        Raises
        ------
        ValueError : the rows are no whole number of trials, or have another number of tokens.
        """
        trials = _trials(len(z), frames)
        if z.shape[1] != self.fc1.in_features:
            raise ValueError(
                f"frames have {z.shape[1]} tokens; this aggregation was built for "
                f"{self.fc1.in_features}"
            )
        z = F.gelu(self.fc1(self.ln1(z).transpose(1, 2))).transpose(1, 2)  # (rows, out_tokens, e)
        z = z.reshape(trials, -1, z.shape[2])
        return self.fc2(self.ln2(z))


class ClipHeader(nn.Module):
    """Class tokens (trials * frames, 1, n_embd) -> one vector a trial (trials, width).

    Unlike the aggregation, the number of frames is fixed by the shape of ``fc1``.
    """

    def __init__(self, n_embd: int = 2048, *, frames: int = 6, width: int = 512):
        super().__init__()
        self.frames = frames
        self.ln1 = nn.LayerNorm(n_embd)
        self.fc1 = nn.Linear(frames * n_embd, width)

    def forward(self, cls: Float[Tensor, "rows 1 n_embd"]) -> Float[Tensor, "trials width"]:
        """Join the class tokens of a trial's frames, in order of the rows."""
        trials = _trials(len(cls), self.frames)
        return self.fc1(self.ln1(cls).reshape(trials, -1))


def contrastive_loss(
    fmri: Float[Tensor, "n width"],
    image: Float[Tensor, "n width"],
    logit_scale: Float[Tensor, ""] | float,
    *,
    normalise: bool = True,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy that finds each trial's image among the batch, and the reverse.

    Parameters
    ----------
    fmri, image : features of the same n trials, row by row.
    logit_scale : factor of the similarities (the exponential of the learned parameter), > 0.
    normalise : compare directions, as CLIP does.  The published stage 1 (``mind3d-2024``) does
        not: False gives plain inner products, whose size grows with the width.

    Returns
    -------
    Mean of both directions; ln(n) for features that say nothing.
    """
    if normalise:
        fmri, image = F.normalize(fmri, dim=-1), F.normalize(image, dim=-1)
    logits = logit_scale * image @ fmri.T  # (n, n)
    truth = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def _trials(rows: int, frames: int) -> int:
    if frames < 1 or rows % frames:
        raise ValueError(f"{rows} rows are no whole number of trials of {frames} frames")
    return rows // frames
