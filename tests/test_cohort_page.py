"""The page of a cohort: every scan is flagged, what cannot be read is listed, text is escaped."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurodiff.analysis.cohort_page import cohort_page, slices
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import UsageError
from neurodiff.core.volume import Volume
from neurodiff.datasets.simulated.brains import BrainSettings, SimulatedBrains


@pytest.fixture(scope="module")
def brains():
    return SimulatedBrains(BrainSettings(subjects=6, months=(0.0,), shape=(40, 48, 40)), seed=0)


@pytest.fixture
def cohort(tmp_path, brains):
    rows = []
    for number, name in enumerate(brains.names):
        volume = brains.scan(name, 0.0)
        if number == 2:
            volume = volume.reoriented("LPS")
        path = volume.save(tmp_path / f"{name}.nii.gz")
        rows.append((name, 0.0, str(path), "CN", "<b>site</b>"))
    (tmp_path / "sim-0004.nii.gz").write_text("no image")
    left = pd.DataFrame([("x", "y", "a second scan")], columns=["scan", "path", "reason"])
    return Cohort(
        pd.DataFrame(rows, columns=["subject", "session", "path", "diagnosis", "site"]),
        left_out=left, name="mine", simulated=True,
    )  # fmt: skip


def test_page_and_table(tmp_path, cohort):
    table = cohort_page(cohort, tmp_path / "qc.html")
    assert table["flags"].tolist() == ["", "", "orientation", "failed", "", ""]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "qc.csv", keep_default_na=False), table, check_dtype=False
    )
    page = (tmp_path / "qc.html").read_text()
    assert page.count("<article") == 6
    assert page.count("data:image/jpeg;base64,") == 5 * 3
    assert "Simulated" in page
    assert "the axes run LPS" in page
    assert "damaged or no image" in page
    assert "a second scan" in page
    assert "<b>site</b>" not in page
    assert "&lt;b&gt;site&lt;/b&gt;" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_flagged_scans_are_shown_first(tmp_path, cohort):
    table = cohort_page(cohort, tmp_path / "qc.html", shown=2)
    page = (tmp_path / "qc.html").read_text()
    assert len(table) == 6
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["sim-0003_M000", "sim-0004_M000"]
    assert "2 of 6 scans" in page


def test_slices_are_upright_and_square_in_mm():
    data = np.zeros((1, 20, 30, 10), np.float32)
    data[0, :, :, 8:] = 1.0  # the top is bright
    volume = Volume(data, np.diag([2.0, 2.0, 8.0, 1.0])).reoriented("LPI")
    sagittal, coronal, axial = slices(volume)
    assert sagittal.size == (84, 112)  # 60 mm to the front, 80 mm up
    assert coronal.size == (56, 112)
    assert axial.size == (75, 112)
    assert np.asarray(sagittal)[2].mean() > 200
    assert np.asarray(sagittal)[-2].mean() < 20


def test_pictures_are_those_of_the_scan(tmp_path, brains):
    cohort_page(brains.cohort(), tmp_path / "qc.html")
    uri = re.search(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / "qc.html").read_text()).group(1)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("L"), float)
    want = np.asarray(slices(brains.scan("sim-0001", 0.0))[0], float)
    assert np.abs(picture - want).mean() < 8


def test_names_that_are_wrong(tmp_path, brains):
    with pytest.raises(UsageError, match=r"\.html"):
        cohort_page(brains.cohort(), tmp_path / "qc.pdf")
    with pytest.raises(UsageError, match="from 1"):
        cohort_page(brains.cohort(), tmp_path / "qc.html", shown=0)
