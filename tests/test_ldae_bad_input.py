"""What is wrong with scans, tables and models, in one sentence each."""

import dataclasses
import io

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.analysis.ldae_fit import fit_cohort, parts_of, told
from neurodiff.analysis.ldae_scans import Walk, decoded, encode_scan, open_scans, write_changed
from neurodiff.analysis.ldae_verbs import decode_codes, edit_scans, encode_cohort, interpolate_scans
from neurodiff.core.code_table import CodeTable, read_codes, write_codes
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, MissingDataError, NeurodiffError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.volume import Volume
from neurodiff.datasets.latent_cache import LatentCache
from neurodiff.datasets.simulated.brain_opening import simulated_brains
from neurodiff.models.ldae_autoencoder import autoencoder
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing
from neurodiff.pipelines.ldae import LDAE


@pytest.fixture(scope="module")
def model(session_tmp):
    """Weights as they are drawn: enough to say no, and to go through the plumbing."""
    pipe = LDAE.from_recipe("ldae_tiny")
    pipe.fitted = True
    return pipe.save_pretrained(session_tmp / "drawn-ldae")


@pytest.fixture(scope="module")
def scan():
    cohort = simulated_brains("tiny", 0).cohort()
    return cohort[0]


def save(scan, path, values=None, affine=None, dtype=np.float32):
    data = scan.data[0] if values is None else values
    image = nibabel.Nifti1Image(data.astype(dtype), scan.affine if affine is None else affine)
    nibabel.save(image, path)
    return path


def refused(path, tmp_path, model, words):
    with pytest.raises(DataError, match=words) as caught:
        encode_cohort(path, tmp_path / "codes.parquet", model)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "codes.parquet").exists()


def test_a_4d_file(tmp_path, scan, model):
    four = np.stack([scan.data[0]] * 3, axis=-1)
    refused(save(scan, tmp_path / "a.nii.gz", four), tmp_path, model, "3 volumes|4D|shape")


def test_an_affine_of_zeros(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz")
    image = nibabel.load(path)
    image.header.set_sform(np.diag([0.0, 0, 0, 1]), code=1)
    image.header.set_qform(None, code=0)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), None, image.header), path)
    refused(path, tmp_path, model, "affine")


def test_nan(tmp_path, scan, model):
    values = scan.data[0].copy()
    values[1, 2, 3] = np.nan
    refused(save(scan, tmp_path / "a.nii.gz", values), tmp_path, model, "NaN")


def test_a_truncated_file(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:3000])
    refused(path, tmp_path, model, "damaged")


