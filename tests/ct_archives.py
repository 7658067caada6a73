"""Simulated archives of two kernels for tests of the verbs, and how the verbs are called."""

import numpy as np
import pytest
from typer.testing import CliRunner

from neurodiff.cli import app
from neurodiff.datasets.simulated.ct_archive import SimulatedHeader, write_simulated_series

SIZE, SPACING = 48, (0.7, 0.9)  # not square


def ct(*arguments, code=0):
    result = CliRunner().invoke(app, ["ct", *map(str, arguments)], prog_name="neurodiff")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def scan(seed, slices=3):
    """Noise in water and its blur: two kernels of one scan."""
    from scipy.ndimage import gaussian_filter

    sharp = np.random.default_rng(seed).normal(0, 60, (slices, SIZE, SIZE)).astype(np.float32)
    soft = gaussian_filter(sharp, (0, 1.4 / 1, 1.4 * SPACING[0] / SPACING[1]), mode="wrap")
    return sharp, soft


def write(folder, hu, patient=1, series=1, **header):
    leave_out = header.pop("leave_out", ())
    prefix = header.pop("prefix", "")
    facts = SimulatedHeader(patient=patient, series=series, **header)
    return write_simulated_series(folder, hu, SPACING, facts, leave_out=leave_out, prefix=prefix)


@pytest.fixture
def fitted(tmp_path):
    sharp, soft = scan(0)
    write(tmp_path / "pair" / "sharp", sharp, 9, 1, kernel="SHARP")
    write(tmp_path / "pair" / "soft", soft, 9, 2, kernel="SOFT")
    out = ct("fit", "--source", tmp_path / "pair" / "sharp", "--target", tmp_path / "pair" / "soft",
             "--out", tmp_path / "mapping")  # fmt: skip
    assert "3 slice pairs" in out
    return tmp_path / "mapping"


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "archive"
    for patient in (1, 2):
        sharp, soft = scan(patient)
        write(root / f"p{patient}" / "sharp", sharp, patient, 1, kernel="SHARP")
        write(root / f"p{patient}" / "soft", soft, patient, 2, kernel="SOFT")
    return root


def folders(out):
    return sorted(path.parent.name for path in out.glob("*/done.json"))


def key_of(folder):
    path = folder / "key"
    path.write_text("a secret that is long enough")
    return path
