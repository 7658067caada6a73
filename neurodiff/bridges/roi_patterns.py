"""The features that an ROI alone calls for: weights summed over its vertices, scaled to be seen.

A row r marks an ROI (1 in it, 0 elsewhere). Its pattern r W' has the direction of the features that
the ROI's activity speaks for, and no scale, so it is given one. As published (Ozcelik & VanRullen
2023; reference brain_diffuser.md, section 2):

    tokens      9 or 15 (p / |p|) + b                             text, vision; |p| over all tokens
    latents     q = 50 p / |p| + b,   z = (q - m) / s,   u = z std(Y) + mean(Y),   80 u / |u|

For the latents the published m and s are taken *across the rows of the list*, so that an ROI's
scene changes with the other ROIs in it, and a list of one has none. Here, by default, they are the
mean and spread of the leave-one-out predictions in training, as `FactoredRidge` uses for a new
trial: the pattern is read as a trial would be.

All of it needs only ``FactoredRidge.patterns``, which makes no weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.core.errors import DataError, UsageError

TEXT_GAIN, VISION_GAIN = 9.0, 15.0
LATENT_GAIN, LATENT_LENGTH = 50.0, 80.0
_TINY = 1e-8  # in the published norm


def roi_rows(rois: dict[str, Any], features: int) -> np.ndarray:
    """Boolean masks by name -> rows of 0 and 1; (rois, features).

    Raises
    ------
    DataError : a mask of another width, or without a vertex.
    """
    if not rois:
        raise UsageError("no ROI was named; give at least one mask")
    rows = np.zeros((len(rois), features))
    for row, (name, mask) in zip(rows, rois.items(), strict=True):
        mask = np.asarray(mask)
        if mask.shape != (features,) or mask.dtype != bool:
            raise DataError(
                f"ROI {name!r} is {mask.dtype} of shape {mask.shape}; expected a boolean mask over "
                f"the {features} features of this bridge"
            )
        row[mask] = 1.0
    _refuse_empty(rows, list(rois))
    return rows


def token_patterns(products: np.ndarray, intercept: np.ndarray, gain: float) -> np.ndarray:
    """CLIP tokens of each ROI from r W' and the intercept b, as published.

    Parameters
    ----------
    products : (rois, tokens, d) or (rois, targets), the weights summed over each ROI.
    intercept : (tokens, d) or (targets,)
    gain : length of the pattern; published 9 for text and 15 for vision.
    """
    flat = products.reshape(len(products), -1)
    scaled = gain * flat / (_lengths(flat) + _TINY) + intercept.reshape(-1)
    return scaled.reshape(products.shape)


def latent_patterns(
    products: np.ndarray,
    intercept: np.ndarray,
    train_mean: np.ndarray,
    train_std: np.ndarray,
    *,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
    gain: float = LATENT_GAIN,
    length: float = LATENT_LENGTH,
) -> np.ndarray:
    """VDVAE latents of each ROI from r W' and the intercept; (rois, targets).

    Parameters
    ----------
    products : (rois, targets); intercept, train_mean, train_std : (targets,), the last two of the
        training targets (ddof 0).
    reference : (mean, std) of each target's predictions, (targets,) each, to standardise with;
        None standardises across the rows given, as published.
    gain, length : of the pattern before it is standardised, and of the latents in the end.

    Raises
    ------
    DataError : None as reference with fewer than two rows, or with a target that is equal in all.
    """
    rows = gain * products / (_lengths(products) + _TINY) + intercept
    if reference is None:
        if len(rows) < 2:
            raise DataError(
                "the published scaling standardises an ROI against the others in the list, and "
                "there is 1; give several, or standardise by training statistics"
            )
        mean, std = rows.mean(axis=0), rows.std(axis=0)
    else:
        mean, std = reference
    std = np.where(train_std == 0, 1.0, std)  # a constant target stays what it is
    if not (std > 0).all():
        raise DataError(
            f"{int((std <= 0).sum())} of {len(std)} targets do not vary, so patterns cannot be "
            "standardised: drop equal ROIs from the list, and targets that are constant"
        )
    rows = (rows - mean) / std * train_std + train_mean
    return length * rows / _lengths(rows)


def roi_tokens(bridge: FactoredRidge, rows: np.ndarray, gain: float) -> np.ndarray:
    """`token_patterns` of a fitted head; rows (rois, features) -> (rois, tokens, d)."""
    _refuse_empty(np.asarray(rows), None)
    products, intercept = bridge.patterns(rows)
    shape = (len(products), *bridge.targets_.item_shape)
    return token_patterns(products, intercept, gain).reshape(shape)


def roi_latents(
    bridge: FactoredRidge,
    rows: np.ndarray,
    *,
    across_rows: bool = False,
    gain: float = LATENT_GAIN,
    length: float = LATENT_LENGTH,
) -> np.ndarray:
    """`latent_patterns` of a fitted head; rows (rois, features) -> (rois, targets).

    Parameters
    ----------
    across_rows : as published: an ROI's latents depend on the other rows. Needs a head fitted with
        standardise="loo" or "test"; the default needs "loo".
    gain, length : as in `latent_patterns`.

    Raises
    ------
    UsageError : the head has not kept the statistics that are needed.
    """
    _refuse_empty(np.asarray(rows), None)
    known = bridge.statistics_
    if known.std is None or (known.loo_std is None and not across_rows):
        raise UsageError(
            f"the head was fitted with standardise={bridge.standardise!r} and has not kept the "
            "training statistics that latents are scaled with; fit it with standardise='loo'"
            + ("" if known.std is None else ", or take the published scaling (across_rows=True)")
        )
    products, intercept = bridge.patterns(rows)
    reference = None if across_rows else (known.loo_mean, known.loo_std)
    return latent_patterns(
        products, intercept, known.mean, known.std, reference=reference, gain=gain, length=length
    )


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=1, keepdims=True)


def _refuse_empty(rows: np.ndarray, names: list[str] | None) -> None:
    empty = np.flatnonzero(~rows.astype(bool).any(axis=-1))
    if len(empty):
        which = f"ROI {names[empty[0]]!r}" if names else f"row {empty[0]}"
        raise DataError(
            f"{which} is empty: none of the {rows.shape[-1]} features of this bridge lies in it; "
            "leave it out, or check the labels and the mask"
        )
