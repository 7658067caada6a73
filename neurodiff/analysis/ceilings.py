"""The noise ceiling of a recording, as a table or in one sentence, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from neurodiff.analysis.decoding import by_source, stored_results
from neurodiff.core.errors import NeurodiffError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.datasets.nsd import noise_ceiling
from neurodiff.datasets.opening import MADE_FROM_A_SEED
from neurodiff.metrics.ceilings import (
    ceiling_of_means,
    single_trial_ceiling,
    split_half_ceiling,
)
from neurodiff.metrics.statistics import bootstrap_interval

KINDS = ("repeats", "split-half", "ncsnr", "recovery")
COLUMNS = ("subject", "roi", "kind", "trials", "median", "low", "high", "n", "note")
"""Of `ceilings`: ``trials`` are those of a mean, ``low`` and ``high`` the 5th and 95th percentiles
over the ``n`` features of the ROI; in rows of recovery ``median`` is the mean score over ``n``
items, with its 95 % interval, and ``roi`` the score's name. A ceiling that is not available is NaN,
and ``note`` says why."""
EVERYWHERE = "all"
_BLOCK = 64  # trials read at a time


def ceilings(
    recording: Recording,
    *,
    rois: Mapping[str, np.ndarray] | None = None,
    trials: int = 1,
    ncsnr: np.ndarray | None = None,
    recovery: Mapping[str, Sequence[float]] | None = None,
    frame_weights: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Every ceiling that a recording has, one row a subject, ROI and kind.

    Parameters
    ----------
    recording : single trials. Of means of repeats nothing can be measured but by ``ncsnr``.
    rois : name -> boolean (features,); by default those of the recording. All features together
        are the ROI "all".
    trials : of which the responses that a score is computed on are means.
    ncsnr : (features,), signal SD over noise SD of single trials, as published for NSD; NaN where
        not known.
    recovery : score -> its values, one an item, with the *true* features in place of decoded ones
        through the same decoder or generator: what no better bridge can exceed.
    frame_weights : (frames,) by which the frames of a trial become one response; by default their
        mean.
    seed : of the split halves.

    Raises
    ------
    UsageError : lengths that do not fit the recording.
    """
    masks = dict(recording.rois if rois is None else rois)
    for name, mask in masks.items():
        if np.shape(mask) != (recording.n_features,):
            raise UsageError(
                f"ROI {name!r} has shape {np.shape(mask)}; the recording has "
                f"{recording.n_features} features"
            )
    maps = ceiling_maps(
        recording, trials=trials, ncsnr=ncsnr, frame_weights=frame_weights, seed=seed
    )
    rows = []
    for subject, kind, values, note in maps:
        for name, mask in {EVERYWHERE: np.ones(recording.n_features, bool), **masks}.items():
            inside = values[np.asarray(mask, bool)]
            rows.append((subject, name, kind, trials, *_summary(inside, note)))
    for name, scores in (recovery or {}).items():
        rows.append(("", name, "recovery", 0, *_recovered(np.asarray(scores, np.float64))))
    if recovery is None:
        note = "not available: no score of true features was given"
        rows.append(("", "", "recovery", 0, np.nan, np.nan, np.nan, 0, note))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def ceiling_maps(
    recording: Recording,
    *,
    trials: int = 1,
    ncsnr: np.ndarray | None = None,
    frame_weights: np.ndarray | None = None,
    seed: int = 0,
) -> list[tuple[str, str, np.ndarray, str]]:
    """(subject, kind, ceiling of each feature, note) for repeats, split halves and ncsnr.

    Shares of the variance of means of ``trials``, 0 to 1. All NaN where there is none; the note
    then begins with "not available".
    """
    if trials < 1:
        raise UsageError(f"means of {trials} trials; give 1 or more")
    if ncsnr is not None and np.shape(ncsnr) != (recording.n_features,):
        raise UsageError(
            f"ncsnr has shape {np.shape(ncsnr)}; the recording has {recording.n_features} features"
        )
    weights = _frame_weights(recording, frame_weights)
    nothing = np.full(recording.n_features, np.nan)
    found = []
    for subject, rows in recording.trials.groupby("subject", sort=False).groups.items():
        table = recording.trials.loc[rows]
        counts = table["stimulus"].value_counts()
        again = np.asarray(table.index[table["stimulus"].map(counts) > 1])
        shown = int((counts > 1).sum())
        betas = None
        for kind, need in (("repeats", 2), ("split-half", 3)):
            if shown < need:
                note = f"not available: {_too_few(shown)}, and {need} repeated stimuli are needed"
                found.append((str(subject), kind, nothing, note))
                continue
            if betas is None:
                parts = [_weighted(recording, part, weights) for part in _parts(again)]
                betas = np.concatenate(parts)
            names = list(recording.trials["stimulus"].iloc[again])
            single = (
                single_trial_ceiling(betas, names)
                if kind == "repeats"
                else split_half_ceiling(betas, names, seed=seed)
            )
            note = f"{shown} stimuli with repeats"
            found.append((str(subject), kind, ceiling_of_means(single, trials), note))
        if ncsnr is None:
            note = "not available: no map of ncsnr was given"
            found.append((str(subject), "ncsnr", nothing, note))
        else:
            known = np.isfinite(ncsnr)
            values = nothing.copy()
            values[known] = noise_ceiling(np.asarray(ncsnr)[known], trials)
            found.append((str(subject), "ncsnr", values, "ncsnr\u00b2 / (ncsnr\u00b2 + 1/trials)"))
    return found


