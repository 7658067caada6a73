"""The CT demo at its smallest size: the chain, its bars, its page, and that nothing repeats."""

import json

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.ct_demo import leaks, run_ct_demo
from neurodiff.analysis.ct_demo_directions import demo_kernels, scans_of
from neurodiff.analysis.ct_pictures import SIDE, before_after, crop, difference
from neurodiff.core.errors import UsageError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("ct") / "demo"
    return out, run_ct_demo(out, 0, "tiny")


def test_every_bar_of_the_chain_is_reached(demo):
    out, text = demo
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["simulated"]
    missed = [gate for gate in numbers["gates"] if gate["passed"] is False]
    assert not missed
    stages = {gate["stage"] for gate in numbers["gates"]}
    assert {"fit", "mean HU", "clinical scores", "cohort", "privacy", "hard directions"} <= stages
    assert "Every bar was reached." in text


def test_hard_directions_are_worse_and_said_so(demo):
    numbers = json.loads((demo[0] / "report.json").read_text())
    tables = {table["title"]: table for table in numbers["tables"]}
    table = tables["Directions"]
    rows = pd.DataFrame(table["rows"], columns=table["columns"]).set_index("direction")
    gone = rows.loc["smooth to sharp: information is gone"]
    easy = rows.loc["sharp to soft"]
    assert gone["CCC after"] < easy["CCC after"] - 0.2
    assert gone["RMSE after"] > 10 * easy["RMSE after"]
    thick = rows.loc["slices of 1 mm to 5 mm"]
    assert thick["CCC after"] > 0.95 > thick["CCC before"] + 0.2
    assert thick["RMSE after"] < 0.1 * thick["RMSE before"]
    assert "a mean over 7 slices" in thick["what was said"]
    assert "iterative" in rows.loc["sharp to soft with iterative reconstruction", "what was said"]


def test_refusals_are_listed_with_their_reasons(demo):
    failed = pd.read_csv(demo[0] / "work" / "standardized" / "failed.csv")
    reasons = " ".join(failed["reason"])
    for words in ("no kernel", "share no raw data", "iterative", "5 mm", "no rule", "one place",
                  "cannot be decoded"):  # fmt: skip
        assert words in reasons
    assert leaks(demo[0] / "work" / "standardized") == []
    assert leaks(demo[0] / "work" / "archive")  # the check finds them where they are


def test_a_network_has_its_row_or_its_refusal(tmp_path, repository):
    recipe = (repository / "pipelines" / "ct_diffusion_tiny.yaml").read_text()
    recipe = recipe.replace("train: [one-step, unet, gan]", "train: []")
    mine = tmp_path / "mine.yaml"
    mine.write_text(recipe.replace("regions: 6}", "regions: 6, least: 0.0}"))
    run_ct_demo(tmp_path / "demo", 0, "tiny", diffusion=str(mine))
    numbers = json.loads((tmp_path / "demo" / "report.json").read_text())
    table = next(t for t in numbers["tables"] if t["title"] == "Directions")
    rows = pd.DataFrame(table["rows"], columns=table["columns"]).set_index("direction")
    row = rows.loc["sharp to soft, diffusion"]
    assert row["CCC after"] > row["CCC before"]
    assert "drawn, not measured" in row["what was said"]


def test_a_second_call_repeats_nothing(demo):
    out, text = demo
    before = (out / "report.html").stat().st_mtime_ns
    again = run_ct_demo(out, 0, "tiny")
    assert again.startswith("done before")
    assert again.endswith(text.splitlines()[-1])
    assert (out / "report.html").stat().st_mtime_ns == before


def test_sizes_are_named(tmp_path):
    with pytest.raises(UsageError, match="tiny"):
        run_ct_demo(tmp_path / "x", 0, "tny")


def test_a_smooth_kernel_leaves_less_than_rounding():
    smooth = demo_kernels()["SMOOTH"]
    at = float(np.interp(3.4, smooth.frequency, smooth.gain))
    assert 80 * at < 0.29  # noise of 80 HU against the SD of rounding to whole HU
    assert scans_of([{"a": np.array([0.4, 1.6])}])[0]["a"].tolist() == [0.0, 2.0]


def test_pictures_show_pixels_as_they_are():
    wanted = np.zeros((300, 200), bool)
    wanted[250:, 150:] = True
    rows, columns = crop(wanted.astype(float), wanted)
    assert (rows.stop, columns.stop) == (300, 200)
    assert rows.stop - rows.start == columns.stop - columns.start == SIDE
    colours = np.asarray(difference(np.array([[-5.0, 0.0, 5.0]]), 5.0))[0]
    assert colours.tolist() == [[0, 0, 255], [255, 255, 255], [255, 0, 0]]
    before = np.zeros((64, 64), np.float32)
    pictures = before_after(before, before + 1, None, np.zeros(before.shape, bool))
    assert [one is None for one in pictures] == [False, False, False, True, False, True]
