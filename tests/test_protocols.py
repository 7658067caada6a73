"""Protocols end to end, with small networks in the place of pretrained ones; nothing is merged."""

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh

import neurodiff as nd
from neurodiff.analysis import networks, protocol_scores, protocols
from neurodiff.analysis.evaluation import evaluate
from neurodiff.analysis.networks import Network, Networks, find_networks, install_line
from neurodiff.analysis.protocol_scores import ProtocolScorer
from neurodiff.analysis.protocols import PROTOCOLS, beside_published, read_card, reasons_against
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import save_safetensors
from neurodiff.models.pointnet import PointNet
from neurodiff.pipelines.mind3d import Reconstruction

SHAPES = {
    "cube": trimesh.creation.box((1, 1, 1)),
    "rod": trimesh.creation.box((0.2, 1, 0.3)),
    "ball": trimesh.creation.icosphere(subdivisions=2, radius=0.5),
}


class Judge:
    """Classes by how much of each corner of the picture is dark; knows nothing of the batch."""

    def probabilities(self, views):
        dark = (255.0 - views.mean(axis=3)) / 255  # (n, h, w)
        parts = dark.reshape(len(views), 4, dark.shape[1] // 4, 4, -1).mean(axis=(2, 4))
        return parts.reshape(len(views), 16) * (1 + np.arange(16) / 100)  # no ties


class Distance:
    """Mean absolute difference of the values that the network is handed."""

    def distances(self, a, b, *, values):
        scale = 255 if values == "0..1" else 127.5
        return np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)) / scale


def pointnet():
    torch.manual_seed(0)
    return PointNet(3).eval()


@pytest.fixture
def small(monkeypatch):
    """All three networks, by names of their own."""
    made = {"n-way": Judge(), "LPIPS": Distance(), "FPD": pointnet()}
    found = {
        use: Network(use, f"small {use}", False, (), lambda files, use=use: made[use])
        for use in made
    }
    there = Networks(found, {})
    monkeypatch.setattr("neurodiff.analysis.evaluation.find_networks", lambda folder=None: there)
    monkeypatch.setattr(protocol_scores, "VIEW_PIXELS", 32)
    monkeypatch.setattr(protocol_scores, "N_POINTS", 128)
    monkeypatch.setattr("neurodiff.metrics.images.SSIM_SIZE", 40)
    return there


@pytest.fixture
def truth():
    table = pd.DataFrame({"id": list(SHAPES), "category": ["solid", "thin", "solid"]})
    return nd.Stimuli(table, lambda name: SHAPES[name].copy())


def result(stimulus, mesh=None, *, sample=0):
    mesh = SHAPES[stimulus].copy() if mesh is None else mesh
    return Reconstruction("s", stimulus, 1, sample, np.zeros(2), np.zeros(2, int), mesh)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_metric_of_a_protocol_with_its_network_in_the_name(small, truth, protocol):
    found = evaluate([result(name) for name in SHAPES], truth, protocol, full=True)
    rules = PROTOCOLS[protocol]
    assert {protocols.metric_of(name) for name in found.metrics} == {
        *rules.quick, *rules.full
    } - {"FPD"}  # fmt: skip
    assert "LPIPS [small LPIPS]" in found.metrics
    assert list(found.sets["metric"]) == ["FPD [small FPD]"]
    assert found.sets["n"].iloc[0] == 3
    # the truth itself: equal pictures
    for name in ("SSIM", "2-way [small n-way]", "10-way [small n-way]"):
        np.testing.assert_allclose(found.table[name], 1)
    np.testing.assert_array_equal(found.table["LPIPS [small LPIPS]"], 0)
    assert np.isfinite(found.table["PSNR"]).all()
    assert all("not comparable" in line for line in found.notes)


def test_an_item_does_not_depend_on_the_others_nor_on_their_order(small, truth):
    items = [result("cube", SHAPES["ball"]), result("rod"), result("ball", SHAPES["rod"])]
    for protocol in PROTOCOLS:
        together = evaluate(items, truth, protocol, full=True)
        reverse = evaluate(items[::-1], truth, protocol, full=True)
        alone = evaluate(items[:1], truth, protocol, full=True)
        names = [n for n in together.metrics if n != "within"]  # an identification among them
        one, other = together.table[names], reverse.table[names][::-1].reset_index(drop=True)
        pd.testing.assert_frame_equal(one, other)
        pd.testing.assert_frame_equal(one[:1], alone.table[names])
        again = evaluate(items, truth, protocol, full=True)
        pd.testing.assert_frame_equal(together.sets, again.sets)


