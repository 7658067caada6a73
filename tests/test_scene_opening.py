"""The simulated scenes as a data set that is opened by name."""

import numpy as np
import pytest

from neurodiff.core.errors import UsageError
from neurodiff.datasets.opening import check_dataset, open_dataset
from neurodiff.datasets.simulated import scene_opening
from neurodiff.datasets.simulated.scene_opening import SCENE_SIZES, simulated_scene_stimuli


@pytest.fixture
def few(monkeypatch):
    """The smallest size with fewer scenes; nothing of it is kept."""
    counts = scene_opening.SceneCounts(train=12, test=4, categories=("car", "lamp"))
    monkeypatch.setitem(SCENE_SIZES, "tiny", counts)
    monkeypatch.setattr(scene_opening, "_LAST", {})
    monkeypatch.setattr(scene_opening, "_RECORDED", {})


def test_trials_and_stimuli(few):
    recording, stimuli = open_dataset("simulated_scenes_tiny", subject=2)
    trials = recording.trials
    assert recording.data.shape == (16 * 3, 8921)
    assert recording.simulated
    assert stimuli.simulated
    assert set(trials["subject"]) == {"sim-02"}
    assert trials.groupby("split")["stimulus"].nunique().to_dict() == {"test": 4, "train": 12}
    assert set(trials.groupby("stimulus").size()) == {3}
    assert set(trials["stimulus"]) == set(stimuli.ids)
    assert set(stimuli.categories()) == {"car", "lamp"}
    assert all(len(stimuli.captions(name)) == 3 for name in stimuli.ids)


def test_subjects_seeds_and_repeats_differ_and_are_the_same_again(few):
    first = open_dataset("simulated_scenes_tiny", repeats=1)[0].array()
    assert first.shape == (16, 8921)
    other = open_dataset("simulated_scenes_tiny", repeats=1, subject=2)[0].array()
    again = open_dataset("simulated_scenes_tiny", repeats=1)[0].array()
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.5
    assert not np.array_equal(first, open_dataset("simulated_scenes_tiny", seed=1, repeats=1)[0])


def test_stimuli_alone_draw_the_same_pictures(few):
    name = "test-scene-00002"
    alone = np.asarray(simulated_scene_stimuli("tiny", 0)[name].image())
    _, stimuli = open_dataset("simulated_scenes_tiny", repeats=1)
    np.testing.assert_array_equal(alone, np.asarray(stimuli[name].image()))


def test_check_and_what_is_refused(few):
    assert (check_dataset("simulated_scenes")["status"] == "ok").all()
    with pytest.raises(UsageError, match=r"no size 'tinny'.*Did you mean 'tiny'"):
        open_dataset("simulated_scenes", size="tinny")
    with pytest.raises(UsageError, match="simulated subjects are 1, 2, 3"):
        open_dataset("simulated_scenes", size="tiny", subject="none")
    with pytest.raises(UsageError, match="nothing to record"):
        open_dataset("simulated_scenes", size="tiny", repeats=0)
