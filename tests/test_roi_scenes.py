"""Scenes of areas: the formulas by explicit weights, and what an area's scene depends on."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from neurodiff.analysis.roi_auc import null_areas, roi_auc
from neurodiff.bridges.factored_ridge import FactoredRidge
from neurodiff.bridges.roi_patterns import roi_rows
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.training import TrainingSettings
from neurodiff.datasets.simulated.scene_subject import (
    PREFERRED,
    SceneFeatureSpace,
    plant_scene_subject,
)
from neurodiff.datasets.simulated.scenes import make_scenes
from neurodiff.datasets.simulated.subject import beta_variance
from neurodiff.features.plain_tokens import WordTokens
from neurodiff.features.scene_judge import SceneJudge
from neurodiff.pipelines.brain_diffuser import BetaInput, BrainDiffuser
from neurodiff.pipelines.pictures import Picture
from neurodiff.pipelines.roi_scenes import Gains, roi_features, roi_scenes

VOXELS = 30


class Grey:
    """A generator whose picture tells its seed and its tokens."""

    def generate(self, init_images, text_tokens, image_tokens, *, seed, **options):
        return [
            PIL.Image.new("RGB", (8, 8), (one % 251, int(abs(t.sum()) * 100) % 251, 0))
            for one, t in zip(seed, text_tokens, strict=True)
        ]


class Nets:
    generator = Grey()

    def low_level(self, latents, seeds):
        return [PIL.Image.new("RGB", (8, 8), int(abs(z).sum()) % 251) for z in latents]


def fitted(standardise="loo"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, VOXELS))
    pipe = BrainDiffuser.from_recipe("brain_diffuser_tiny")
    weights = rng.standard_normal((VOXELS, 2 * 3 + 4 * 5 + 12))
    y = x @ weights + 3 * rng.standard_normal((40, weights.shape[1])) + 0.5
    parts = {"text": y[:, :6].reshape(40, 2, 3), "vision": y[:, 6:26].reshape(40, 4, 5),
             "vdvae": y[:, 26:]}  # fmt: skip
    for head, target in parts.items():
        pipe.heads[head] = FactoredRidge(1.0, standardise=standardise).fit(x, target)
    pipe.networks = Nets()
    pipe.input = BetaInput(np.zeros(VOXELS), np.ones(VOXELS), "space", "sub-1")
    return pipe, parts


@pytest.fixture(scope="module")
def pipe():
    return fitted()[0]


@pytest.fixture(scope="module")
def targets():
    return fitted()[1]


@pytest.fixture(scope="module")
def rois():
    masks = np.zeros((3, VOXELS), bool)
    masks[0, :5] = masks[1, 5:20] = masks[2, 18:] = True
    return dict(zip(("FFA", "PPA", "V1"), masks, strict=True))


def test_published_formulas_by_explicit_weights(pipe, rois, targets):
    """As printed in the paper's code: sums of weights, then lengths 9, 15, 50 and 80."""
    found = roi_features(pipe, rois, across_rows=True, gains=Gains())
    r = np.stack(list(rois.values())).astype(float)
    for head, gain in (("text", 9), ("vision", 15)):
        bridge = pipe.heads[head]
        w, b = bridge.weights(0, bridge.targets_.shape[1])
        p = r @ w.T
        want = gain * p / np.linalg.norm(p, axis=1, keepdims=True) + b
        np.testing.assert_allclose(getattr(found, head).reshape(3, -1), want, rtol=1e-4, atol=1e-4)
    bridge, y = pipe.heads["vdvae"], targets["vdvae"]
    w, b = bridge.weights(0, 12)
    q = 50 * (r @ w.T) / np.linalg.norm(r @ w.T, axis=1, keepdims=True) + b
    u = (q - q.mean(0)) / q.std(0) * y.std(0) + y.mean(0)
    want = 80 * u / np.linalg.norm(u, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vdvae, want, rtol=1e-3, atol=1e-3)


def test_gains_are_the_length_of_training_items(pipe, targets):
    gains = Gains.of(pipe)
    for head, value in (("text", gains.text), ("vision", gains.vision), ("vdvae", gains.length)):
        y = targets[head].reshape(40, -1)
        assert value == pytest.approx(np.sqrt((y**2).sum(axis=1).mean()), rel=1e-9)
    assert gains.latent == pytest.approx(gains.length * 50 / 80)
    latents = roi_features(pipe, {"all": np.ones(VOXELS, bool)}).vdvae
    assert np.linalg.norm(latents) == pytest.approx(gains.length, rel=1e-5)


def test_the_published_size_keeps_the_published_gains():
    shapes = {"vdvae": (91168,), "text": (77, 768), "vision": (257, 768)}
    heads = {h: SimpleNamespace(targets_=SimpleNamespace(item_shape=s)) for h, s in shapes.items()}
    assert Gains.of(SimpleNamespace(heads=heads)) == Gains(
        text=9.0, vision=15.0, latent=50.0, length=80.0
    )


