"""Scores of volumes: closed forms, MONAI's and scikit-image's numbers, orders that must hold."""

import itertools

import numpy as np
import pytest
import torch

from neurodiff.core.errors import UsageError
from neurodiff.metrics.frechet import frechet_distance
from neurodiff.metrics.volume_records import masked_mse, volume_metrics
from neurodiff.metrics.volume_sets import frechet_with_note, mmd
from neurodiff.metrics.volumes import (
    difference_agreement,
    fitting_scales,
    lpips_25d,
    mae,
    ms_ssim,
    mse,
    psnr,
    ssim,
)


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    a = rng.random((2, 1, 18, 20, 16)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1).astype(np.float32)
    return a, b


def test_a_shifted_constant_has_closed_forms():
    a = np.full((2, 1, 4, 5, 6), 0.25, np.float32)
    b = a + np.array([0.5, 0.1], np.float32)[:, None, None, None, None]
    np.testing.assert_allclose(mse(a, b), [0.25, 0.01], rtol=1e-6)
    np.testing.assert_allclose(mae(a, b), [0.5, 0.1], rtol=1e-6)
    np.testing.assert_allclose(psnr(a, b), [10 * np.log10(4), 20], rtol=1e-6)
    x, y = 0.25, np.array([0.75, 0.35])  # without variance SSIM is its luminance alone
    np.testing.assert_allclose(ssim(a, b), (2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4), rtol=1e-6)
    assert np.isinf(psnr(a, a)).all()


@pytest.mark.parametrize("kernel", [3, 4, 11])
def test_ssim_is_that_of_monai(pair, kernel):
    from monai.metrics import SSIMMetric

    a, b = pair
    theirs = SSIMMetric(3, win_size=kernel)(torch.tensor(a), torch.tensor(b)).numpy().ravel()
    np.testing.assert_allclose(ssim(a, b, kernel=kernel), theirs, atol=2e-6)
    np.testing.assert_allclose(ssim(a, a, kernel=kernel), 1, atol=1e-12)


def test_ssim_is_that_of_scikit_image_away_from_the_edge(pair):
    from skimage.metrics import structural_similarity

    a, b = pair
    _, full = structural_similarity(
        a[0, 0].astype(float), b[0, 0].astype(float), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=1.0, full=True,
    )  # fmt: skip
    inner = full[5:-5, 5:-5, 5:-5]
    np.testing.assert_allclose(ssim(a, b, kernel=11)[0], inner.mean(), rtol=1e-9)
    mask = np.zeros((2, 18, 20, 16), bool)
    mask[:, 6:9, 7:10, 6:8] = True
    inside = full[6:9, 7:10, 6:8].mean()
    np.testing.assert_allclose(ssim(a, b, kernel=11, masks=mask)[0], inside, rtol=1e-9)


def test_the_window_changes_the_number(pair):
    values = [float(ssim(*pair, kernel=k)[0]) for k in (3, 4, 11)]
    assert len({round(v, 4) for v in values}) == 3
    names = {next(iter(volume_metrics((18, 20, 16), kernel=k))) for k in (3, 4, 11)}
    assert names == {"SSIM k=3 s=1.5", "SSIM k=4 s=1.5", "SSIM k=11 s=1.5"}


def test_ms_ssim_is_that_of_monai_and_says_its_scales():
    from monai.metrics import MultiScaleSSIMMetric

    rng = np.random.default_rng(1)
    a = rng.random((1, 1, 48, 48, 48)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1).astype(np.float32)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363])
    weights *= 1.0001 / weights.sum()
    theirs = MultiScaleSSIMMetric(3, kernel_size=3, weights=tuple(weights.tolist()))
    np.testing.assert_allclose(
        ms_ssim(a, b, scales=4), theirs(torch.tensor(a), torch.tensor(b)).numpy().ravel(), rtol=1e-4
    )
    assert [fitting_scales((n, 200, 200), 3) for n in (5, 6, 40, 48, 128)] == [1, 2, 4, 5, 5]
    assert "MS-SSIM k=3 s=1.5 4 scales" in volume_metrics((40, 48, 40))
    np.testing.assert_allclose(ms_ssim(a, a), 1)


