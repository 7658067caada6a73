"""``ct fit`` without pairs, ``ct radiomics`` of tilted slices, ``ct qa`` with a named reference."""

import errno
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from neurodiff.analysis.ct_apply import HowToApply, apply_cohort
from neurodiff.analysis.ct_cohort import Case, as_text
from neurodiff.analysis.ct_qa import write_qa
from neurodiff.analysis.ct_radiomics import image_and_masks, write_table
from neurodiff.analysis.ct_verbs import fit_mapping, fit_phantom, index_archive
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.processes import began, machine
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_series import read_series
from neurodiff.datasets.simulated.ct_archive import SimulatedHeader, write_simulated_series
from neurodiff.pipelines.ct_standardizer import CTStandardizer

SPACING = (0.7, 0.7)


def write(folder, hu, **header):
    step = header.pop("step_mm", 1.0)
    facts = SimulatedHeader(**{"patient": 1, **header})
    return write_simulated_series(folder, hu, SPACING, facts, step_mm=step)


def test_phantom_scans_need_not_be_pairs(tmp_path):
    def noise(seed, blur):
        rough = np.random.default_rng(seed).normal(0, 60, (6, 96, 96))
        return gaussian_filter(rough, (0, blur, blur), mode="wrap")

    write(tmp_path / "sharp", noise(0, 0.0), kernel="SHARP")
    write(tmp_path / "soft", noise(1, 1.2), kernel="SOFT", series=2)
    text = fit_phantom(tmp_path / "sharp", tmp_path / "soft", tmp_path / "m")
    assert "SHARP" in text
    made = CTStandardizer.from_pretrained(tmp_path / "m")
    found = made.mapping.filters["sharp_soft.json"]
    f = np.array([2.0, 3.0, 4.0])
    truth = np.exp(-2 * (np.pi * 1.2 * 0.7 * f / 10) ** 2)
    assert np.abs(found.at(f) - truth).max() < 0.08
    write(tmp_path / "other", noise(1, 1.2), kernel="SOFT", series=3, vendor="GE")
    with pytest.raises(DataError, match="of a scanner"):
        fit_phantom(tmp_path / "sharp", tmp_path / "other", tmp_path / "n")


def test_thick_slices_from_thin_ones(tmp_path):
    rng = np.random.default_rng(0)
    thin = gaussian_filter(rng.normal(0, 80, (40, 32, 32)), (0.7, 0, 0))
    centres = np.arange(4, 36, 3)
    thick = np.stack([thin[c - 1 : c + 2].mean(axis=0) for c in centres])
    write(tmp_path / "thin", thin)
    paths = write(tmp_path / "thick", thick, thickness_mm=3.0, series=2, step_mm=3.0)
    import pydicom

    for path in paths:  # the thick slices begin at the fifth thin one
        one = pydicom.dcmread(path)
        one.ImagePositionPatient[2] += 4.0
        one.save_as(path)
    fit_mapping([tmp_path / "thin"], [tmp_path / "thick"], tmp_path / "m", kind="thickness")
    rule = CTStandardizer.from_pretrained(tmp_path / "m").mapping.rules[0]
    assert np.allclose(rule.taps, [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0], atol=0.02)
    with pytest.raises(UsageError, match="kernel and thickness"):
        fit_mapping([tmp_path / "thin"], [tmp_path / "thick"], tmp_path / "n", kind="dose")


def test_masks_follow_tilted_slices(tmp_path):
    import pydicom

    hu = np.full((6, 40, 40), -1000.0)
    hu[:, 12:24, 10:26] = 50
    for k, path in enumerate(sorted(write(tmp_path / "s", hu), key=_height)):
        one = pydicom.dcmread(path)
        one.ImagePositionPatient[1] += 0.35 * k  # the gantry leans: a shift down the columns
        one.save_as(path)
    series = read_series(tmp_path / "s")
    assert not series.regular
    labels = np.ascontiguousarray((hu == 50).astype(np.float32).transpose(2, 1, 0)[None])
    Volume(labels, series.affine).save(tmp_path / "mask.nii.gz")
    case = Case(scan="a", subject="a", files=tuple((tmp_path / "s").iterdir()))
    image, spacing, masks = image_and_masks(case, tmp_path / "mask.nii.gz")
    mask = masks["mask"]
    assert mask.shape == image.shape
    assert abs(np.median(image[mask]) - 50) < 1
    volume = mask.sum() * np.prod(spacing)
    # whole slices end half way to the next plane of the grid
    assert abs(volume / (6 * 12 * 16 * 0.7**2) - 1) < 0.15


