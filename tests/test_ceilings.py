"""Noise ceilings by closed forms, and "not available" where nothing was repeated."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.ceilings import ceiling_maps, ceiling_text, ceilings
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording
from neurodiff.datasets.fmri_shape_glmsingle import GLMsingleShape
from neurodiff.datasets.simulated.subject import (
    PlantedSubject,
    StimulusFeatures,
    haemodynamic_response,
    record,
)
from neurodiff.datasets.surface import load_visual_cortex
from neurodiff.metrics.ceilings import (
    ceiling_of_means,
    normalised_correlation,
    single_trial_ceiling,
    split_half_ceiling,
)


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


def test_means_of_trials_by_spearman_and_brown():
    single = np.array([0.2, 0.5, np.nan, 0.0, 1.0])
    np.testing.assert_allclose(ceiling_of_means(single, 1), single)
    found = ceiling_of_means(single, 4)
    np.testing.assert_allclose(found, [4 * 0.2 / 1.6, 4 * 0.5 / 2.5, np.nan, 0, 1])
    np.testing.assert_allclose(ceiling_of_means(single, [4, 4]), found)
    with pytest.raises(ValueError, match="1 or more trials"):
        ceiling_of_means(single, 0)
    with pytest.raises(ValueError, match="outside 0 to 1"):
        ceiling_of_means(np.array([1.2]), 1)


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_split_halves_find_planted_ceilings(repeats):
    rng = np.random.default_rng(1)
    noise = np.array([0.0, 1.0, 2.0])
    signal = np.repeat(rng.standard_normal((3000, 3)), repeats, axis=0)
    responses = signal + noise * rng.standard_normal(signal.shape)
    names = [str(k) for k in range(3000) for _ in range(repeats)]
    found = split_half_ceiling(responses, names, splits=5)
    np.testing.assert_allclose(found, 1 / (1 + noise**2), atol=0.035)
    with pytest.raises(ValueError, match="2 of 2 stimuli"):
        split_half_ceiling(responses[: 2 * repeats], names[: 2 * repeats])


def test_a_normalised_score_is_not_cut_and_needs_a_ceiling():
    raw, ceiling = np.array([0.3, 0.5, 0.2, 0.1]), np.array([0.36, 0.16, 0.01, np.nan])
    found = normalised_correlation(raw, ceiling)
    np.testing.assert_allclose(found, [0.5, 1.25, np.nan, np.nan])


def planted(repeats, **columns):
    """Feature 0 carries signal of variance 1 in noise of variance 1, feature 1 nothing."""
    rng = np.random.default_rng(2)
    names = [f"s{k}" for k in range(400) for _ in range(repeats)]
    signal = np.repeat(rng.standard_normal((400, 1)), repeats, axis=0) * [[1.0, 0.0]]
    data = (signal + rng.standard_normal(signal.shape)).astype(np.float32)
    table = pd.DataFrame({"stimulus": names, **columns})
    rois = {"V1": np.array([True, False]), "V2": np.array([False, True])}
    return Recording.from_arrays(data, table, {**rois, "none": np.zeros(2, bool)})


@pytest.mark.parametrize(("trials", "expected"), [(1, 0.5), (3, 0.75)])
def test_the_table_agrees_with_closed_forms_by_every_way(trials, expected):
    table = ceilings(planted(3), trials=trials, ncsnr=np.array([1.0, 0.0]))
    table = table.set_index(["kind", "roi"])
    for kind in ("repeats", "split-half", "ncsnr"):
        assert table.loc[(kind, "V1"), "median"] == pytest.approx(expected, abs=0.06)
        assert table.loc[(kind, "V2"), "median"] == pytest.approx(0, abs=0.12)
        assert table.loc[(kind, "all"), "n"] == 2
        assert np.isnan(table.loc[(kind, "none"), "median"])
        assert table.loc[(kind, "none"), "note"].startswith("not available")


def test_what_is_not_available_is_a_sentence_and_no_number():
    table = ceilings(planted(1)).set_index(["kind", "roi"])
    assert table["median"].isna().all()
    assert table["note"].str.startswith("not available: ").all()
    said = table.loc[("repeats", "V1"), "note"]
    assert said.startswith("not available: every stimulus has a single trial")
    few = planted(2).select(np.arange(4))
    table = ceilings(few).set_index(["kind", "roi"])
    assert table.loc[("split-half", "V1"), "note"].startswith(
        "not available: 2 stimuli are repeated, and 3 repeated stimuli are needed"
    )
    assert table.loc[("repeats", "V1"), "n"] == 1


def test_recovery_stands_beside_and_people_stay_apart():
    both = planted(2, subject=["1", "1"] * 200 + ["2", "2"] * 200)
    table = ceilings(both, recovery={"CLIP": [0.8, 0.9, 1.0], "SSIM": [0.3]})
    rows = table[table["kind"] == "recovery"].set_index("roi")
    assert rows.loc["CLIP", "median"] == pytest.approx(0.9)
    assert rows.loc["CLIP", "low"] < 0.9 < rows.loc["CLIP", "high"]
    assert rows.loc["SSIM", "note"].startswith("not available: 1 items")
    assert set(table[table["kind"] == "repeats"]["subject"]) == {"1", "2"}


def test_hostile_ceilings():
    with pytest.raises(UsageError, match="ncsnr has shape"):
        ceilings(planted(2), ncsnr=np.ones(3))
    with pytest.raises(UsageError, match="ROI 'V1' has shape"):
        ceilings(planted(2), rois={"V1": np.ones(5, bool)})
    with pytest.raises(UsageError, match="means of 0 trials"):
        ceilings(planted(2), trials=0)
    with pytest.raises(UsageError, match="1 frames a trial"):
        ceilings(planted(2), frame_weights=np.ones(4))


def test_a_simulated_subject_has_the_ceiling_that_was_planted():
    """By the least-squares amplitude of each trial; features have unit variance as planted."""
    cortex = load_visual_cortex()
    n = 40
    scores = np.random.default_rng(0).standard_normal((n, 1))
    scores = ((scores - scores.mean()) / scores.std(ddof=1)).astype(np.float32)
    amplitude = np.full(cortex.n_vertices, 0.8, np.float32)
    weights = {"category": np.ones((1, cortex.n_vertices), np.float32)}
    subject = PlantedSubject(1, 0, cortex, weights, amplitude, 0.5, 4.0, {})
    nothing = np.zeros((n, 1), np.float32)
    names = [f"s{k}" for k in range(n)]
    shown = record(subject, StimulusFeatures(nothing, nothing, scores), names, split="a", repeats=2)
    h = haemodynamic_response().astype(float)
    for trials in (1, 4):
        expected = subject.noise_ceiling(trials)[0]
        for _, kind, values, _ in ceiling_maps(shown, frame_weights=h / (h @ h), trials=trials):
            if kind != "ncsnr":
                assert np.median(values) == pytest.approx(expected, abs=0.05), kind
