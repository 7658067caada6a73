"""A simulated study in the layout of a published release, through every verb."""

import numpy as np
import pytest
from typer.testing import CliRunner

import neurodiff as nd
from neurodiff.analysis.ceilings import ceiling_text
from neurodiff.cli import app
from neurodiff.core.errors import UsageError
from neurodiff.datasets.opening import check_dataset, open_dataset
from neurodiff.datasets.simulated.release import write_fmri_objaverse, write_fmri_shape
from neurodiff.datasets.simulated.study import StudySettings, make_study
from neurodiff.datasets.surface import FlatImageSpace, load_visual_cortex

pytestmark = pytest.mark.slow  # simulates a study, and trains on it

TRAIN, TEST = 24, 4


@pytest.fixture(scope="module")
def study():
    settings = StudySettings(
        train_per_category=7, test_per_category=2, unseen_per_category=1, n_categories=4
    )
    return make_study(settings, seed=0)


@pytest.fixture(scope="module")
def shape(study, session_tmp):
    return write_fmri_shape(study, session_tmp / "shape", train=TRAIN, test=TEST, frames=3)


@pytest.fixture(scope="module")
def objaverse(study, session_tmp):
    return write_fmri_objaverse(study, session_tmp / "objaverse", train=TRAIN, test=TEST, frames=2)


def test_the_layouts_are_those_of_the_readers(shape, objaverse):
    for name, root, frames in (("fmri_shape", shape, 3), ("fmri_objaverse", objaverse, 2)):
        table = check_dataset(name, root=root)
        assert (table["status"] == "ok").all(), table[table["status"] != "ok"]
        recording, stimuli = open_dataset(name, root=root, subject=1)
        assert recording.data.shape == (TRAIN + TEST, frames, 65536)
        assert recording.simulated
        assert stimuli.simulated
        assert len(set(stimuli.categories())) == 4
        assert stimuli[stimuli.ids[0]].mesh().is_watertight
        assert "not available" in ceiling_text(recording)
    mesh = stimuli[stimuli.ids[0]].mesh()
    assert len(np.unique(mesh.visual.to_color().vertex_colors, axis=0)) == 2
    assert len(stimuli[stimuli.ids[0]].caption) > 5


def test_values_are_those_of_the_study_in_published_units(study, shape):
    """Where a pixel shows one vertex alone, each run is an offset and a scale of the study."""
    recording, _ = open_dataset("fmri_shape", root=shape, subject=1)
    source = study.record("train")
    name = recording.trials["stimulus"][0]
    row = list(source.trials["stimulus"]).index(name)
    found = FlatImageSpace().to_vertices(recording.data[0])
    alone = np.diff(load_visual_cortex().sampling.indptr) == 1
    x, y = source.data[row][:3][:, alone].ravel(), found[:, alone].ravel()
    scale, offset = np.polyfit(x, y, 1)
    assert 2.2 < scale < 4.9
    assert 0.7 < offset < 4.9
    assert np.corrcoef(x, y)[0, 1] > 0.97
    outside = ~load_visual_cortex().mask.ravel()
    assert not recording.data[0][:, outside].any()


def test_more_than_the_study_holds_is_refused(study, tmp_path):
    with pytest.raises(UsageError, match="99 train objects were asked for; the study has 28"):
        write_fmri_shape(study, tmp_path, train=99)


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="neurodiff")
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.mark.parametrize("name", ["fmri_shape", "fmri_objaverse"])
def test_one_epoch_is_trained_decoded_and_evaluated(name, shape, objaverse, tmp_path):
    root = shape if name == "fmri_shape" else objaverse
    steps = {"tokenizer.training": 3, "decoder.training": 2, "decoder.adapters": 2,
             "bridge.training": 3}  # fmt: skip
    settings = [part for key, n in steps.items() for part in ("-s", f"{key}.steps={n}")]
    settings += ["-s", "mesh.threshold=0.3"]
    out = ["--root", root, "--subject", 1, "--out", tmp_path]
    run = call("fit", "mind3d_tiny", "--data", name, *out, *settings).splitlines()[-1]
    call("reconstruct", run)
    text = call("evaluate", run)
    assert f"simulated: {TEST} items" in text
    assert "CD" in text
    assert "sub-0001: not available: every stimulus has a single trial" in text
    assert nd.Run.open(run).inputs["simulated"] is True
