"""The noise ceiling of a recording, in one sentence, or why there is none."""

from __future__ import annotations

import numpy as np

from neurodiff.analysis.decoding import by_source, stored_results
from neurodiff.core.errors import NeurodiffError
from neurodiff.core.recording import Recording
from neurodiff.core.run import Run
from neurodiff.datasets.opening import MADE_FROM_A_SEED
from neurodiff.metrics.ceilings import single_trial_ceiling

_BLOCK = 64  # trials read at a time


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


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _responses(recording: Recording, rows: np.ndarray) -> np.ndarray:
    """Mean over the frames of each trial, ``(trials, features)``."""
    block = np.asarray(recording.data[rows], dtype=np.float32)
    return block.mean(axis=tuple(range(1, block.ndim - 1))) if block.ndim > 2 else block
