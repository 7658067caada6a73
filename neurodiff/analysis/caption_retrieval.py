"""From a recording to captions: a linear map to sentence embeddings, and the rank of the truth.

The simplest reading there is: ridge from trial responses to the embedding of the caption
of what was shown, and the cosine of what it predicts with every caption of the test objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.errors import DataError
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.metrics.captions import caption_rank, text_similarity

Encode = Callable[[Sequence[str]], np.ndarray]
_BLOCK = 64  # trials read at a time


def retrieve_captions(
    train: Recording, test: Recording, stimuli: Stimuli, encode: Encode
) -> pd.DataFrame:
    """One row a test trial: how near its own caption is to what is predicted from the recording.

    Parameters
    ----------
    train, test : recordings of the same features.
    stimuli : with a caption of each stimulus.
    encode : texts -> (n, d), such as `SentenceEncoder`.

    Returns
    -------
    Columns subject, stimulus, caption, rank (1 is best, ties share theirs), candidates (captions
    of the test objects), chance (the rank of a guess), similarity (cosine with the own caption) and
    other (mean cosine with the captions of the other objects).

    Raises
    ------
    DataError : a stimulus has no caption, or the recordings have other features.
    """
    if train.n_features != test.n_features:
        raise DataError(
            f"the test recording has {test.n_features} features and the training recording "
            f"{train.n_features}; give recordings of the same features"
        )
    caption = dict(zip(stimuli.ids, stimuli.table["caption"], strict=True))
    shown = [list(part.trials["stimulus"]) for part in (train, test)]
    without = [n for names in shown for n in names if not caption.get(n, "").strip()]
    if without:
        raise DataError(
            f"stimulus {without[0]!r} has no caption ({len(set(without))} have none); select "
            "trials of stimuli that have one"
        )
    embedded = {}
    for text, vector in _pairs(encode, sorted({caption[n] for names in shown for n in names})):
        embedded[text] = vector
    target = np.stack([embedded[caption[name]] for name in shown[0]])
    ridge = MultiTargetRidge().fit(_responses(train), target, groups=shown[0])
    predicted = np.asarray(ridge.predict(_responses(test)), np.float64)
    candidates = list(dict.fromkeys(shown[1]))
    captions = np.stack([embedded[caption[name]] for name in candidates]).astype(np.float64)
    truth = np.array([candidates.index(name) for name in shown[1]])
    unit = predicted / np.linalg.norm(predicted, axis=1, keepdims=True)
    mean = (unit @ (captions / np.linalg.norm(captions, axis=1, keepdims=True)).T).sum(axis=1)
    own = text_similarity(predicted, captions[truth])
    return pd.DataFrame(
        {
            "subject": list(test.trials["subject"]),
            "stimulus": shown[1],
            "caption": [caption[name] for name in shown[1]],
            "rank": caption_rank(predicted, captions, truth),
            "candidates": len(candidates),
            "chance": (len(candidates) + 1) / 2,
            "similarity": own,
            "other": (mean - own) / max(len(candidates) - 1, 1),
        }
    )


def _pairs(encode: Encode, texts: list[str]) -> list[tuple[str, np.ndarray]]:
    return list(zip(texts, np.asarray(encode(texts)), strict=True))


def _responses(recording: Recording) -> np.ndarray:
    """Mean over the frames of each trial, ``(trials, features)``."""
    blocks = []
    for start in range(0, recording.n_trials, _BLOCK):
        block = np.asarray(recording.data[start : start + _BLOCK], np.float32)
        blocks.append(block.mean(axis=1) if block.ndim == 3 else block)
    return np.concatenate(blocks)
