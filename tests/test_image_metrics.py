"""PSNR of known offsets, SSIM of the published call, compositing."""

import json
from pathlib import Path

import numpy as np
import pytest

from neurodiff.metrics.images import (
    Windows,
    both_ssim,
    grey,
    grey_ssim,
    on_white,
    pixcorr,
    psnr,
    square,
    ssim,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics_images.json").read_text())


def test_psnr_of_a_known_offset():
    grey = np.full((8, 8, 3), 100, np.uint8)
    for offset in (1, 10, 51):
        expected = 20 * np.log10(255 / offset)
        assert psnr(grey, grey + np.uint8(offset)) == pytest.approx(expected, abs=1e-12)
        assert psnr(grey + np.uint8(offset), grey) == pytest.approx(expected, abs=1e-12)
    assert psnr(grey, grey) == float("inf")


def test_ssim_of_the_published_call():
    y, x = np.mgrid[:425, :425].astype(float)
    true = 0.5 + 0.5 * np.sin(0.05 * x + 0.08 * y)
    other = np.clip(0.8 * true + 0.2 * (0.5 + 0.5 * np.cos(0.031 * 1.3 * x - 0.05 * y)), 0, 1)
    golden = GOLDEN["metrics.ssim_pixcorr"]["outputs"]
    assert grey_ssim(other, true) == pytest.approx(golden["ssim_2d"], abs=1e-9)
    columns = grey_ssim(other, true, columns_as_channels=True)
    assert columns == pytest.approx(golden["ssim_columns_as_channels"], abs=1e-9)


def test_ssim_is_1_for_equal_pictures_and_the_luminance_term_for_flat_ones():
    a, b = np.full((50, 50, 3), 51, np.uint8), np.full((50, 50, 3), 102, np.uint8)
    assert ssim(a, a) == pytest.approx(1)
    # no variance: (2 m n + C1) / (m^2 + n^2 + C1) with C1 = 0.01^2, times 1
    assert ssim(a, b) == pytest.approx((0.16 + 1e-4) / (0.2 + 1e-4), abs=1e-9)


def test_on_white():
    picture = np.zeros((1, 3, 4), np.uint8)
    picture[0, :, 3] = [0, 255, 51]
    np.testing.assert_array_equal(on_white(picture)[0, :, 0], [255, 0, 204])


def test_both_ssim_at_once_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    a, b = rng.random((40, 53)), rng.random((40, 53))
    plane, columns = both_ssim(Windows.of(a), Windows.of(b))
    assert plane == pytest.approx(grey_ssim(a, b), abs=1e-12)
    assert columns == pytest.approx(grey_ssim(a, b, columns_as_channels=True), abs=1e-12)
    with pytest.raises(ValueError, match="smaller than SSIM's window"):
        Windows.of(a[:10])


def test_pixcorr_of_the_published_call():
    y, x = np.mgrid[:425, :425].astype(float)
    true = 0.5 + 0.5 * np.sin(0.05 * x + 0.08 * y)
    other = np.clip(0.8 * true + 0.2 * (0.5 + 0.5 * np.cos(0.031 * 1.3 * x - 0.05 * y)), 0, 1)
    colour = [np.repeat(v[..., None], 3, axis=2) for v in (other, true)]
    expected = GOLDEN["metrics.ssim_pixcorr"]["outputs"]["pixcorr"]
    assert pixcorr(*colour) == pytest.approx(expected, abs=1e-9)
    assert pixcorr(colour[0], 3 + 0.5 * colour[0]) == pytest.approx(1)


def test_pixcorr_refuses_what_has_no_correlation():
    ramp = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    with pytest.raises(ValueError, match="second picture is one value"):
        pixcorr(ramp, np.full((3, 3, 3), 7, np.uint8))
    with pytest.raises(ValueError, match="one size first"):
        pixcorr(ramp, ramp[:2])
    with pytest.raises(ValueError, match="NaN"):
        pixcorr(ramp, np.full((3, 3, 3), np.nan))


def test_rules_of_resizing():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    coarse, fine = square(picture, 40), square(picture, 40, rule="bicubic")
    exact = square(picture, 40, rule="bilinear float")
    assert (coarse != fine).any()
    assert exact.dtype == np.float32
    np.testing.assert_allclose(exact * 255, coarse, atol=1.01)  # Pillow rounds each direction
    same = picture[:20, :20]
    assert square(same, 20) is same
    np.testing.assert_allclose(square(same, 20, rule="bilinear float"), same / 255, atol=1e-6)
    assert grey(np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(1)