def test_more_noise_is_worse_by_every_record_and_order_does_not_matter():
    rng = np.random.default_rng(2)
    truth = rng.random((3, 1, 12, 13, 14)).astype(np.float32)
    noise = rng.standard_normal(truth.shape).astype(np.float32)
    masks = rng.random((3, 12, 13, 14)) > 0.3
    for metric in volume_metrics((12, 13, 14), masks=masks).values():
        values = [metric(truth + s * noise, truth) for s in (0.02, 0.1, 0.4)]
        for one, other in itertools.pairwise(values):
            assert all(
                metric.better(float(x), float(y)) for x, y in zip(one, other, strict=True)
            ), metric.name
    metric = volume_metrics((12, 13, 14))["SSIM k=3 s=1.5"]
    alone = metric(truth[2:] + noise[2:], truth[2:])
    np.testing.assert_array_equal(metric(truth + noise, truth)[2:], alone)


def test_a_mask_sees_only_the_inside(pair):
    a, b = pair
    mask = np.zeros((2, 18, 20, 16), bool)
    mask[:, 5:12, 5:12, 5:12] = True
    changed = np.where(mask[:, None], a, b)  # equal inside
    np.testing.assert_array_equal(masked_mse(changed, a, mask), 0)
    core = np.zeros_like(mask)
    core[:, 6:11, 6:11, 6:11] = True  # windows that lie inside
    np.testing.assert_allclose(ssim(changed, a, masks=core), 1, atol=1e-12)
    assert (ssim(changed, a) < 0.99).all()


class Slices:
    """Distance of two slices: their mean absolute difference; remembers what it was given."""

    def __init__(self):
        self.seen = []

    def distances(self, a, b, *, values="-1..1"):
        self.seen.append((len(a), values))
        return np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)) / 255


def test_lpips_takes_all_slices_unless_published():
    a = np.zeros((1, 1, 4, 6, 8), np.float32)
    network = Slices()
    # a mean along each axis, a sum over the three
    np.testing.assert_allclose(lpips_25d(a, a + 0.2, network), [3 * 0.2], rtol=1e-6)
    assert network.seen == [(4, "-1..1"), (6, "-1..1"), (8, "-1..1")]
    network = Slices()
    rng = np.random.default_rng(0)
    lpips_25d(a, a, network, protocol="ldae-2025", generator=rng)
    assert network.seen == [(2, "0..1"), (3, "0..1"), (4, "0..1")]
    with pytest.raises(UsageError, match="generator"):
        lpips_25d(a, a, network, protocol="ldae-2025")


def test_the_change_has_a_place_and_an_amount():
    rng = np.random.default_rng(3)
    start, change = rng.random((2, 1, 5, 5, 5)), rng.standard_normal((2, 1, 5, 5, 5))
    correlation, slope = difference_agreement(start + 0.5 * change, start + change, start)
    np.testing.assert_allclose(correlation, 1)
    np.testing.assert_allclose(slope, 0.5)
    correlation, slope = difference_agreement(start, start + change, start)  # the nearest copy
    np.testing.assert_array_equal([correlation, slope], 0)
    assert np.isnan(difference_agreement(start + change, start, start)).all()


def test_mmd_is_unbiased_and_finds_a_shift():
    rng = np.random.default_rng(4)
    same = [
        mmd(rng.normal(size=(12, 3)), rng.normal(size=(9, 3)), bandwidth=1.0, permutations=0).value
        for _ in range(200)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    shifted = mmd(rng.normal(size=(30, 3)), rng.normal(size=(30, 3)) + 1.5)
    assert shifted.value > 0.1
    assert shifted.p < 0.01
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    k = lambda x, y: np.exp(-((x - y) ** 2).sum() / 2)  # noqa: E731
    direct = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    direct += np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    direct -= 2 * np.mean([k(x, y) for x in a for y in b])
    np.testing.assert_allclose(mmd(a, b, bandwidth=1.0).value, direct)


def test_the_frechet_distance_tells_of_small_sets():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(9, 16)), rng.normal(size=(9, 16))
    value, note = frechet_with_note(a, b)
    assert value == frechet_distance(a, b)
    assert "lack rank" in note
    assert frechet_with_note(rng.normal(size=(400, 2)), rng.normal(size=(400, 2)))[1] == (
        "n = 400 and 400"
    )


def test_what_cannot_be_scored(pair):
    a, b = pair
    with pytest.raises(UsageError, match="does not fit into a grid"):
        ssim(a, b, kernel=17)
    with pytest.raises(UsageError, match="no window"):
        ssim(a, b, masks=np.zeros((2, 18, 20, 16), bool))
    with pytest.raises(UsageError, match="give one for each"):
        ssim(a, b, masks=np.ones((1, 18, 20, 16), bool))
    with pytest.raises(UsageError, match="fit"):
        ms_ssim(a, b, scales=5)
    with pytest.raises(UsageError, match="MMD needs 2"):
        mmd(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="bandwidth"):
        mmd(np.zeros((2, 2)), np.zeros((3, 2)))