def test_the_slips_of_the_released_code(small, truth):
    items = [result("cube", SHAPES["ball"]), result("rod")]
    new, old = (evaluate(items, truth, name, full=True).table for name in PROTOCOLS)
    # 0..1 in the place of -1..1 halves every difference
    np.testing.assert_allclose(old["LPIPS [small LPIPS]"], new["LPIPS [small LPIPS]"] / 2)
    # the shape itself, "adjusted", is not where it was
    assert new["CD"][1] < 1 < old["CD"][1]
    assert new["CD turned"][1] < 1
    np.testing.assert_array_equal(old["PSNR"], new["PSNR"])
    # 100 draws against their expectation
    name = "10-way [small n-way]"
    assert abs(old[name][0] - new[name][0]) < 4 * np.sqrt(0.25 / 600)


def test_n_way_of_knowing_nothing_is_chance(small, truth):
    class Blind(Judge):
        def probabilities(self, views):
            return np.full((len(views), 16), 1 / 16)

    scorer = ProtocolScorer(PROTOCOLS["neurodiff-1"], small)
    scorer._opened["n-way"] = Blind()
    true = scorer.true_shape("cube", SHAPES["cube"])
    scores = scorer.item(SHAPES["ball"], true, ["2-way", "10-way"])
    assert scores == {"2-way [small n-way]": 0.5, "10-way [small n-way]": pytest.approx(0.1)}
    assert protocols.quantity("10-way [any]").chance == 0.1


def test_empty_meshes_are_left_out_of_fpd_and_counted(small, truth):
    items = [result("cube"), result("rod"), result("ball", trimesh.Trimesh())]
    found = evaluate(items, truth, full=True)
    row = found.sets.iloc[0]
    assert row["n"] == 2
    assert "1 items without a shape are left out" in row["note"]
    assert np.isfinite(found.table.loc[2, ["PSNR", "EMD", "CD turned"]].astype(float)).all()
    few = evaluate(items[1:], truth, full=True).sets.iloc[0]
    assert np.isnan(few["value"])
    assert "not available" in few["note"]


def test_without_weights_each_use_says_what_to_do(truth, monkeypatch):
    monkeypatch.delenv(networks.VARIABLE, raising=False)
    monkeypatch.setattr(protocol_scores, "VIEW_PIXELS", 32)
    monkeypatch.setattr(protocol_scores, "N_POINTS", 128)
    found = evaluate([result("cube")], truth, "mind3d-2024", full=True)
    assert found.metrics == ["CD", "PSNR", "SSIM", "EMD"]
    assert len(found.sets) == 0
    text = "\n".join(found.notes)
    for use in networks.USES:
        assert f"{use} is not available" in text
    assert install_line() in text
    assert "--no-deps --require-hashes" in text
    assert "stand_in_pointnet DIR" in text


# --------------------------------------------------------------------- weights in a folder


def test_published_networks_win_and_broken_ones_are_named(tmp_path, monkeypatch):
    save_safetensors(pointnet().state_dict(), tmp_path / networks.STAND_IN_POINTNET)
    found = find_networks(tmp_path).get("FPD")
    assert (found.name, found.published) == ("PointNet simulated", False)
    assert found.load().fc3.out_features == 3
    assert set(found.hashes()) == {networks.STAND_IN_POINTNET}
    below = tmp_path / "deep" / "er"
    below.mkdir(parents=True)
    torch.save({"model_state_dict": PointNet().state_dict()}, below / "pointnet_fpd.pth")
    monkeypatch.setenv(networks.VARIABLE, str(tmp_path))
    published = find_networks().get("FPD")
    assert published.published
    assert published.load().fc3.out_features == 13
    half = {k: v for k, v in PointNet().state_dict().items() if "stn" not in k}
    torch.save({"model_state_dict": half}, below / "pointnet_fpd.pth")
    with pytest.raises(DataError, match=r"lacks 'feat\.stn.*another network"):
        find_networks().get("FPD").load()
    with pytest.raises(MissingDataError, match="--weights DIR"):
        find_networks(tmp_path / "nowhere")


