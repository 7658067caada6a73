"""The simulated chest and what a scanner makes of it."""

import numpy as np
import pytest

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.radial_gain import radial_frequency
from neurodiff.datasets.simulated.scanners import (
    KernelChange,
    draw_kernel_change,
    imitate_iterative,
    kernel_library,
    local_noise,
    lower_dose,
    noise_field,
    simulated_lung,
    simulated_pair,
    simulated_scan,
    slice_profiles,
)


@pytest.fixture(scope="module")
def lung():
    return simulated_lung(0, slices=6, size=96)


def test_truth_is_what_was_planted(lung):
    inside = lung.hu[lung.lung]
    assert lung.truth["low_attenuation_share"] == (inside < -950).mean()
    assert lung.truth["low_attenuation_share"] == lung.emphysema.sum() / lung.lung.sum()
    assert not np.any(lung.emphysema & ~lung.lung)
    # a gap between parenchyma and emphysema: the threshold itself decides nothing
    assert not np.any((inside > -955) & (inside < -905))
    assert lung.truth["percentile_15"] == np.percentile(inside, 15)
    assert np.all(lung.hu[lung.padding] == -1024)
    assert lung.hu.dtype == np.float32


def test_share_and_calcium_follow_what_is_asked():
    for share in (0.0, 0.1, 0.4):
        made = simulated_lung(3, slices=4, size=64, share=share)
        assert made.truth["low_attenuation_share"] == pytest.approx(share, abs=1e-3)
    bare = simulated_lung(3, slices=4, size=64, plaques=0)
    assert bare.truth["agatston"] == 0
    assert bare.hu[bare.heart].max() < 130
    calcified = simulated_lung(3, slices=8, size=256)
    heart = np.where(calcified.heart, calcified.hu, 0)
    area = calcified.spacing[0] ** 2
    weights = np.select([heart >= 400, heart >= 300, heart >= 200, heart >= 130], [4, 3, 2, 1], 0)
    expected = weights.sum() * area * calcified.thickness_mm / 3
    assert calcified.truth["agatston"] == pytest.approx(expected)
    assert calcified.truth["agatston"] > 0


def test_anatomy_follows_the_seed_alone(lung):
    assert np.array_equal(simulated_lung(0, slices=6, size=96).hu, lung.hu)
    assert not np.array_equal(simulated_lung(1, slices=6, size=96).hu, lung.hu)


def test_library_names_its_sources_and_begins_at_one():
    library = kernel_library()
    assert {"toshiba_fc51_fc13", "philips_ya_ub"} <= set(library)
    for change in library.values():
        assert change.source
        assert change.gain[0] == 1
        assert change.measured
        assert np.all(np.diff(change.gain) <= 1e-9)  # from sharp to soft
    assert library["philips_ya_ub"].iterative
    # two figures of the reference's own fit of the pair, on four slices of which two are here
    toshiba = library["toshiba_fc51_fc13"]
    assert np.interp([2.0, 4.0, 6.0], toshiba.frequency, toshiba.gain) == pytest.approx(
        [0.690, 0.327, 0.186], abs=0.03
    )
    for taps in slice_profiles().values():
        assert taps.sum() == pytest.approx(1)


def test_drawn_changes_soften_and_leave_out():
    for seed in range(8):
        drawn = draw_kernel_change(seed, leave_out=("toshiba_fc51_fc13",))
        assert "toshiba" not in drawn.source
        assert not drawn.measured
        assert drawn.gain[0] == 1
        assert np.all(np.diff(drawn.gain) <= 1e-12)
    assert np.array_equal(draw_kernel_change(5).gain, draw_kernel_change(5).gain)
    assert not np.array_equal(draw_kernel_change(5).gain, draw_kernel_change(6).gain)
    with pytest.raises(UsageError, match="toshiba_fc51_fc13"):
        draw_kernel_change(0, leave_out=("toshiba_fc51_fc31",))
    with pytest.raises(UsageError, match="keep at least one"):
        draw_kernel_change(0, leave_out=tuple(kernel_library()))


