"""Contracts that data sets, bridges and decoders of others can be checked against.

Each check raises :class:`ContractError`, an AssertionError with one sentence, at the first promise
that is broken, and returns nothing where all hold. Use them in your own tests::

    from neurodiff.testing import check_bridge, check_dataset, check_decoder

    def test_my_reader():
        check_dataset(lambda: my_reader(root="data"))

What is checked is what neurodiff relies on: the same item gives the same answer in any company,
data are read without being changed, what is wrong is refused in words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.core.errors import NeurodiffError

if TYPE_CHECKING:
    from neurodiff.core.recording import Recording
    from neurodiff.core.stimuli import Stimuli

__all__ = ["ContractError", "check_bridge", "check_dataset", "check_decoder", "check_tracker"]

TOLERANCE = 1e-4


class ContractError(AssertionError):
    """A promise that is broken, in one sentence."""


def check_dataset(opened: Callable[[], tuple[Recording, Stimuli]]) -> None:
    """A reader: what it gives is a recording and its stimuli, the same each time.

    Parameters
    ----------
    opened : without arguments -> (recording, stimuli), as `neurodiff.open_dataset`.

    Raises
    ------
    ContractError : opening twice differs; a trial of a stimulus that is not there; data that are
        not float32, not finite, or another array by index, slice and list; a region of another
        width; a picture that cannot be made; stimuli of training among those of the test.
    """
    from neurodiff.core.recording import Recording

    recording, stimuli = opened()
    _need(isinstance(recording, Recording), f"the first is {type(recording).__name__}; "
          "give a neurodiff.Recording")  # fmt: skip
    again = opened()[0]
    _need(recording.fingerprint() == again.fingerprint(), "opening twice gives two fingerprints: "
          "something depends on time, order or chance")  # fmt: skip
    shown = set(recording.trials["stimulus"].astype(str))
    lacking = sorted(shown - set(stimuli.ids))
    _need(not lacking, f"{len(lacking)} stimuli of the trials are not among the stimuli, "
          f"first {lacking[:1]}")  # fmt: skip
    n = recording.n_trials
    rows = sorted({0, n // 2, n - 1})
    listed = np.asarray(recording.data[np.array(rows)])
    _need(listed.dtype == np.float32, f"data are {listed.dtype}; give float32")
    _need(bool(np.isfinite(listed).all()), "data hold NaN or infinity")
    for k, row in enumerate(rows):
        by_index, by_slice = recording.data[row], recording.data[row : row + 1][0]
        same = np.array_equal(by_index, listed[k]) and np.array_equal(by_slice, listed[k])
        _need(same, f"trial {row} differs by index, slice and list")
    _need(np.array_equal(np.asarray(recording.data[np.array(rows[::-1])]), listed[::-1]),
          "trials come in another order than they were asked for")  # fmt: skip
    for name, mask in recording.rois.items():
        _need(np.shape(mask) == (recording.n_features,), f"region {name!r} is of another width")
    values = listed.reshape(len(rows), -1, recording.n_features)[0, 0]
    _need(recording.to_image(values) is not None, "to_image gives nothing")
    splits = recording.trials.groupby("stimulus")["split"].nunique()
    both = splits[splits > 1]
    _need(both.empty, f"{len(both)} stimuli are in several splits, first {list(both.index[:1])}: a "
          "decoder would be tested on what it was trained on")  # fmt: skip


def check_bridge(make: Callable[[], Any], *, features: int = 12, targets: int = 5) -> None:
    """A regression from responses (n, features) to targets (n, targets), as scikit-learn's.

    Parameters
    ----------
    make : without arguments -> an unfitted estimator with ``fit`` and ``predict``.

    Raises
    ------
    ContractError : it learns nothing from linear data, changes its inputs, gives an item another
        answer in other company, another one when it is fitted again, cannot be copied, or takes
        NaN or another width without a word.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, features))
    y = x @ rng.standard_normal((features, targets)) + 0.1 * rng.standard_normal((80, targets))
    before = x.copy(), y.copy()
    bridge = make()
    returned = bridge.fit(x, y)
    _need(returned is bridge, "fit does not return the bridge itself")
    fresh = rng.standard_normal((20, features))
    told = np.asarray(bridge.predict(fresh))
    _need(told.shape == (20, targets), f"predict gives {told.shape}; expected (20, {targets})")
    _need(bool(np.isfinite(told).all()), "predictions of finite data are not finite")
    same = np.array_equal(x, before[0]) and np.array_equal(y, before[1])
    _need(same, "fit changes the arrays that it is given")
    inside = np.asarray(bridge.predict(x))
    _need(float(((inside - y) ** 2).mean()) < 0.9 * float(y.var()),
          "it explains nothing of linear data that it was fitted on")  # fmt: skip
    alone = np.concatenate([np.asarray(bridge.predict(fresh[k : k + 1])) for k in range(20)])
    _close(alone, told, "an item alone and among others has two answers")
    _close(np.asarray(bridge.predict(fresh[::-1]))[::-1], told, "the order of items matters")
    _close(np.asarray(make().fit(x, y).predict(fresh)), told, "fitted again it answers otherwise")
    _close(np.asarray(copy.deepcopy(bridge).predict(fresh)), told, "a copy answers otherwise")
    broken = fresh.copy()
    broken[3, 2] = np.nan
    _refuses(lambda: bridge.predict(broken), "NaN in what is predicted from")
    _refuses(lambda: make().fit(np.where(x > 2, np.nan, x), y), "NaN in what is fitted")
    _refuses(lambda: bridge.predict(fresh[:, :-1]), "responses of another width")


