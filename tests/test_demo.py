"""The demo at its smallest size: one page at the end, nothing twice, the same after a kill."""

import json
import shutil

import pandas as pd
import pytest

from neurodiff.analysis import demo
from neurodiff.core.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="finished")
def _finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    demo.run_demo(out=folder, seed=3, size="tiny")
    return folder


def test_page_shows_every_condition_and_says_simulated(finished):
    page = (finished / "report.html").read_text()
    numbers = json.loads((finished / "report.json").read_text())
    assert numbers["simulated"] is True
    assert "simulated" in page.lower()
    for name in demo.ROLES:
        assert name in page
    assert page.count("fixed random draw") >= 20
    for reason in ("best", "median", "worst"):
        assert reason in page


def test_baselines_score_what_they_must(finished):
    """What the planted truth fixes, whatever the (tiny) networks have learned."""
    scores = pd.read_csv(finished / "scores.csv").set_index("condition")
    assert set(demo.ROLES) <= set(scores.index)
    same, random = scores.loc[demo.SAME], scores.loc[demo.RANDOM]
    assert same.CD.mean() < random.CD.mean()
    assert same["2-way"].mean() > 0.9  # a true object of the right category
    assert abs(random["2-way"].mean() - 0.5) < 0.35  # 24 objects, mostly of another category
    assert len(scores.loc[demo.OURS]) == 24


def test_second_call_repeats_nothing(finished, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was done again")

    monkeypatch.setattr(demo, "decode_simulated_subject", never)
    assert demo.run_demo(out=finished, seed=3, size="tiny").startswith("done before")


def test_a_kill_while_sampling_and_reporting_changes_nothing(finished, tmp_path, monkeypatch):
    """Scores, items and the page are lost half-way; the same call makes them again, untrained."""
    import neurodiff.pipelines.mind3d_fitting as pipeline

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "report.html").write_text("half a pa")
    shutil.rmtree(next((folder / "stages").glob("report-*")))
    for lost in sorted((folder / "stages").glob("scores*"))[::2]:
        shutil.rmtree(lost)
    items = sorted((folder / "items").glob("*/*"))
    for item in items[::3]:
        (item / "mesh.ply").write_bytes(b"ply")  # a truncated file no longer fits done.json
    before = pd.read_csv(finished / "scores.csv")
    (folder / "scores.csv").unlink()

    def never(*_, **__):
        raise AssertionError("a fitted stage was trained again")

    monkeypatch.setattr(pipeline, "train", never)
    demo.run_demo(out=folder, seed=3, size="tiny")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "scores.csv"), before)
    one = json.loads((finished / "report.json").read_text())
    two = json.loads((folder / "report.json").read_text())
    assert two["conditions"] == one["conditions"]
    assert two["gates"] == one["gates"]


def test_a_folder_of_another_seed_is_refused(finished):
    with pytest.raises(UsageError, match="seed"):
        demo.run_demo(out=finished, seed=4, size="tiny")


@pytest.mark.parametrize(("kind", "size"), [("brain-difuser", "tiny"), ("mind3d", "huge")])
def test_unknown_demo_or_size(kind, size, tmp_path):
    with pytest.raises(UsageError, match=r"there is no (demo|size)"):
        demo.run_demo(kind, tmp_path / "x", size=size)
