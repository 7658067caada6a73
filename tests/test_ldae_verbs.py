"""encode, decode, edit, interpolate end to end on a folder of simulated scans, and their runs."""

import dataclasses
import importlib.util
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from neurodiff.analysis import demo_ldae, kinds
from neurodiff.analysis.benchmark_data import leaks_of
from neurodiff.analysis.ldae_fit import fit_cohort, parts_of
from neurodiff.analysis.ldae_scans import Walk
from neurodiff.analysis.ldae_verbs import (
    decode_codes,
    edit_scans,
    encode_cohort,
    interpolate_scans,
)
from neurodiff.analysis.leakage_strictness import Strictness
from neurodiff.cli import app
from neurodiff.core.code_table import read_codes
from neurodiff.core.errors import DataError, NeurodiffError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json
from neurodiff.core.volume import Volume
from neurodiff.pipelines.ldae import LDAE


def _load(name):
    """A helper beside the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write_scans = _load("ldae_cohort").write_scans
SHORT = [
    *(f"{stage}.training.steps=3" for stage in ("autoencoder", "trunk", "semantic")),
    "sampling.steps=2",
    "sampling.iterations=1",
]
A, B = "sim-0001_M000", "sim-0001_M024"


@pytest.fixture(scope="module")
def scans(session_tmp):
    return write_scans(session_tmp / "ldae-scans")


@pytest.fixture(scope="module")
def run(session_tmp, scans):
    return fit_cohort(
        "ldae_tiny", SHORT, session_tmp / "ldae-runs", str(scans), None, None, 0, False
    )


@pytest.fixture(scope="module")
def few(session_tmp):
    return write_scans(session_tmp / "ldae-few", people=2)


def test_a_fit_deals_people_once_and_is_not_repeated(run, scans, capsys):
    parts = Run.open(run).info["parts"]
    everybody = [name for names in parts.values() for name in names]
    assert set(parts) == {"train", "validation", "test"}
    assert len(everybody) == len(set(everybody)) == 24
    again = fit_cohort("ldae_tiny", SHORT, run.parent, str(scans), None, None, 0, False)
    assert again == run
    assert "fitted before" in capsys.readouterr().out
    assert kinds.pipeline_of("ldae_tiny") == kinds.pipeline_of_run(run) == kinds.SCANS
    assert kinds.pipeline_of_model(run) == kinds.SCANS


def test_a_fit_remembers_what_the_test_people_share_with_training(run):
    kept = Run.open(run).info["leakage"]
    leaks = leaks_of("a cohort of scans", None, kept)
    rows = leaks.table.set_index("check")
    assert rows.loc["same-person", "severity"] == "passed"
    assert rows.loc["similar-scan", "severity"] == "not checked"  # scans are read under --strict
    assert leaks.text == "No leak was found"


def test_a_scan_of_a_training_person_ends_a_strict_fit(scans, tmp_path, monkeypatch):
    def leaking(cohort, seed):
        found = parts_of(cohort, seed)
        return {**found, "test": found["train"].select([0])}

    monkeypatch.setattr("neurodiff.analysis.ldae_fit.parts_of", leaking)
    place = ("ldae_tiny", SHORT, tmp_path / "runs", str(scans), None, None, 0, False)
    with pytest.raises(DataError, match="same-person"):
        fit_cohort(*place, leaks=Strictness(strict=True))
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_writes_nothing(tmp_path, scans):
    text = fit_cohort("ldae_tiny", [], tmp_path / "out", str(scans), None, None, 0, True)
    assert "nothing was written" in text
    assert not (tmp_path / "out").exists()


def test_codes_are_those_of_the_model_and_are_not_made_twice(tmp_path, few, run, monkeypatch):
    path = encode_cohort(few, tmp_path, run)
    table, pipe = read_codes(path), LDAE.from_pretrained(run)
    volume = Volume.open(few / f"{A}.nii.gz")
    place = table.scans["scan"].tolist().index(A)
    assert np.array_equal(table.codes[place], pipe.codes(volume.data[None])[0])
    assert table.model == pipe.identity
    assert {"flags", "session", "subject", "source"} <= set(table.scans)
    called = []
    codes = LDAE.codes
    monkeypatch.setattr(LDAE, "codes", lambda *a: called.append(1) or codes(*a))
    encode_cohort(few, tmp_path, run)
    assert not called
    Volume.open(few / f"{A}.nii.gz").with_data(volume.data * 0.5).save(few / f"{A}.nii.gz")
    try:
        encode_cohort(few, tmp_path, run)
    finally:
        volume.save(few / f"{A}.nii.gz")
    assert len(called) == 1  # the scan that changed, alone


def test_a_killed_encoding_goes_on_where_it_stopped(tmp_path, few, run, monkeypatch):
    whole = read_codes(encode_cohort(few, tmp_path / "whole", run)).codes
    called, codes = [], LDAE.codes

    def dies(*a):
        called.append(1)
        if len(called) == 4:
            raise KeyboardInterrupt
        return codes(*a)

    monkeypatch.setattr(LDAE, "codes", dies)
    with pytest.raises(KeyboardInterrupt):
        encode_cohort(few, tmp_path, run)
    found = read_codes(encode_cohort(few, tmp_path, run))
    assert len(called) == 1 + len(whole)
    assert np.array_equal(found.codes, whole)


def test_a_cohort_goes_on_and_lists_what_failed(tmp_path, few, run):
    folder = shutil.copytree(few, tmp_path / "scans")
    bad = folder / f"{A}.nii.gz"
    bad.write_bytes(bad.read_bytes()[:2000])
    with pytest.raises(NeurodiffError, match="1 of 6 scans could not be encoded") as caught:
        encode_cohort(folder, tmp_path / "out", run)
    assert caught.value.exit_code == 1
    assert len(read_codes(tmp_path / "out" / "codes.parquet")) == 5
    assert pd.read_csv(tmp_path / "out" / "failed.csv")["path"].tolist() == [str(bad)]


def test_a_table_that_tells_more_is_told_by_the_codes_too(tmp_path, few, run):
    folder = shutil.copytree(few, tmp_path / "scans")
    table = pd.read_csv(folder / "scans.csv")
    table.drop(columns=["age", "diagnosis"]).to_csv(folder / "scans.csv", index=False)
    first = read_codes(encode_cohort(folder, tmp_path / "out", run))
    assert first.scans["age"].isna().all()
    table.to_csv(folder / "scans.csv", index=False)
    second = read_codes(encode_cohort(folder, tmp_path / "out", run))
    assert second.scans["age"].tolist() == pytest.approx(table["age"].tolist())
    assert second.scans["diagnosis"].tolist() == table["diagnosis"].tolist()
    assert np.array_equal(first.codes, second.codes)


def test_scans_that_a_table_names_in_vain_are_listed(tmp_path, few, run):
    folder = shutil.copytree(few, tmp_path / "scans")
    (folder / f"{A}.nii.gz").unlink()
    table = pd.read_csv(folder / "scans.csv")
    pd.concat([table, table.tail(1)]).to_csv(folder / "scans.csv", index=False)
    said = io.StringIO()
    encode_cohort(folder, tmp_path / "out", run, progress=Progress(said))
    failed = pd.read_csv(tmp_path / "out" / "failed.csv")
    assert "2 were left out before" in said.getvalue()
    assert sorted(reason.split(" with")[0] for reason in failed["reason"]) == [
        "a second scan",
        "the file does not exist",
    ]


def test_a_direction_of_the_same_name_is_another_edit(tmp_path, scans, run):
    pipe = LDAE.from_pretrained(run)
    model, walk = pipe.save_pretrained(tmp_path / "model"), Walk(steps=2)
    scan, change = scans / f"{A}.nii.gz", tmp_path / "out" / A / f"{A}_AD+2_change.nii.gz"
    edit_scans(scan, tmp_path / "out", model, "AD", [2.0], walk=walk)
    before = Volume.open(change).data
    pipe.directions["AD"] = pipe.directions["AD"].away("AD")
    edit_scans(scan, tmp_path / "out", pipe.save_pretrained(model), "AD", [2.0], walk=walk)
    assert not np.allclose(Volume.open(change).data, before)


def test_an_interpolation_is_not_made_twice(tmp_path, scans, run, monkeypatch):
    walk, called, codes = Walk(steps=2), [], LDAE.codes
    monkeypatch.setattr(LDAE, "codes", lambda *a: called.append(1) or codes(*a))
    interpolate_scans(A, B, tmp_path, run, [0.25], cohort=scans, walk=walk)
    interpolate_scans(A, B, tmp_path, run, [0.25], cohort=scans, walk=walk)
    assert len(called) == 2  # the two ends, once
    kept = (tmp_path / f"{A}_to_{B}_t0.250.nii.gz").stat().st_mtime_ns
    interpolate_scans(A, B, tmp_path, run, [0.25, 0.5], cohort=scans, walk=walk)
    assert len(called) == 4
    assert (tmp_path / f"{A}_to_{B}_t0.250.nii.gz").stat().st_mtime_ns == kept
    interpolate_scans(A, B, tmp_path, run, [0.25], cohort=scans, walk=Walk(steps=3))
    assert len(called) == 6  # other steps, another image


def test_edits_change_nothing_at_amount_zero(tmp_path, scans, run):
    edit_scans(scans / f"{A}.nii.gz", tmp_path, run, "AD", [0.0, 2.0])
    folder = tmp_path / A
    none, two = (Volume.open(folder / f"{A}_AD{t}_change.nii.gz") for t in ("+0", "+2"))
    own = Volume.open(scans / f"{A}.nii.gz")
    assert np.abs(none.data).max() < 1e-4 < np.abs(two.data).max()
    assert two.shape == own.shape
    assert np.allclose(two.affine, own.affine)
    about = read_json(folder / f"{A}_AD+2.json")
    assert about["made"]["noise"] == "the scan's own, encoded"
    words = " ".join(about["cannot be restored"])
    assert all(word in words for word in ("autoencoder lost", "field of view", "clipped", "skull"))


def test_both_ends_of_an_interpolation_are_the_scans(tmp_path, scans, run):
    interpolate_scans(A, B, tmp_path, run, [0.0, 1.0], cohort=scans)
    pipe = LDAE.from_pretrained(run)
    for t, scan in (("0.000", A), ("1.000", B)):
        made = Volume.open(tmp_path / f"{A}_to_{B}_t{t}.nii.gz")
        volume = Volume.open(scans / f"{scan}.nii.gz").data[None]
        assert np.allclose(made.data, pipe.reconstruct(volume, "encoded")[0], atol=1e-4)
    interpolate_scans(A, B, tmp_path, run, None, cohort=scans, month=6.0)
    assert (tmp_path / f"{A}_to_{B}_t0.250_change.nii.gz").is_file()


def test_decoding_is_the_scans_own_draw(tmp_path, few, run):
    path = encode_cohort(few, tmp_path / "codes.csv", run)
    decode_codes(path, tmp_path / "images", run)
    made = Volume.open(tmp_path / "images" / f"{A}.nii.gz")
    own = Volume.open(few / f"{A}.nii.gz")
    assert np.allclose(made.affine, own.affine)
    pipe = LDAE.from_pretrained(run)
    expected = pipe.reconstruct(own.data[None], "semantic", scans=[("sim-0001", A)])
    assert np.allclose(made.data, expected[0], atol=1e-5)


def test_a_run_is_evaluated_once_and_reported(tmp_path, run, monkeypatch):
    plan = dataclasses.replace(
        demo_ldae.demo_plan("tiny"), people=2, edited=1, directions=("AD",), gaps=(24.0,), steps=1
    )
    monkeypatch.setattr(demo_ldae, "demo_plan", lambda _: plan)
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["evaluate", str(run)])
    assert result.exit_code == 0, result.output
    assert "  prepare: " in result.output
    assert Run.open(run).scores_path.is_file()
    result = CliRunner().invoke(app, ["report", str(run), "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert "nothing repeated" in result.output
    assert page.read_bytes() == Run.open(run).report_path.read_bytes()


def test_weights_are_told_by_their_keys(run, tmp_path):
    for part in ("autoencoder", "decoder", "encoder"):
        file = run / "model" / part / "model.safetensors"
        result = CliRunner().invoke(app, ["weights", "check", str(file)])
        assert result.exit_code == 0, result.output
        assert " matched, 0 missing, 0 unexpected" in result.output


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"t": 1.5}, UsageError, "t is 1.5"),
        ({"t": None, "month": 30.0}, UsageError, "month 30 is not between 0 and 24"),
        ({"b": "sim-0002_M000"}, UsageError, "one subject"),
        ({"b": "sim-0001_M999"}, UsageError, "no scan 'sim-0001_M999'"),
        ({"cohort": None}, DataError, "does not exist"),
    ],
)
def test_an_interpolation_that_cannot_be_is_refused(tmp_path, scans, run, options, error, words):
    given = {"b": B, "cohort": scans} | options
    with pytest.raises(error, match=words):
        interpolate_scans(A, given.pop("b"), tmp_path, run, **given)


def test_an_unknown_direction_names_those_there(tmp_path, scans, run):
    with pytest.raises(UsageError, match="no direction 'DA'; it has AD"):
        edit_scans(scans / f"{A}.nii.gz", tmp_path, run, "DA", [1.0])