def check_decoder(decoder: Any, recording: Recording) -> None:
    """A decoder as attribution asks it (`analysis.attribution_problem.Decoder`).

    Parameters
    ----------
    recording : at least 2 trials that it can decode.

    Raises
    ------
    ContractError : a stage that is missing, of other length or not finite; an item that is another
        in other company; data that are changed; a linear form that is not what ``decode`` does.
    """
    for name in ("name", "stages", "decode", "truth"):
        _need(hasattr(decoder, name), f"it has no {name}")
    data, trials = np.array(recording.array()), recording.trials
    _need(len(data) >= 2, "give at least 2 trials")
    before = data.copy()
    told = decoder.decode(data, trials)
    _need(set(told) == set(decoder.stages), f"decode gives {sorted(told)}; its stages are "
          f"{sorted(decoder.stages)}")  # fmt: skip
    _need(np.array_equal(data, before), "decode changes the data that it is given")
    truth = decoder.truth(list(trials["stimulus"].astype(str)))
    last = len(data) - 1
    alone = decoder.decode(data[last:], trials.iloc[last:].reset_index(drop=True))
    order = np.arange(len(data))[::-1]
    turned = decoder.decode(data[order], trials.iloc[order].reset_index(drop=True))
    for stage in decoder.stages:
        rows = np.asarray(told[stage])
        _need(len(rows) == len(data), f"{stage} has {len(rows)} rows of {len(data)} trials")
        _need(bool(np.isfinite(rows).all()), f"{stage} is not finite")
        _need(len(truth[stage]) == len(data), f"the truth of {stage} has another length")
        widths = rows.reshape(len(rows), -1).shape[1], np.size(truth[stage][0])
        _need(widths[0] == widths[1], f"{stage} has {widths[0]} numbers, its truth {widths[1]}")
        _close(np.asarray(alone[stage])[0], rows[last], f"{stage}: a trial alone is another")
        _close(np.asarray(turned[stage])[::-1], rows, f"{stage}: the order of trials matters")
        line = decoder.linear(stage) if hasattr(decoder, "linear") else None
        if line is not None:
            read = np.asarray(line.read(data), float)
            whole = line.constant + line.of(read, np.ones(read.shape[1], bool))
            _close(whole, rows.reshape(whole.shape), f"{stage}: its linear form is not decode")


def check_tracker(tracker: Any) -> None:
    """Something that takes training curves (`core.tracking.Tracker`)."""
    for name in ("begin", "log", "close"):
        _need(callable(getattr(tracker, name, None)), f"it has no method {name}")
    tracker.begin("check", {"steps": 2})
    tracker.log("check", {"loss": 1.0}, 1)
    tracker.log("check", {"loss": 0.5}, 2)
    tracker.close()


# ------------------------------------------------------------------------------- parts


def _need(holds: bool, sentence: str) -> None:
    if not holds:
        raise ContractError(sentence)


def _close(found: np.ndarray, wanted: np.ndarray, sentence: str) -> None:
    scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    far = float(np.abs(np.asarray(found) - wanted).max(initial=0.0))
    _need(far <= TOLERANCE * scale, f"{sentence} (by {far:.2g})")


def _refuses(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except (NeurodiffError, ValueError):
        return
    except Exception as error:
        raise ContractError(
            f"{what}: ends in {type(error).__name__}; raise a ValueError that says what is wrong"
        ) from error
    raise ContractError(f"{what}: is taken without a word; raise a ValueError")