def _height(path):
    import pydicom

    return float(pydicom.dcmread(path).ImagePositionPatient[2])


def test_a_reference_may_be_named(tmp_path):
    rng = np.random.default_rng(3)
    sharp = rng.normal(0, 60, (3, 64, 64))
    soft = gaussian_filter(sharp, (0, 1.4, 1.4), mode="wrap")
    write(tmp_path / "a" / "sharp", sharp, kernel="SHARP")
    write(tmp_path / "soft", soft, kernel="SOFT", series=2)
    fit_mapping([tmp_path / "a" / "sharp"], [tmp_path / "soft"], tmp_path / "m")
    done = apply_cohort(tmp_path / "a", tmp_path / "out", tmp_path / "m")
    (scan,) = done.made
    place = (tmp_path / "out", tmp_path / "a", tmp_path / "qa.html")
    write_qa(*place)
    assert "not known" in json.loads((tmp_path / "qa.json").read_text())["headline"][-1]
    write_qa(*place, references=[f"{scan}={tmp_path / 'soft'}"])
    numbers = json.loads((tmp_path / "qa.json").read_text())
    assert "agree with the reference" in numbers["headline"][0]
    table = next(t for t in numbers["tables"] if t["title"].endswith("by class"))
    assert "3 slices, 0 phantoms, 1 patient." in table["note"]
    rows = pd.DataFrame(table["rows"], columns=table["columns"]).set_index("feature class")
    assert rows.loc["all", "CCC after"] > rows.loc["all", "CCC before"] + 0.5
    with pytest.raises(UsageError, match="SCAN=DIR"):
        write_qa(*place, references=["soft"])


@pytest.mark.parametrize("to", ["dicom", "nifti"])
def test_features_of_results(tmp_path, to):
    from neurodiff.analysis.ct_apply import HowToApply, apply_cohort
    from neurodiff.analysis.ct_radiomics import extract

    rng = np.random.default_rng(4)
    sharp = rng.normal(0, 60, (3, 48, 40))
    soft = gaussian_filter(sharp, (0, 1.4, 1.4), mode="wrap")
    write(tmp_path / "a" / "sharp", sharp, kernel="SHARP")
    write(tmp_path / "soft", soft, kernel="SOFT", series=2)
    fit_mapping([tmp_path / "a" / "sharp"], [tmp_path / "soft"], tmp_path / "m")
    other = tmp_path / "b"  # another model of the vendor
    write(other, sharp, kernel="SHARP", model="Other")
    done = apply_cohort(other, tmp_path / "none", tmp_path / "m")
    assert not done.made
    assert done.failed["step"].tolist() == ["uncovered"]
    how = HowToApply(to=to, extrapolate=True)
    (scan,) = apply_cohort(other, tmp_path / "out", tmp_path / "m", how).made
    labels = np.zeros((3, 48, 40), np.float32)
    labels[:, 10:30, 8:28] = 1
    data = np.ascontiguousarray(labels.transpose(2, 1, 0)[None])
    Volume(data, read_series(other).affine).save(tmp_path / f"{scan}.nii.gz")
    found = extract(tmp_path / "out", str(tmp_path / "{scan}.nii.gz"), tmp_path / "f.csv")
    assert found.table["scan"].tolist() == [scan]
    assert found.table["kernel"].tolist() == ["SIMULATED SOFT"]
    inner = soft[:, 10:30, 8:28]
    assert abs(found.table["stat_var"][0] / inner.var() - 1) < 0.1


def test_a_folder_of_one_letter_spoils_no_message():
    case = Case(scan="anon-1_S2", subject="anon-1", files=(Path("a/b/1.dcm"), Path("a/b/2.dcm")))
    reason = "a/b lacks a slice after a/b/2.dcm; copy it again"
    assert case.without_paths(reason) == "anon-1_S2 lacks a slice after file 2; copy it again"


