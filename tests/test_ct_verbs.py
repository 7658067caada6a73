"""``neurodiff ct``: verbs on simulated archives, and one sentence for each kind of bad input."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_series import read_series


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_shared = _load("ct_archives")
ct, scan, write, folders, key_of = (
    getattr(_shared, name) for name in ("ct", "scan", "write", "folders", "key_of")
)
SIZE, SPACING = _shared.SIZE, _shared.SPACING
fitted, archive = _shared.fitted, _shared.archive  # fixtures


def test_a_cohort_is_standardized_and_resumed(tmp_path, fitted, archive):
    out = tmp_path / "out"
    text = ct("apply", archive, out, "--mapping", fitted)
    # the table comes before any result
    assert text.index("it is the standard already") < text.index("apply:")
    assert "4 standardized, 0 done before, 0 not done" in text
    assert not (out / "failed.csv").exists()
    names = folders(out)
    assert len(names) == 4
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/*")}
    assert "0 standardized, 4 done before" in ct("apply", archive, out, "--mapping", fitted)
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("*/*")}
    for name in names:
        record = json.loads((out / name / "done.json").read_text())
        made = read_series(out / name)
        assert made.facts.derived
        if record["report"]["status"] == "mapped":
            patient = 1 if made.sources[0].study.split(".")[-2] == "1" else 2
            wanted = read_series(archive / f"p{patient}" / "soft").hu
            raw = read_series(archive / f"p{patient}" / "sharp").hu
            # the edges wrap in the truth and mirror in the filter
            inner = np.s_[:, 8:-8, 8:-8]
            error = np.std((made.hu - wanted)[inner])
            assert error < 0.15 * np.std((raw - wanted)[inner])
    # a changed input is done again, and no other
    sharp, _ = scan(1)
    write(archive / "p1" / "sharp", sharp + 1, 1, 1, kernel="SHARP")
    assert "1 standardized, 3 done before" in ct("apply", archive, out, "--mapping", fitted)


def test_another_mapping_is_another_result(tmp_path, fitted, archive):
    out = tmp_path / "out"
    ct("apply", archive, out, "--mapping", fitted)
    settings = json.loads((fitted / "settings.json").read_text())
    settings["settings"]["amplify"] = 20.0
    (fitted / "settings.json").write_text(json.dumps(settings))
    assert "4 standardized, 0 done before" in ct("apply", archive, out, "--mapping", fitted)


def test_nothing_of_a_person_gets_out(tmp_path, fitted, archive):
    key = tmp_path / "key"
    key.write_text("a secret that is long enough")
    broken = write(archive / "SIM-0003 Simulated", scan(3, 6)[0], 3, 1, leave_out=(2,))
    assert broken
    out = tmp_path / "out"
    text = ct("apply", archive, out, "--mapping", fitted, "--deidentify", "--key-file", key, code=1)
    assert "SIM-0" not in text
    assert "Simulated^" not in text
    assert list(out.glob("anon-*"))
    for path in out.rglob("*"):
        assert "SIM-0" not in str(path.relative_to(out))
        content = path.read_bytes() if path.is_file() else b""
        for secret in (b"SIM-0", b"Simulated^Person", b"19500101", b"20200101", b"8.498.8."):
            assert secret not in content, path
    failed = pd.read_csv(out / "failed.csv")
    assert len(failed) == 1
    assert failed["scan"].iloc[0].startswith("anon-")
    assert "lacks 1 slice" in failed["reason"].iloc[0]
    assert failed["reason"].iloc[0].endswith("or pass --missing interpolate")
    # names are the same in every run with one secret
    other = tmp_path / "other"
    ct("apply", archive, other, "--mapping", fitted, "--to", "nifti", "--deidentify", "--key-file",
       key, code=1)  # fmt: skip
    assert folders(other) == folders(out)
    text = ct("apply", archive, tmp_path / "x", "--mapping", fitted, "--deidentify", code=2)
    assert "--key-file" in text


def test_index_of_an_archive(tmp_path, archive):
    (archive / "notes.txt").write_text("none")
    text = ct("index", archive, "--out", tmp_path / "i.parquet")
    assert "SHARP" in text
    assert "left out" in text
    assert "13 files: 13 read" in text
    assert "0 read, 13 known before" in ct("index", archive, "--out", tmp_path / "i.parquet")
    assert "ends in .parquet" in ct("index", archive, "--out", tmp_path / "i.csv", code=2)


def test_an_index_finds_its_files(tmp_path, fitted, archive):
    ct("index", archive, "--out", tmp_path / "i.parquet")
    text = ct("apply", tmp_path / "i.parquet", tmp_path / "o", "--mapping", fitted, code=3)
    assert "--root" in text
    text = ct("apply", tmp_path / "i.parquet", tmp_path / "o", "--mapping", fitted, "--root",
              archive, "--dry-run")  # fmt: skip
    assert "nothing was applied" in text
    assert not (tmp_path / "o").exists()


def test_volumes_of_a_table_keep_their_place_and_padding(tmp_path, fitted):
    sharp, soft = scan(4)
    sharp[:, :4] = -2000  # never measured
    affine = np.array(
        [[-0.9, 0, 0, 10], [0, -0.7, 0.05, 20], [0, 0, 1.0, -5], [0, 0, 0, 1]]
    )  # sheared
    data = np.ascontiguousarray(sharp.transpose(2, 1, 0)[None])
    Volume(data, affine, "HU").save(tmp_path / "one.nii.gz")
    facts = "SIMULATED,Digital chest,SHARP,1.0"
    table = tmp_path / "scans.csv"
    table.write_text(f"scan,path,vendor,model,kernel,thickness_mm\na,one.nii.gz,{facts}\n")
    out = tmp_path / "out"
    assert "--to nifti" in ct("apply", table, out, "--mapping", fitted, code=2)
    ct("apply", table, out, "--mapping", fitted, "--to", "nifti")
    made = Volume.open(out / "a" / "a.nii.gz")
    assert np.allclose(made.affine, affine, atol=1e-5)
    planes = made.data[0].transpose(2, 1, 0)
    assert (planes[:, :4] == -1024).all()
    inner = np.s_[:, 14:-8, 8:-8]
    assert np.std((planes - soft)[inner]) < 0.2 * np.std((sharp - soft)[inner])
    assert "0 standardized, 1 done before" in ct("apply", table, out, "--mapping", fitted, "--to",
                                                 "nifti")  # fmt: skip
    table.write_text("scan,path\na,one.nii.gz\n")
    assert "vendor, kernel" in ct("apply", table, out, "--mapping", fitted, "--to", "nifti", code=3)
    table.write_text(f"scan,path,vendor,model,kernel,thickness_mm\n../a,one.nii.gz,{facts}\n")
    text = ct("apply", table, out, "--mapping", fitted, "--to", "nifti", code=3)
    assert "name of a folder" in text


# ------------------------------------------------------------------------------- bad input


def _mri(root):
    write(root, scan(5)[0], 5, 1, modality="MR")


def _zero_spacing(root):
    import pydicom

    for path in write(root, scan(5)[0], 5, 1):
        one = pydicom.dcmread(path)
        one.PixelSpacing = [0, 0]
        one.save_as(path)


def _cut(root):
    for path in write(root, scan(5)[0], 5, 1):
        path.write_bytes(path.read_bytes()[:600])


def _cut_pixels(root):
    for path in write(root, scan(5)[0], 5, 1):
        path.write_bytes(path.read_bytes()[:-900])


def _encrypted(root):
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, 5000, dtype=np.uint8)
        path = root / f"e{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.tobytes())


def _two_series_as_one(root):
    write(root, scan(5)[0], 5, 1, prefix="a")
    write(root, scan(6)[0], 5, 1, prefix="b")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: write(root, scan(5, 6)[0], 5, 1, leave_out=(2,)), "lacks 1 slice"),
        (lambda root: write(root, scan(5)[0], 5, 1, kernel=None), "names no kernel"),
        (lambda root: write(root, scan(5)[0], 5, 1, kernel="FC99"), "no rule for"),
        (lambda root: write(root, scan(5)[0], 5, 1, vendor="GE"), "share no raw data"),
        (lambda root: write(root, scan(5)[0], 5, 1, iterative="AIDR 3D"), "iterative"),
        (_two_series_as_one, "different slices at one place"),
        (_zero_spacing, "PixelSpacing"),
        (_cut_pixels, "cut"),
    ],
)  # fmt: skip
def test_a_bad_scan_is_listed_and_the_others_are_done(tmp_path, fitted, archive, make, words):
    make(archive / "bad")
    out = tmp_path / "out"
    text = ct("apply", archive, out, "--mapping", fitted, code=1)
    assert len(folders(out)) == 4
    failed = pd.read_csv(out / "failed.csv")
    assert failed["reason"].str.contains(words).any(), failed["reason"].tolist()
    assert "Traceback" not in text


def test_patients_mixed_in_a_folder_are_scans_of_their_own(tmp_path, fitted):
    root = tmp_path / "mixed"
    for patient in (1, 2):
        write(root, scan(patient)[0], patient, 1, prefix=f"{patient}")
    _encrypted(root)
    out = tmp_path / "out"
    text = ct("apply", root, out, "--mapping", fitted)
    assert "2 standardized" in text
    assert "3 files are no CT slice, or encrypted" in text
    assert len({name.rsplit("_", 1)[0] for name in folders(out)}) == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [(_mri, "MR"), (_cut, ""), (_encrypted, "no DICOM file"), (_zero_spacing, "PixelSpacing")],
)
def test_a_folder_without_ct_is_refused_by_every_verb(tmp_path, fitted, make, words):
    root = tmp_path / "bad"
    make(root)
    text = ct("index", root, "--out", tmp_path / "i.parquet", code=3)
    assert "is a CT slice" in text
    assert words in text
    ct("apply", root, tmp_path / "o", "--mapping", fitted, code=3)
    text = ct("fit", "--source", root, "--target", root, "--out", tmp_path / "m", code=3)
    assert "--source" in text
    assert len(text.splitlines()) == 1


def test_pairs_that_are_none(tmp_path):
    sharp, soft = scan(0)
    write(tmp_path / "a", sharp, 1, 1, kernel="SHARP")
    write(tmp_path / "b", soft, 1, 2, kernel="SOFT")
    pair = ["--source", tmp_path / "a", "--target", tmp_path / "b"]
    write(tmp_path / "a1", sharp[:1], 1, 1, kernel="SHARP")
    write(tmp_path / "b1", soft[:1], 1, 2, kernel="SOFT")
    out = ["--out", tmp_path / "m"]
    one = ["--source", tmp_path / "a1", "--target", tmp_path / "b1"]
    assert "two or more" in ct("fit", *one, *out, code=2)
    assert "as many" in ct("fit", *pair[:2], *out, code=2)
    assert "as many" in ct("fit", *out, code=2)
    assert "nothing is to be fitted" in ct(
        "fit", "--source", tmp_path / "a", "--target", tmp_path / "a", *out, code=3
    )
    assert "not the same slices" in ct(
        "fit", "--source", tmp_path / "a", "--target", tmp_path / "b1", *out, code=3
    )
    ct("fit", *pair, *out)
    assert "holds a mapping" in ct("fit", *pair, *out, code=2)
    assert "no 'soft'" in ct("fit", "--library", "soft", "--out", tmp_path / "l", code=2)
    # several patients in the folder of one series
    write(tmp_path / "a", sharp, 2, 1, kernel="SHARP", prefix="z")
    text = ct("fit", *pair, "--out", tmp_path / "n", code=3)
    assert "patients" in text
    assert "SIM-" not in text


def test_library_and_recipes(tmp_path):
    text = ct("fit", "--library", "toshiba_fc51_fc13", "--out", tmp_path / "m", "--recipe",
              "ct_linear")  # fmt: skip
    assert "TOSHIBA" in text
    assert "FC13" in text
    text = ct("fit", "--library", "toshiba_fc51_fc13", "--out", tmp_path / "n", "--recipe",
              "ct_lineal", code=2)  # fmt: skip
    assert "ct_linear" in text


# ------------------------------------------------------------------------------- radiomics


@pytest.fixture
def masks(tmp_path, archive):
    for patient in (1, 2):
        for kind in ("sharp", "soft"):
            series = read_series(archive / f"p{patient}" / kind)
            labels = np.zeros(series.hu.shape, np.float32)
            labels[:, 10:30, 8:36], labels[1, 40, 40] = 1, 2
            data = np.ascontiguousarray(labels.transpose(2, 1, 0)[None])
            folder = tmp_path / "masks"
            folder.mkdir(exist_ok=True)
            Volume(data, series.affine).save(folder / f"{kind}.nii.gz")
    return tmp_path / "masks" / "{folder}.nii.gz"


def test_features_of_a_cohort(tmp_path, archive, masks):
    out = tmp_path / "f.parquet"
    text = ct("radiomics", archive, "--rois", masks, "--out", out)
    table = pd.read_parquet(out)
    assert len(table) == 8
    assert set(table["roi"]) == {"1", "2"}
    assert {"stat_mean", "original_firstorder_Mean"} <= set(table.columns)
    assert table["original_firstorder_Mean"].equals(table["stat_mean"].astype(float))
    large = table[(table["roi"] == "1") & (table["kernel"] == "SHARP")]
    truth = scan(1)[0].round()[:, 10:30, 8:36].mean()
    assert np.isclose(large["stat_mean"], truth, atol=1e-3).any()
    # a region of one voxel has its values where they are defined, and a reason elsewhere
    assert "single voxel" in text
    missing = pd.read_csv(tmp_path / "f.missing.csv")
    assert set(missing["roi"].astype(str)) == {"2"}
    assert table.loc[table["roi"] == "2", "stat_mean"].notna().all()


def test_a_mask_on_another_grid_fails_alone(tmp_path, archive, masks):
    series = read_series(archive / "p1" / "soft")
    data = np.ones((1, SIZE // 2, SIZE, 3), np.float32)
    Volume(data, series.affine).save(tmp_path / "masks" / "soft.nii.gz")
    out = tmp_path / "f.csv"
    text = ct("radiomics", archive, "--rois", masks, "--out", out, code=1)
    assert "another grid" in text
    assert len(pd.read_csv(out)) == 4
    assert len(pd.read_csv(tmp_path / "f.failed.csv")) == 2
    assert "{scan}" in ct("radiomics", archive, "--rois", "mask.nii", "--out", out, code=2)
    lost = ct("radiomics", archive, "--rois", "none/{scan}.nii", "--out", out, code=3)
    assert "does not exist" in lost


@pytest.mark.parametrize("to", ["dicom", "nifti"])
def test_features_of_results_name_the_scanner(tmp_path, archive, fitted, masks, to):
    """ComBat needs it; a mask aside of its image is told by how far, not by its shape."""
    out = tmp_path / "o"
    ct("apply", archive / "p1", out, "--mapping", fitted, "--to", to)
    labels = Volume.open(tmp_path / "masks" / "sharp.nii.gz")
    for name in folders(out):
        labels.save(tmp_path / "masks" / f"{name}.nii.gz")
    ct("radiomics", out, "--rois", tmp_path / "masks" / "{scan}.nii.gz", "--out",
       tmp_path / "f.csv")  # fmt: skip
    table = pd.read_csv(tmp_path / "f.csv")
    assert set(table["vendor"]) == {read_series(archive / "p1" / "sharp").facts.vendor}
    assert table["model"].notna().all()
    if to == "nifti":
        aside = np.array(labels.affine)
        aside[0, 3] += 5
        Volume(labels.data, aside).save(tmp_path / "masks" / f"{name}.nii.gz")
        text = ct("radiomics", out, "--rois", tmp_path / "masks" / "{scan}.nii.gz", "--out",
                  tmp_path / "f.csv", code=1)  # fmt: skip
        assert "as many voxels, 5 mm away" in text


def test_combat_fits_on_one_table_and_transforms_another(tmp_path):
    rng = np.random.default_rng(0)

    def rows(n):
        batch = np.array(["SHARP", "SOFT"] * n)
        values = rng.normal(5, 1, (2 * n, 4)) + np.where(batch == "SHARP", 3.0, 0.0)[:, None]
        table = pd.DataFrame(values, columns=[f"stat_{k}" for k in range(4)])
        return table.assign(scan=[f"s{k}" for k in range(2 * n)], kernel=batch)

    train, test = rows(60), rows(30)
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    model, out = tmp_path / "m.json", tmp_path / "h.parquet"
    text = ct("combat", "fit", tmp_path / "train.csv", "--batch", "kernel", "--reference", "SOFT",
              "--out", model)  # fmt: skip
    assert "4 features, 120 rows" in text
    ct("combat", "transform", tmp_path / "test.csv", "--model", model, "--out", out)
    made = pd.read_parquet(out)
    gap = made.groupby("kernel")[[f"stat_{k}" for k in range(4)]].mean()
    assert np.abs(gap.loc["SHARP"] - gap.loc["SOFT"]).max() < 0.8
    soft = made["kernel"] == "SOFT"  # the reference comes back as it was
    assert np.array_equal(made.loc[soft, "stat_0"], test.loc[soft, "stat_0"])
    assert "no column 'kernal'" in ct("combat", "fit", tmp_path / "train.csv", "--batch", "kernal",
                                      "--out", model, code=2)  # fmt: skip
    other = test.assign(kernel="BONE")
    other.to_csv(tmp_path / "other.csv", index=False)
    text = ct("combat", "transform", tmp_path / "other.csv", "--model", model, "--out", out, code=3)
    assert "BONE" in text


# ------------------------------------------------------------------------------- qa


def test_the_page_says_what_changed_and_how_well_it_agrees(tmp_path, fitted, archive):
    out = tmp_path / "out"
    ct("apply", archive, out, "--mapping", fitted)
    page = tmp_path / "qa.html"
    ct("qa", out, "--source", archive, "--out", page)
    numbers = json.loads(page.with_suffix(".json").read_text())
    titles = [table["title"] for table in numbers["tables"]]
    assert "Agreement with the reference, by class" in titles
    assert "What was not recovered" in titles
    assert "Shift of the mean by tissue" in titles
    metrics = {row["metric"] for row in numbers["curve"]["rows"]}
    assert {"gain", "coherence", "noise power"} <= metrics
    assert "SIM-0" not in page.read_text()
    # noise of the result is that of the reference, and not that of the source
    rows = [r for r in numbers["curve"]["rows"] if r["metric"] == "noise power"]
    last = {r["condition"]: r["value"] for r in rows}
    assert abs(last["after"] - last["reference"]) < 0.2 < last["before"] - last["after"]
    assert "holds no result" in ct("qa", archive, "--source", archive, "--out", page, code=3)
    assert ".html" in ct("qa", out, "--source", archive, "--out", tmp_path / "p.txt", code=2)
    bad = ct("qa", out, "--source", archive, "--out", page, "--reference", "x=/y", code=2)
    assert "names x" in bad