def test_noise_has_the_spectrum_of_a_ramp_and_passes_the_kernel():
    shape, spacing = (24, 96, 96), (0.7, 0.7)
    sharp = noise_field(shape, spacing, seed=1)
    assert abs(sharp.mean()) < 1e-6
    assert sharp.std() == pytest.approx(1, abs=0.02)
    power = (np.abs(np.fft.fft2(sharp)) ** 2).mean(axis=0)
    f = radial_frequency((96, 96), spacing, half=False)
    ring = [power[(f > low) & (f < low + 0.5)].mean() for low in (1.0, 2.0, 4.0)]
    assert ring[1] / ring[0] == pytest.approx(2.25 / 1.25, rel=0.15)
    assert ring[2] / ring[0] == pytest.approx(4.25 / 1.25, rel=0.15)
    change = kernel_library()["toshiba_fc51_fc13"]
    soft = noise_field(shape, spacing, seed=1, change=change)
    spectra = [np.fft.fft2(field) for field in (sharp, soft)]
    ratio = np.abs(spectra[1]).sum(axis=0) / np.maximum(np.abs(spectra[0]).sum(axis=0), 1e-9)
    used = (f > 1) & (f < 6)
    assert np.abs(ratio - np.interp(f, change.frequency, change.gain))[used].max() < 1e-3


def test_noise_hangs_together_across_slices_by_the_taps():
    taps = slice_profiles()["philips_1mm_5mm"]
    field = noise_field((60, 48, 48), (0.7, 0.7), seed=2, taps=taps)
    assert field.std() == pytest.approx(1, abs=0.02)
    known = np.correlate(taps, taps, "full") / (taps**2).sum()
    for step in (1, 3, 7):
        found = float((field[step:] * field[:-step]).mean())
        assert found == pytest.approx(known[len(taps) - 1 + step] if step < 7 else 0, abs=0.03)


def test_local_noise_grows_with_what_the_rays_cross(lung):
    sigma = local_noise(lung.hu[2:3], lung.spacing, sd=60.0)
    tissue = (lung.hu[2:3] > -150) & (lung.hu[2:3] < 150)
    assert sigma[tissue].mean() == pytest.approx(60, rel=1e-4)
    # the mediastinum lies behind more tissue than the skin does
    middle, skin = sigma[0, 44:52, 44:52].mean(), sigma[0, 46:50, 8:12].mean()
    assert middle > 1.5 * skin
    # a uniform disc is symmetric: the map turns with the image
    at = np.arange(64) - 31.5
    disc = np.where(np.hypot(at[:, None], at[None]) < 24, 40.0, -1000.0)[None].astype(np.float32)
    round_map = local_noise(disc, (3.0, 3.0), sd=50.0)[0]
    assert np.abs(round_map - round_map.T).max() < 0.05 * round_map.max()
    # oblong pixels of the same disc: the same noise
    oblong = np.repeat(disc, 2, axis=2)
    wide = local_noise(oblong, (3.0, 1.5), sd=50.0)[0]
    assert np.abs(wide[32, ::2] - round_map[32]).max() < 0.06 * round_map.max()


@pytest.mark.shared_data
def test_local_noise_follows_that_of_a_real_scan(shared_data):
    from neurodiff.datasets.ct_series import read_series

    sharp, soft = (read_series(shared_data / "ct" / f"toshiba_{name}") for name in ("fc51", "fc13"))
    sigma = local_noise(soft.hu[:1], soft.spacing, sd=80.0)[0]
    pairs = []
    for r, c in np.ndindex(42, 42):
        square = np.s_[12 * r : 12 * r + 12, 12 * c : 12 * c + 12]
        flat = soft.hu[0][square].std() < 35 and abs(soft.hu[0][square].mean()) < 150
        if flat and not soft.padding[0][square].any():
            pairs.append((sigma[square].mean(), sharp.hu[0][square].std()))
    simulated, measured = np.array(pairs).T
    assert np.corrcoef(simulated, measured)[0, 1] > 0.8  # 0.84 measured on 201 squares


def test_dose_adds_the_variance_it_should(lung):
    hu = np.full((4, 96, 96), 40.0, np.float32)
    quarter = lower_dose(hu, (2.0, 2.0), 0.25, sd=20.0, seed=0)
    expected = 20.0 * np.sqrt(3)
    assert (quarter - hu).std() == pytest.approx(expected, rel=0.15)
    assert np.array_equal(lower_dose(hu, (2.0, 2.0), 1.0, sd=20.0, seed=0), hu)
    assert np.array_equal(quarter, lower_dose(hu, (2.0, 2.0), 0.25, sd=20.0, seed=0))
    other = lower_dose(hu, (2.0, 2.0), 0.25, sd=20.0, seed=0, subject="b")
    assert not np.array_equal(quarter, other)
    kept = lower_dose(lung.hu, lung.spacing, 0.5, sd=20.0, seed=0, padding=lung.padding)
    assert np.all(kept[lung.padding] == -1024)


