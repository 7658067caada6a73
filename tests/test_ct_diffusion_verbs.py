"""``ct fit`` and ``ct apply --mode diffusion``, and the same through `CTStandardizer`."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError
from neurodiff.core.volume import Volume
from neurodiff.datasets.ct_series import read_series
from neurodiff.pipelines.ct_standardizer import CTStandardizer


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_shared = _load("ct_archives")
ct, scan, write, folders, _key = (
    getattr(_shared, name) for name in ("ct", "scan", "write", "folders", "key_of")
)
fitted, archive = _shared.fitted, _shared.archive  # fixtures


def test_diffusion_needs_a_standardizer_that_was_trained_for_it(tmp_path, fitted, archive):
    text = ct("apply", archive, tmp_path / "o", "--mapping", fitted, "--mode", "diffusion", code=3)
    assert "linear mode" in text
    assert not (tmp_path / "o").exists()
    text = ct("apply", archive, tmp_path / "o", "--mapping", fitted, "--mode", "magic", code=2)
    assert "linear and diffusion" in text


def test_the_diffusion_mode_draws_the_same_twice_and_says_that_it_draws(
    tmp_path, archive, repository
):
    recipe = (repository / "pipelines" / "ct_diffusion_tiny.yaml").read_text()
    recipe = recipe.replace("train: [one-step, unet, gan]", "train: []")
    mine = tmp_path / "mine.yaml"
    mine.write_text(recipe.replace("regions: 6}", "regions: 6, least: 0.0}"))
    sharp, soft = scan(0)
    pair = []
    for option, kernel, series, hu in (
        ("--source", "SHARP", 1, sharp), ("--target", "SOFT", 2, soft)
    ):  # fmt: skip
        write(tmp_path / "pair" / kernel, hu, 9, series, kernel=kernel)
        pair += [option, tmp_path / "pair" / kernel]
    text = ct("fit", *pair, "--out", tmp_path / "m", "--recipe", mine)
    assert "round trip of the autoencoder" in text
    place = ["--mapping", tmp_path / "m", "--mode", "diffusion"]
    for out in ("a", "b"):
        ct("apply", archive, tmp_path / out, *place, "--to", "nifti", "--key-file", _key(tmp_path))
    linear = tmp_path / "linear"
    ct("apply", archive, linear, *place[:2], "--to", "nifti", "--key-file", _key(tmp_path))
    drawn = 0
    for name in folders(tmp_path / "a"):
        one, two, plain = (
            Volume.open(root / name / f"{name}.nii.gz").data
            for root in (tmp_path / "a", tmp_path / "b", linear)
        )
        assert np.array_equal(one, two)
        report = json.loads((tmp_path / "a" / name / "done.json").read_text())["report"]
        if report["status"] == "mapped":
            drawn += 1
            assert report["mode"] == "diffusion"
            assert any("drawn, not measured" in warning for warning in report["warnings"])
            assert not np.array_equal(one, plain)
        else:
            assert np.array_equal(one, plain)
    assert drawn == 2
    # another seed is another result, and so done again
    text = ct("apply", archive, tmp_path / "a", *place, "--to", "nifti", "--key-file",
              _key(tmp_path), "--seed", 1)  # fmt: skip
    assert "4 standardized" in text
    # an autoencoder that fails its gate refuses every scan, and says why
    ct("fit", *pair, "--out", tmp_path / "n", "--recipe", "ct_diffusion_tiny")
    ct("apply", archive, tmp_path / "c", "--mapping", tmp_path / "n", "--mode", "diffusion", code=1)
    failed = pd.read_csv(tmp_path / "c" / "failed.csv")
    assert len(failed) == 2
    assert failed["reason"].str.contains("round trip").all()
    assert failed["reason"].str.contains("--despite-gate").all()
    text = ct("apply", archive, tmp_path / "c", "--mapping", tmp_path / "n", "--mode", "diffusion",
              "--despite-gate")  # fmt: skip
    assert "0 not done" in text
    reports = [json.loads((tmp_path / "c" / name / "done.json").read_text())["report"]
               for name in folders(tmp_path / "c")]  # fmt: skip
    warned = [any("round trip" in w for w in report["warnings"]) for report in reports]
    assert warned == [report["status"] == "mapped" for report in reports]
    assert sum(warned) == 2
    text = ct("apply", archive, tmp_path / "d", "--mapping", tmp_path / "m", "--despite-gate",
              code=2)  # fmt: skip
    assert "--mode diffusion" in text
    _the_same_in_python(tmp_path, archive)


def _the_same_in_python(tmp_path, archive):
    """The standardizer of the folder draws too, and takes its networks along."""
    made = CTStandardizer.from_pretrained(tmp_path / "n")
    one = read_series(archive / "p1" / "sharp")
    with pytest.raises(DataError, match="despite_gate=True"):
        made.apply(one, mode="diffusion")
    linear = made.apply(one)
    done = made.apply(one, mode="diffusion", despite_gate=True)
    assert done.report["mode"] == "diffusion"
    assert not np.array_equal(done.hu, linear.hu)
    volume = made.apply(one.volume(), facts=one.facts, mode="diffusion", despite_gate=True).volume
    again = CTStandardizer.from_pretrained(made.save_pretrained(tmp_path / "copy"))
    named = dataclasses.replace(one, name=one.volume().name)
    same = again.apply(named, mode="diffusion", despite_gate=True)
    assert np.array_equal(one.back(volume), same.hu)
    other = again.apply(named, mode="diffusion", despite_gate=True, seed=1)
    assert not np.array_equal(other.hu, same.hu)
    assert np.array_equal(made.apply(read_series(archive / "p1" / "soft"), mode="diffusion").hu,
                          read_series(archive / "p1" / "soft").hu)  # fmt: skip