def test_another_grid(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz", scan.data[0][:20])
    refused(path, tmp_path, model, "bring the scan to that grid")


def test_wrong_paths(tmp_path, model):
    with pytest.raises(MissingDataError, match="does not exist"):
        encode_cohort(tmp_path / "none", tmp_path / "c.parquet", model)
    with pytest.raises(UsageError, match="no data set; data sets of scans are"):
        encode_cohort("braim_mri", tmp_path / "c.parquet", model)
    with pytest.raises(UsageError, match="no data set of scans"):
        open_scans("haxby2001", tmp_path)
    with pytest.raises(MissingDataError, match="is no fitted model"):
        encode_cohort("simulated_brains_tiny", tmp_path / "c.parquet", tmp_path)
    with pytest.raises(UsageError, match="no such device"):
        encode_cohort(
            "simulated_brains_tiny", tmp_path / "c.parquet", model, walk=Walk(device="cuda:7")
        )


def test_int16_with_a_slope_is_read_as_what_it_means(tmp_path, scan, model):
    path = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(np.round(scan.data[0] * 1000).astype(np.int16), scan.affine)
    image.header.set_slope_inter(0.001, 0.0)
    image.header.set_data_dtype(np.int16)
    nibabel.save(image, path)
    found = read_codes(encode_cohort(path, tmp_path / "codes.parquet", model)).codes
    meant = np.round(Volume.open(path).data, 3)
    assert np.allclose(found, LDAE.from_pretrained(model).codes(meant[None]), atol=1e-4)
    assert Volume.open(path).data.max() <= 1.0


def test_a_volume_smaller_than_the_grid_is_padded_and_flagged(tmp_path, scan, model):
    pipe = LDAE.from_pretrained(model)
    spacing = float(scan.spacing[0])
    pipe.recipe = dataclasses.replace(
        pipe.recipe, preparation=BrainPreprocessing(spacing=spacing, shape=pipe.size.grid)
    )
    affine = scan.affine.copy()
    affine[:3, 3] += spacing * 2
    small = Volume(scan.data[:, 2:-2, 2:-2, 2:-2].copy(), affine)
    row = {"path": "", "scan": "a", "subject": "a", "session": 0.0}
    found = encode_scan(pipe, row, small)
    assert "padded" in found.flags
    assert found.made.volume.shape == pipe.size.grid
    values = found.volume[0]
    write_changed(tmp_path / "a", found, values, np.zeros_like(values), {"x": 1})
    change = Volume.open(tmp_path / "a_change.nii.gz")
    assert change.shape == small.shape  # of the scan's own voxels, whose values come back
    span = small.data.max() - small.data.min()
    assert np.allclose(change.data * span + small.data.min(), small.data, atol=1e-2)


def test_codes_of_another_model_or_width(tmp_path, model):
    one = pd.DataFrame({"scan": ["a"], "subject": ["a"]})
    for d, about, words in ((16, {"model": "0" * 64}, "another model"), (4, {}, "4 numbers")):
        path = tmp_path / f"{d}.parquet"
        write_codes(path, CodeTable(scans=one, codes=np.zeros((1, d)), about=about))
        with pytest.raises(DataError, match=words):
            decode_codes(path, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_a_table_of_another_model_is_not_gone_on_with(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz")
    one = pd.DataFrame({"scan": ["a"], "subject": ["a"]})
    table = CodeTable(scans=one, codes=np.zeros((1, 16)), about={"model": "0" * 64})
    write_codes(tmp_path / "codes.parquet", table)
    with pytest.raises(DataError, match="another model"):
        encode_cohort(path, tmp_path / "codes.parquet", model)


def test_a_model_without_directions_says_so(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="it has none"):
        edit_scans(path, tmp_path / "out", model, "AD", [1.0])
    with pytest.raises(UsageError, match="finite"):
        edit_scans(path, tmp_path / "out", model, "AD", [float("nan")])


def people(n=10, **columns):
    frame = {"subject": [f"p{k}" for k in range(n)], "session": 0.0, "age": 70.0, **columns}
    return Cohort(pd.DataFrame(frame), opener=lambda row: None)


def test_two_scans_with_one_id(tmp_path):
    table = pd.DataFrame({"scan": ["a", "a"], "subject": ["p", "p"]})
    with pytest.raises(DataError, match="two scans have the id a"):
        Cohort(table)


def test_missing_ages_and_one_class_are_told_and_stop_nothing():
    cohort = people(age=[np.nan] * 3 + [70.0] * 7, diagnosis="CN")
    lines = "\n".join(told(cohort, parts_of(cohort, 0)))
    assert "3 of 10 scans have no age" in lines
    assert "every diagnosis is CN" in lines
    with pytest.raises(DataError, match="no scan has the diagnosis AD"):
        cohort.classes()


def test_a_split_of_the_users_wins_and_is_checked():
    split = ["train"] * 7 + ["val", "test", "test"]
    parts = parts_of(people(split=split), 0)
    assert [len(part) for part in parts.values()] == [7, 1, 2]
    with pytest.raises(UsageError, match="'tset'"):
        parts_of(people(split=["train"] * 9 + ["tset"]), 0)
    with pytest.raises(DataError, match="1 of 10 scans have no split"):
        parts_of(people(split=["train"] * 9 + [""]), 0)
    with pytest.raises(UsageError, match="5 people"):
        parts_of(people(5), 0)


def test_an_indivisible_latent_and_files_that_are_gone(tmp_path):
    with pytest.raises(UsageError, match="expected multiples"):
        fit_cohort(
            "ldae_tiny", ["size.grid=[24, 30, 24]"], tmp_path, "simulated_brains_tiny", None, None,
            0, True,
        )  # fmt: skip
    table = pd.DataFrame({"subject": [f"p{k}" for k in range(9)], "path": "gone.nii.gz"})
    table.assign(session=0).to_csv(tmp_path / "scans.csv", index=False)
    with pytest.raises(NeurodiffError, match="the file does not exist"):
        fit_cohort("ldae_tiny", [], tmp_path, str(tmp_path / "scans.csv"), None, None, 0, True)


def test_a_cache_of_another_autoencoder(tmp_path):
    LatentCache.open(tmp_path, autoencoder="a" * 64, shape=(3, 2, 2, 2))
    with pytest.raises(DataError, match="another autoencoder"):
        LatentCache.open(tmp_path, autoencoder="b" * 64)


def test_a_constant_picture(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz", np.full_like(scan.data[0], 0.5))
    refused(path, tmp_path, model, "is 0.5 everywhere")


@pytest.mark.parametrize("device", ["quark", "meta", "cuda:99"])
def test_a_device_that_is_none(tmp_path, model, device):
    with pytest.raises(UsageError, match=f"--device {device}: "):
        encode_cohort(
            "simulated_brains_tiny", tmp_path / "c.parquet", model, walk=Walk(device=device)
        )


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path, scan, model, monkeypatch
):
    path = save(scan, tmp_path / "a.nii.gz")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(LDAE, "codes", lambda *_: pytest.fail("it was encoded first"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="could not be written"):
            encode_cohort(path, out, model)
        with pytest.raises(DataError, match="could not be written"):
            interpolate_scans(path, path, out, model)


def test_what_is_wrong_with_one_scan_is_said_once(tmp_path, scan, model):
    path, said = save(scan, tmp_path / "a.nii.gz", np.zeros_like(scan.data[0])), io.StringIO()
    with pytest.raises(DataError, match="everywhere"):
        encode_cohort(path, tmp_path / "out", model, progress=Progress(said))
    assert "everywhere" not in said.getvalue()  # the error says it


@pytest.mark.parametrize(("sign", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_table_with_another_delimiter(tmp_path, model, sign, word):
    table = pd.DataFrame({"subject": ["p"], "session": [0], "path": ["a.nii.gz"]})
    table.to_csv(tmp_path / "scans.csv", index=False, sep=sign)
    refused(tmp_path / "scans.csv", tmp_path, model, f"parted by {word}; save it with commas")


def test_a_table_without_rows_and_a_folder_without_scans(tmp_path, model):
    pd.DataFrame(columns=["subject", "path"]).to_csv(tmp_path / "scans.csv", index=False)
    refused(tmp_path / "scans.csv", tmp_path, model, "names no scan: the table has no row")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, model, "give the folder that holds the subjects, or a")
    (tmp_path / "scans.tsv").write_text("x")
    refused(tmp_path / "scans.tsv", tmp_path, model, r"a table of scans ends in \.csv")


def test_a_root_beside_a_path_and_a_table_of_another_kind(tmp_path, scan, model):
    path = save(scan, tmp_path / "a.nii.gz")
    with pytest.raises(UsageError, match="leave out --root"):
        encode_cohort(path, tmp_path / "c.parquet", model, root=tmp_path)
    with pytest.raises(UsageError, match=r"ends in \.xlsx; a table of codes ends in"):
        encode_cohort(path, tmp_path / "codes.xlsx", model)


def test_an_amount_that_leads_out_of_all_numbers(model, monkeypatch):
    pipe = LDAE.from_pretrained(model)
    noise = pipe.draw([("a", "a")])
    with pytest.raises(DataError, match="give a smaller amount"):
        decoded(pipe, np.full((1, 16), np.inf, np.float32), noise, 1)
    monkeypatch.setattr(pipe, "decode", lambda *_, **__: noise * np.float32(np.nan))
    with pytest.raises(DataError, match="give a smaller amount"):
        decoded(pipe, np.full((1, 16), 1e30, np.float32), noise, 1)


def test_two_people_and_one_scan_twice_are_no_missing_visit(tmp_path, scan, model):
    values = scan.data[0]
    a = save(scan, tmp_path / "sub-01_ses-M000_T1w.nii.gz")
    b = save(scan, tmp_path / "sub-02_ses-M000_T1w.nii.gz", values * 0.9)
    with pytest.raises(UsageError, match=r"of sub-01 and .* of sub-02; give two scans of one"):
        interpolate_scans(a, b, tmp_path / "out", model)
    with pytest.raises(UsageError, match="are the same scan"):
        interpolate_scans(a, a, tmp_path / "out", model)
    said = io.StringIO()
    c = save(scan, tmp_path / "late.nii.gz", values * 0.9)
    walk = Walk(steps=1)
    interpolate_scans(a, c, tmp_path / "out", model, walk=walk, progress=Progress(said))
    assert "nothing tells that the two files are of one person" in said.getvalue()


def test_networks_of_a_recipe_are_opened_before_scans_are_prepared(tmp_path):
    def fit(*settings):
        data = "simulated_brains_tiny"
        fit_cohort("ldae_tiny", list(settings), tmp_path / "runs", data, None, None, 0, False)

    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match="holds no LPIPS"):
        fit("autoencoder.perceptual=0.1", f"autoencoder.perceptual_network={tmp_path / 'empty'}")
    (tmp_path / "x.pth").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"x\.pth"):
        fit(f"autoencoder.weights={tmp_path / 'x.pth'}")
    size = dataclasses.replace(LDAE.from_recipe("ldae_tiny").size.autoencoder, widths=(8, 16))
    torch.save(autoencoder(size).state_dict(), tmp_path / "small.pth")
    with pytest.raises(UsageError, match="of another size than the recipe's"):
        fit(f"autoencoder.weights={tmp_path / 'small.pth'}")
    assert not (tmp_path / "runs").exists()