def test_kernels_of_one_scan_share_its_noise(lung):
    change = kernel_library()["toshiba_fc51_fc13"]
    made = simulated_scan(lung, {"sharp": None, "soft": change}, seed=4)
    assert np.array_equal(made["soft"], change.apply(made["sharp"], lung.spacing, lung.padding))
    assert np.all(made["soft"][lung.padding] == -1024)
    half = simulated_scan(lung, {"sharp": None}, seed=4, dose=0.5)["sharp"]
    clean = simulated_scan(lung, {"sharp": None}, seed=4, dose=1e12)["sharp"]
    tissue = lung.heart
    ratio = (half - clean)[tissue].std() / (made["sharp"] - clean)[tissue].std()
    assert ratio == pytest.approx(np.sqrt(2), rel=1e-3)


def test_iterative_reconstruction_is_not_linear_and_says_so(lung):
    hu = simulated_scan(lung, {"sharp": None}, seed=5)["sharp"][:2]
    change = kernel_library()["toshiba_fc51_fc13"]
    pair = simulated_pair(hu, lung.spacing, change, seed=0, padding=lung.padding[:2])
    assert pair.linear
    smooth = simulated_pair(
        hu, lung.spacing, change, seed=0, padding=lung.padding[:2], iterative=0.5, dose=0.5
    )
    assert not smooth.linear
    assert smooth.facts["simulated"]
    inside = lung.heart[:2]
    assert smooth.target[inside].std() < pair.target[inside].std()
    assert smooth.source[inside].std() > pair.source[inside].std()
    assert np.all(smooth.target[lung.padding[:2]] == hu[lung.padding[:2]])
    flat, noisy = np.full((1, 32, 32), 40.0, np.float32), hu[:1, :32, :32]
    double = imitate_iterative(flat + 2 * noisy) - imitate_iterative(flat + noisy)
    assert not np.allclose(double, imitate_iterative(flat + noisy) - flat, atol=1.0)
    ub = simulated_pair(hu, lung.spacing, kernel_library()["philips_ya_ub"], seed=0)
    assert not ub.linear  # one side of that measured pair was reconstructed iteratively


@pytest.mark.shared_data
def test_library_entry_makes_the_real_soft_kernel_of_the_real_sharp_one(shared_data):
    from neurodiff.datasets.ct_series import read_series

    sharp, soft = (read_series(shared_data / "ct" / f"toshiba_{name}") for name in ("fc51", "fc13"))
    change = kernel_library()["toshiba_fc51_fc13"]
    pair = simulated_pair(sharp.hu, sharp.spacing, change, seed=0, padding=sharp.padding)
    body = (soft.hu > -900) & ~soft.padding
    before, after = (
        float(np.sqrt(np.square((hu - soft.hu)[body]).mean())) for hu in (sharp.hu, pair.target)
    )
    assert before > 100
    assert after < 13.5  # measured 12.7; a fit on the other slice gives 12.8


def test_bad_input_has_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="48 pixels"):
        simulated_lung(0, size=16)
    with pytest.raises(UsageError, match="share of emphysema"):
        simulated_lung(0, size=64, share=0.9)
    hu = np.zeros((1, 32, 32), np.float32)
    with pytest.raises(UsageError, match="dose fraction"):
        lower_dose(hu, (1.0, 1.0), 0.0, sd=20.0, seed=0)
    with pytest.raises(UsageError, match="SD in tissue"):
        local_noise(hu, (1.0, 1.0), sd=0.0)
    with pytest.raises(UsageError, match="strength"):
        imitate_iterative(hu, strength=2.0)
    wrong = tmp_path / "library.yaml"
    for text, sentence in (
        ("a: 1", "no list of kernels"),
        ("kernels: [{name: x}]", "lacks frequency"),
        (
            "kernels: [{name: x, from: A, to: B, source: s, frequency: [0, 1], gain: [0.9, 1]}]",
            "begin with gain 1",
        ),
        (
            "kernels: [{name: x, from: A, to: B, source: s, frequency: [1, 0], gain: [1, 1]}]",
            "ascending",
        ),
        (
            "kernels: [{name: x, from: A, to: B, source: s, frequency: [0, 1], gain: [1, 1], "
            "coherence: [1]}]",
            "coherences",
        ),
    ):
        wrong.write_text(text)
        with pytest.raises(DataError, match=sentence):
            kernel_library(wrong)
    change = KernelChange(name="x", frequency=np.array([0.0, 1]), gain=np.array([1.0, 1]))
    with pytest.raises(DataError, match="slices, rows"):
        change.apply(hu[0], (1.0, 1.0))