def test_container_packages_are_pinned_by_hash(repository):
    text = (repository / "analysis" / networks.PACKAGES).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = [line for line in lines if "==" in line]
    hashes = [line.split("sha256:")[1].strip() for line in lines if "sha256:" in line]
    assert len(pins) == len(hashes) == 4
    assert all(len(one) == 64 and int(one, 16) for one in hashes)


# ------------------------------------------------------------------------- published figures


def test_card_holds_the_published_row():
    card = read_card("mind3d-2024")
    [row] = [one for one in card.published if one.method == "MinD-3D++"]
    assert row.values["FPD"] == 3.025
    assert row.values["10-way"] == 0.616
    assert any("MinD-3D (ECCV 2024)" in one for one in card.not_found)
    assert protocols.published_table(card).loc["BrainGS", "EMD"] == "not found"
    assert set(card.metrics) == {*PROTOCOLS["mind3d-2024"].quick, *PROTOCOLS["mind3d-2024"].full}


@pytest.mark.parametrize(
    ("column", "protocol", "simulated", "why"),
    [
        ("FPD [PointNet simulated]", "mind3d-2024", False, "the network is PointNet simulated"),
        ("LPIPS [AlexNet]", "mind3d-2024", False, "views come from the ray caster"),
        ("CD", "neurodiff-1", False, "the protocol is neurodiff-1"),
        ("CD", "mind3d-2024", True, "simulated"),
        ("IoU", "mind3d-2024", False, "has no IoU"),
    ],
)
def test_what_is_not_comparable_is_refused(column, protocol, simulated, why):
    card = read_card()
    for means in ({column: 1.0}, {"EMD": 3.0, column: 1.0}):
        with pytest.raises(UsageError, match="cannot stand in one table") as raised:
            beside_published(means, card, label="run", protocol=protocol, simulated=simulated)
        assert why in str(raised.value)


def test_what_is_comparable_stands_in_the_published_columns():
    means = {"CD": 1.5, "FPD [PointNet 13 ShapeNet classes]": 3.0}
    card = read_card()
    table = beside_published(means, card, label="run", protocol="mind3d-2024", simulated=False)
    assert table.loc["run", "CD"] == 1.5
    assert table.loc["run", "LPIPS [AlexNet]"] == "not computed"
    assert not reasons_against("CD", card, protocol="mind3d-2024", simulated=False)


def test_stand_in_pointnet_tells_simulated_categories(tmp_path):
    from neurodiff.analysis.stand_in_pointnet import train_stand_in

    path, accuracy = train_stand_in(
        tmp_path, steps=2, objects=2, categories=("chair", "lamp"), seed=1
    )
    assert find_networks(tmp_path).get("FPD").files == (path,)
    again, _ = train_stand_in(
        tmp_path / "b", steps=2, objects=2, categories=("chair", "lamp"), seed=1
    )
    assert again.read_bytes() == path.read_bytes()
    assert 0 <= accuracy <= 1


def test_the_page_keeps_published_figures_apart():
    from neurodiff.analysis.run_report import _published

    cell = {"mean": 1.5, "median": 1.4, "low": 1.0, "high": 2.0, "n": 3}
    conditions = {"run": {"role": "ours", "CD": cell, "LPIPS [VGG16-HED 128 px]": cell}}
    [(_, simulated, _)], notes = _published(conditions, "mind3d-2024", True)
    assert "run" not in simulated.index
    assert any(
        "run, CD: not comparable with published (the data are simulated)" in n for n in notes
    )
    [(_, real, _)], notes = _published(conditions, "mind3d-2024", False)
    assert real.loc["run", "CD"] == "1.5"
    assert real.loc["run", "LPIPS [AlexNet]"] == "not computed"
    assert any("the network is VGG16-HED" in note for note in notes)
    assert _published(conditions, "neurodiff-1", False) == ([], [])