@pytest.mark.parametrize("verb", ["index", "fit", "apply", "radiomics"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, verb):
    pair = _scans_of_two_kernels(tmp_path / "a")
    (tmp_path / "file").write_text("not a folder")
    out = tmp_path / "file" / "x.parquet"
    fit_mapping(*pair, tmp_path / "m")
    call = {
        "index": lambda: index_archive(tmp_path / "a", out),
        "fit": lambda: fit_mapping(*pair, out),
        "apply": lambda: apply_cohort(tmp_path / "a", out, tmp_path / "m"),
        "radiomics": lambda: write_table(pd.DataFrame({"scan": ["s"], "x": [1.0]}), out, {}),
    }[verb]
    with pytest.raises(DataError, match="could not be written"):
        call()


def test_a_writer_of_another_language_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def refuse(table, path):
        raise FileNotFoundError(2, f"Failed to open local file '{path}'. Detail: no such place")

    write(tmp_path / "a", np.zeros((2, 48, 48)))
    import pyarrow.parquet

    monkeypatch.setattr(pyarrow.parquet, "write_table", refuse)
    with pytest.raises(DataError) as found:
        index_archive(tmp_path / "a", tmp_path / "x.parquet")
    assert ".tmp" not in str(found.value)
    assert "x.parquet could not be written (No such file or directory)" in str(found.value)


def test_messages_without_paths_keep_their_numbers(tmp_path):
    files = (tmp_path / "Doe^Jane" / "1", tmp_path / "Doe^Jane" / "IM_DOE.dcm")
    case = Case(scan="anon-1", subject="anon-1", files=files)
    reason = f"{files[1]} lacks 1 slice after IM_DOE.dcm in {files[0].parent}; it is cut off"
    assert case.without_paths(reason) == (
        "file 2 lacks 1 slice after file 2 in anon-1; it is cut off"
    )


def test_tables_in_a_terminal():
    table = pd.DataFrame({"kernel": ["B", None], "mm": [1.0, np.nan]})
    assert as_text(table).splitlines() == ["kernel  mm", "B       1", "-       -"]
    assert as_text(table[:0]) == "(none)"


def _scans_of_two_kernels(folder):
    sharp = np.random.default_rng(0).normal(0, 60, (4, 48, 48))
    for name, hu in (("sharp", sharp), ("soft", gaussian_filter(sharp, (0, 1, 1)))):
        write(folder / name, hu, kernel=name.upper(), series=len(name))
    return [folder / "sharp"], [folder / "soft"]


def test_a_killed_run_leaves_nothing_behind_the_next_one(tmp_path):
    fit_mapping(*_scans_of_two_kernels(tmp_path / "a"), tmp_path / "m")
    here = machine()
    dead, alive = f"{here}.{2**22 + 5}.7", f"{here}.{os.getpid()}.{began(os.getpid())}"
    left = tmp_path / "o" / f".tmp-new-{dead}-0a1b2c3d-.tmp-new-{dead}-0a1b2c3e-anon-1_S2"
    stay = [
        tmp_path / "o" / name
        for name in (
            f".tmp-new-{alive}-0a1b2c3d-x",  # it runs
            f".tmp-old-{dead}-0a1b2c3d-x",  # the only copy, killed between two renames
            ".tmp-mine",  # not ours
            ".tmp-new-0000beef.7.7-0a1b2c3f-fresh",  # of another machine
        )
    ]
    long_ago = time.time() - 100
    for folder in (left, *stay):
        (folder / "inner").mkdir(parents=True)
        for path in (folder / "inner", folder):
            os.utime(path, (long_ago, long_ago))
    (stay[-1] / "inner" / "slice").write_text("now")
    apply_cohort(tmp_path / "a", tmp_path / "o", tmp_path / "m")
    assert not left.exists()
    assert all(folder.exists() for folder in stay)


@pytest.mark.parametrize("to", ["dicom", "nifti"])
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, to):
    fit_mapping(*_scans_of_two_kernels(tmp_path / "a"), tmp_path / "m")
    plain = io.open

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(file, mode="r", *rest, **named):
        name = str(file)
        if mode[:1] in "wx" and name.endswith((".dcm", ".nii.gz")):
            return Full(file, mode.replace("b", "").replace("+", ""))
        return plain(file, mode, *rest, **named)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr("builtins.open", opened)
    done = apply_cohort(tmp_path / "a", tmp_path / "o", tmp_path / "m", HowToApply(to=to))
    assert len(done.failed) == 2
    for reason in done.failed["reason"]:
        assert reason.startswith("disk full: ")
        assert "Traceback" not in reason
        assert "\n" not in reason
        assert ".tmp" not in reason
