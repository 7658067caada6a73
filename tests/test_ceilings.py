"""Noise ceilings by closed forms, and "not available" where nothing was repeated."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.ceilings import ceiling_text
from neurodiff.core.recording import Recording
from neurodiff.datasets.fmri_shape_glmsingle import GLMsingleShape
from neurodiff.metrics.ceilings import single_trial_ceiling


def test_by_hand():
    """Means 1 and 5, each trial 1 from its mean: noise 2, variance of means 8, of them 1 noise."""
    responses = np.array([[0.0], [2.0], [4.0], [6.0]])
    found = single_trial_ceiling(responses, ["a", "a", "b", "b"])
    np.testing.assert_allclose(found, [7 / 9])


def test_planted_ceilings_are_found():
    """200,000 features' worth of draws: signal variance 1 beside noise 0, 1, 4 and 9."""
    rng = np.random.default_rng(0)
    stimuli, repeats, noise = 4000, 3, np.array([0.0, 1.0, 2.0, 3.0])
    signal = np.repeat(rng.standard_normal((stimuli, 4)), repeats, axis=0)
    responses = signal + noise * rng.standard_normal(signal.shape)
    found = single_trial_ceiling(responses, [str(k) for k in range(stimuli) for _ in range(3)])
    np.testing.assert_allclose(found, 1 / (1 + noise**2), atol=0.03)


def test_stimuli_shown_once_do_not_count():
    responses = np.array([[0.0], [2.0], [4.0], [6.0], [1000.0]])
    found = single_trial_ceiling(responses, ["a", "a", "b", "b", "c"])
    np.testing.assert_allclose(found, [7 / 9])


def test_what_does_not_vary_has_none_and_noise_alone_has_zero():
    responses = np.array([[1.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 0.0]])
    found = single_trial_ceiling(responses, ["a", "a", "b", "b"])
    assert np.isnan(found[0])
    assert found[1] == 0


def test_too_few_repeats_raise():
    with pytest.raises(ValueError, match="1 of 2 stimuli were shown more than once"):
        single_trial_ceiling(np.zeros((3, 1)), ["a", "a", "b"])
    with pytest.raises(ValueError, match="2 stimuli for 3 trials"):
        single_trial_ceiling(np.zeros((3, 1)), ["a", "a"])


def made(responses, stimuli, **columns):
    table = pd.DataFrame({"stimulus": stimuli, **columns})
    return Recording.from_arrays(responses, table, name="mine")


def test_text_of_a_recording_with_and_without_repeats():
    frames = np.array([[[0.0], [0.0]], [[1.0], [3.0]], [[4.0], [4.0]], [[6.0], [6.0]]])
    text = ceiling_text(made(frames, ["a", "a", "b", "b"]))
    assert text.startswith("noise ceiling of mine: median 0.778, ")  # 7 / 9
    assert "2 stimuli with repeats" in text
    text = ceiling_text(made(frames, ["a", "b", "c", "d"]))
    assert text == (
        "noise ceiling of mine: not available: every stimulus has a single trial, and it is "
        "measured by repeats"
    )


def test_two_people_who_saw_the_same_are_no_repeats():
    frames = np.arange(4.0).reshape(4, 1)
    text = ceiling_text(made(frames, ["a", "b", "a", "b"], subject=["1", "1", "2", "2"]))
    assert [line.split(": ")[1] for line in text.splitlines()] == ["not available"] * 2


def test_the_release_with_repeats_has_a_ceiling(tmp_path):
    import h5py

    (tmp_path / "annotations").mkdir()
    for split, names in (("train", ["x/a"]), ("test", ["x/b", "x/c"])):
        lines = "".join(f"{name}\n" for name in names)
        (tmp_path / "annotations" / f"core_{split}_list.txt").write_text(lines)
    with h5py.File(tmp_path / "sub-0001.hdf5", "w") as file:
        file["vox"] = np.array([[9], [0], [2], [4], [6]], np.float32)
        names = ["x/a", "x/b", "x/b", "x/c", "x/c"]
        file["stimuli"] = np.array([f"./stimuli/{name}.mp4".encode() for name in names])
    assert "median 0.778" in ceiling_text(GLMsingleShape.open(tmp_path)[0])