def ceilings_of_run(run: Run) -> list[str]:
    """`ceiling_text` of each recording that a run decoded; simulated studies have a planted one."""
    lines = []
    for source, _ in by_source(stored_results(run)):
        if source.reader in MADE_FROM_A_SEED:
            continue
        try:
            lines += ceiling_text(source.open()[0]).splitlines()
        except NeurodiffError as error:
            lines.append(f"noise ceiling of {source.label}: not available: {error}")
    return lines


def ceiling_text(recording: Recording) -> str:
    """Noise ceiling of single trials: its median over features, or "not available" and why.

    A trial's response is its mean over frames. Only trials of repeated stimuli are read. The
    subjects of a recording are measured apart: what differs between people is no noise.
    """
    label = f"noise ceiling of {recording.name or 'the recording'}"
    lines = []
    for subject, rows in recording.trials.groupby("subject", sort=False).groups.items():
        table = recording.trials.loc[rows]
        times = table["stimulus"].map(table["stimulus"].value_counts())
        again = np.asarray(table.index[times > 1])
        shown = int((table["stimulus"].value_counts() > 1).sum())
        who = f" ({subject})" if recording.trials["subject"].nunique() > 1 else ""
        if shown < 2:
            text = "every stimulus has a single trial" if shown == 0 else "one stimulus is repeated"
            lines.append(f"{label}{who}: not available: {text}, and it is measured by repeats")
            continue
        betas = np.concatenate([_responses(recording, part) for part in _parts(again)])
        ceiling = single_trial_ceiling(betas, list(recording.trials["stimulus"].iloc[again]))
        known = ceiling[np.isfinite(ceiling)]
        if len(known) == 0:
            lines.append(f"{label}{who}: not available: no feature varies")
            continue
        lines.append(
            f"{label}{who}: median {np.median(known):.3f}, 95th percentile "
            f"{np.percentile(known, 95):.3f} of the variance of a single trial, over "
            f"{len(known)} features ({shown} stimuli with repeats)"
        )
    return "\n".join(lines)


def _summary(values: np.ndarray, note: str) -> tuple[float, float, float, int, str]:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        if not note.startswith("not available"):
            note = "not available: no feature varies, or the ROI is empty"
        return np.nan, np.nan, np.nan, 0, note
    low, middle, high = np.percentile(known, [5, 50, 95])
    return float(middle), float(low), float(high), len(known), note


def _recovered(scores: np.ndarray) -> tuple[float, float, float, int, str]:
    known = scores[np.isfinite(scores)]
    if len(known) < 2:
        note = f"not available: {len(known)} items with a score, and 2 are needed"
        return np.nan, np.nan, np.nan, len(known), note
    interval = bootstrap_interval(known)
    note = "true features through the same chain"
    return interval.value, interval.low, interval.high, len(known), note


def _too_few(shown: int) -> str:
    if shown == 0:
        return "every stimulus has a single trial"
    return f"{shown} {'stimulus is' if shown == 1 else 'stimuli are'} repeated"


def _frame_weights(recording: Recording, given: np.ndarray | None) -> np.ndarray:
    frames = int(np.prod(recording.frames)) if recording.frames else 1
    if given is None:
        return np.full(frames, 1 / frames)
    if np.shape(given) != (frames,):
        raise UsageError(
            f"frame_weights has shape {np.shape(given)}; the recording has {frames} frames a trial"
        )
    return np.asarray(given, np.float64)


def _weighted(recording: Recording, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One response a trial, ``(trials, features)``."""
    block = np.asarray(recording.data[rows], dtype=np.float32)
    block = block.reshape(len(block), len(weights), block.shape[-1])
    return np.einsum("tfv,f->tv", block, weights.astype(np.float32))


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _responses(recording: Recording, rows: np.ndarray) -> np.ndarray:
    """Mean over the frames of each trial, ``(trials, features)``."""
    block = np.asarray(recording.data[rows], dtype=np.float32)
    return block.mean(axis=tuple(range(1, block.ndim - 1))) if block.ndim > 2 else block