def test_an_area_depends_on_the_others_only_as_published(pipe, rois):
    some = {name: rois[name] for name in ("V1", "FFA")}
    for across in (False, True):
        every, fewer = (roi_features(pipe, part, across_rows=across) for part in (rois, some))
        np.testing.assert_allclose(every.text[[2, 0]], fewer.text, atol=1e-5)
        np.testing.assert_allclose(every.vision[[2, 0]], fewer.vision, atol=1e-5)
        same = np.allclose(every.vdvae[[2, 0]], fewer.vdvae, atol=1e-4)
        assert same is not across
    alone = roi_features(pipe, {"V1": rois["V1"]})
    np.testing.assert_allclose(alone.vdvae[0], roi_features(pipe, rois).vdvae[2], atol=1e-4)
    with pytest.raises(DataError, match="there is 1; give several"):
        roi_features(pipe, {"V1": rois["V1"]}, across_rows=True)


def test_scenes_of_an_area_are_the_same_in_any_company(pipe, rois):
    every = roi_scenes(pipe, rois, samples=2)
    assert list(every) == list(rois)
    assert [one.sample for one in every["PPA"]] == [0, 1]
    assert every["PPA"][0].subject == "sub-1"
    assert every["PPA"][0].stimulus == "roi PPA"
    alone = roi_scenes(pipe, {"PPA": rois["PPA"]}, samples=1)
    red = [one.image.getpixel((0, 0))[0] for one in (every["PPA"][0], alone["PPA"][0])]
    assert red[0] == red[1]  # the seed
    assert every["PPA"][0].image.tobytes() != every["PPA"][1].image.tobytes()
    other = roi_scenes(pipe, rois, seed=1)
    assert other["PPA"][0].image.getpixel((0, 0))[0] != red[0]


def test_wrong_use_is_told(pipe, rois):
    with pytest.raises(UsageError, match="not fitted"):
        roi_features(BrainDiffuser.from_recipe("brain_diffuser_tiny"), rois)
    with pytest.raises(UsageError, match="no ROI was named"):
        roi_features(pipe, {})
    with pytest.raises(DataError, match="ROI 'none' is empty"):
        roi_features(pipe, {"none": np.zeros(VOXELS, bool)})
    with pytest.raises(DataError, match="over the 30 features"):
        roi_features(pipe, {"other": np.ones(VOXELS + 1, bool)})
    with pytest.raises(UsageError, match="0 samples of each area"):
        roi_scenes(pipe, rois, samples=0)
    for standardise, across in (("none", True), ("none", False), ("test", False)):
        other, _ = fitted(standardise)
        with pytest.raises(UsageError, match="fit it with standardise='loo'"):
            roi_features(other, rois, across_rows=across)


# ------------------------------------------------------------------------------ planted truth


@pytest.fixture(scope="module")
def simulated():
    """Text head of a simulated subject: (bridge, masks by area, null areas, directions, kinds)."""
    scenes = make_scenes(150, split="train", seed=0)
    features = SceneFeatureSpace(scenes)(scenes)
    planted = plant_scene_subject(features, median_ceiling=0.4)
    signal = planted.signal(features)
    noise = np.random.default_rng(0).standard_normal(signal.shape)
    x = signal + np.sqrt(beta_variance(planted.rho)) * noise
    y = WordTokens(width=32).text([scene.captions for scene in scenes.scenes])
    bridge = FactoredRidge(1.0).fit((x - x.mean(0)) / x.std(0), y)
    null = null_areas(planted.areas_table())
    masks = {area: planted.cortex.areas[area] for area in [*PREFERRED, *null]}
    return bridge, masks, null, scenes


@pytest.mark.parametrize("area", PREFERRED)
def test_a_tuned_area_points_to_what_it_prefers(simulated, area):
    """Its tokens lie towards the captions of what it prefers, nearer than any null area's do."""
    bridge, masks, null, scenes = simulated
    family, what = PREFERRED[area]
    y = bridge.targets_.block(0, bridge.targets_.shape[1])
    kinds = np.array([getattr(scene, family) for scene in scenes.scenes])
    towards = {kind: y[kinds == kind].mean(axis=0) - y.mean(axis=0) for kind in np.unique(kinds)}
    patterns = bridge.patterns(roi_rows({a: masks[a] for a in [area, *null]}, 8921))[0]

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    own = {kind: cosine(patterns[0], direction) for kind, direction in towards.items()}
    assert max(own, key=own.get) == what
    assert own[what] > max(cosine(pattern, towards[what]) for pattern in patterns[1:])


# ------------------------------------------------------------------------------ judge and AUC


@pytest.fixture(scope="module")
def colours():
    rng = np.random.default_rng(0)
    names = [("red", "green", "blue")[k % 3] for k in range(60)]
    images = rng.integers(0, 40, (60, 16, 16, 3), dtype=np.uint8)
    for k, name in enumerate(names):
        images[k, ..., ("red", "green", "blue").index(name)] += 180
    sides = [("upper", "lower")[k // 3 % 2] for k in range(60)]
    for k, side in enumerate(sides):
        images[k, slice(0, 8) if side == "upper" else slice(8, 16)] //= 2
    return images, {"colour": names, "side": sides}


QUICK = TrainingSettings(steps=40, batch_size=12, learning_rate=1e-2, warmup=4)


@pytest.fixture(scope="module")
def judge(colours):
    return SceneJudge.fit(*colours, settings=QUICK)


def test_the_judge_learns_and_is_the_same_again(judge, colours):
    assert min(judge.accuracy(*colours).values()) > 0.9
    again = SceneJudge.fit(*colours, settings=QUICK)
    for task, values in judge.probabilities(colours[0]).items():
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(values, again.probabilities(colours[0])[task])
    p = judge.probabilities(colours[0])["colour"][:, judge.classes["colour"].index("red")]
    np.testing.assert_allclose(
        judge.score(colours[0], "colour", "red"), np.log(p / (1 - p)), rtol=1e-2, atol=1e-3
    )


def test_the_judge_refuses(judge, colours):
    images, labels = colours
    with pytest.raises(UsageError, match="does not know 'hue'; it knows colour"):
        judge.score(images, "hue", "red")
    with pytest.raises(UsageError, match=r"does not know 'rad'.*Did you mean"):
        judge.score(images, "colour", "rad")
    with pytest.raises(DataError, match="give uint8"):
        judge.probabilities(images / 255.0)
    with pytest.raises(DataError, match="60 pictures, but 59 labels"):
        SceneJudge.fit(images, {"colour": labels["colour"][1:]})
    for nothing in ({}, {"colour": ["red"] * 60}):
        with pytest.raises(UsageError, match="two labels or more"):
            SceneJudge.fit(images, nothing)


class Brightness:
    """A judge whose score for any label is the mean of a channel."""

    classes = {"kind": ("a", "b", "c")}  # noqa: RUF012

    def score(self, images, family, label):
        return images[..., self.classes[family].index(label)].mean(axis=(1, 2)).astype(float)

    def probabilities(self, images):
        p = images.mean(axis=(1, 2)) + 1e-9
        return {"kind": p / p.sum(axis=1, keepdims=True)}


def pictures(area, *values):
    return [
        Picture("s", f"roi {area}", 1, k, PIL.Image.new("RGB", (4, 4), tuple(v)))
        for k, v in enumerate(values)
    ]


PREFER = {"A": ("kind", "a"), "B": ("kind", "b")}


def test_auc_by_counting_pairs():
    scenes = {
        "A": pictures("A", (200, 0, 0), (50, 0, 0)),
        "B": pictures("B", (0, 30, 0), (0, 10, 0)),
        "x": pictures("x", (100, 20, 0), (50, 20, 0)),
        "y": pictures("y", (10, 20, 90), (0, 0, 90)),
    }
    found = roi_auc(scenes, Brightness(), PREFER, ["x", "y"], n=400)
    by_area = dict(zip(found.table["area"], found.table["AUC"], strict=True))
    # A: 200 beats 100 50 10 0; 50 beats 10 and 0 and ties with 50.  B: 30 beats all, 10 beats 0
    assert by_area == {"A": (4 + 2.5) / 8, "B": (4 + 1) / 8}
    assert found.overall.value == pytest.approx((6.5 + 5) / 16)
    assert found.overall.low <= found.overall.value <= found.overall.high
    assert "2 tuned areas" in str(found)
    told = dict(zip(found.table["area"], found.table["told as it"], strict=True))
    assert told == {"A": 1.0, "B": 1.0}


def test_a_judge_that_likes_a_label_gains_nothing():
    """Scenes of tuned and null areas that are drawn alike: AUC near one half, whatever the bias."""
    rng = np.random.default_rng(0)
    areas = ["A", "B", *(f"n{k}" for k in range(6))]
    scenes = {a: pictures(a, *rng.integers(0, 255, (30, 3)).tolist()) for a in areas}
    for area in areas:
        for k, one in enumerate(scenes[area]):
            r, _, b = one.image.getpixel((0, 0))
            scenes[area][k] = pictures(area, (r, 254, b))[0]  # all look like "b"
    found = roi_auc(scenes, Brightness(), PREFER, areas[2:], n=300)
    assert dict(zip(found.table["area"], found.table["AUC"], strict=True))["B"] == 0.5
    assert found.overall.low < 0.5 < found.overall.high


def test_auc_refuses():
    scenes = {a: pictures(a, (1, 2, 3)) for a in "ABxy"}
    with pytest.raises(UsageError, match="no scenes of z"):
        roi_auc(scenes, Brightness(), PREFER, ["x", "z"])
    with pytest.raises(UsageError, match="2 tuned and 1 null areas"):
        roi_auc(scenes, Brightness(), PREFER, ["x"])
    with pytest.raises(UsageError, match=r"'A'.* on both sides"):
        roi_auc(scenes, Brightness(), PREFER, ["x", "A"])


def test_null_areas_are_those_that_carry_nothing():
    table = pd.DataFrame({"area": ["V1", "MT", "V7"], "carries": ["light", "nothing", "nothing"]})
    assert null_areas(table) == ["MT", "V7"]
