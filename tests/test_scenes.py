"""Simulated scenes: each is drawn from its own id, and its parts agree with what is known of it."""

from dataclasses import replace

import numpy as np
import pytest

from neurodiff.core.errors import UsageError
from neurodiff.datasets.simulated.objects import CATEGORIES
from neurodiff.datasets.simulated.places import PLACES, background
from neurodiff.datasets.simulated.scenes import (
    COLOURS,
    SIZE,
    draw_scene,
    make_scene,
    make_scenes,
    silhouettes,
)

FEW = ("bottle", "chair", "lamp")


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(24, split="train", seed=0)


def test_a_scene_does_not_depend_on_the_others(scenes):
    alone = make_scene(7, split="train", seed=0)
    assert alone.captions == scenes.scenes[7].captions
    assert (alone.x, alone.scale, alone.azimuth) == (
        scenes.scenes[7].x,
        scenes.scenes[7].scale,
        scenes.scenes[7].azimuth,
    )
    image, mask = draw_scene(alone, seed=0)
    np.testing.assert_array_equal(image, scenes.images[7])
    np.testing.assert_array_equal(mask, scenes.masks[7])
    fewer = make_scenes(8, split="train", seed=0)
    np.testing.assert_array_equal(fewer.images, scenes.images[:8])


def test_workers_change_nothing(monkeypatch):
    """Blocks of a process are the blocks of one; the pool is replaced, since it is not ours."""
    from neurodiff.datasets.simulated import scenes as module

    asked = []

    class Pool:
        def __init__(self, workers, **options):
            asked.append(workers)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        map = staticmethod(map)

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(module, "draw_scene", _pretend)
    one = make_scenes(120, split="train", seed=1, categories=FEW)
    assert asked == []
    two = make_scenes(120, split="train", seed=1, categories=FEW, workers=2)
    assert asked == [2]
    assert one.ids == two.ids
    np.testing.assert_array_equal(one.images, two.images)


def _pretend(scene, *, seed):
    """A picture that only tells which scene it is of."""
    value = int(scene.id[-5:]) % 256
    return np.full((SIZE, SIZE, 3), value, np.uint8), np.ones((SIZE, SIZE), bool)


def test_splits_and_seeds_differ(scenes):
    other = make_scene(0, split="test", seed=0)
    another = make_scene(0, split="train", seed=1)
    first = scenes.scenes[0]
    assert other.id == "test-scene-00000"
    for scene in (other, another):
        assert (scene.x, scene.azimuth) != (first.x, first.azimuth)
    assert not np.array_equal(draw_scene(another, seed=1)[0], scenes.images[0])


def test_the_mask_shows_where_the_object_is(scenes):
    """In another colour the picture changes inside the mask and nowhere far from it."""
    for k in (0, 5, 11):
        scene = scenes.scenes[k]
        colour = "black" if scene.colour != "black" else "white"
        image, mask = draw_scene(replace(scene, colour=colour), seed=0)
        changed = (image != scenes.images[k]).any(axis=-1)
        np.testing.assert_array_equal(mask, scenes.masks[k])
        assert changed[mask].mean() > 0.9
        near = mask.copy()  # half-covered pixels at the edge
        near[1:] |= mask[:-1]
        near[:-1] |= mask[1:]
        near[:, 1:] |= near[:, :-1].copy()
        near[:, :-1] |= near[:, 1:].copy()
        assert not changed[~near].any() or changed[~near].mean() < 0.02
        assert changed[~mask].mean() < 0.25


def test_mask_follows_scale_and_place_across(scenes):
    for scene, mask in zip(scenes.scenes, scenes.masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert longest <= round(scene.scale * SIZE) + 1
        assert longest >= 0.8 * scene.scale * SIZE - 2
        left = replace(scene, x=-1.0)
        columns_left = np.flatnonzero(draw_scene(left, seed=0)[1].any(axis=0))
        assert columns_left.min() <= columns.min()
        break


def test_captions_tell_colour_category_and_place(scenes):
    for scene in scenes.scenes:
        assert len(set(scene.captions)) == 3
        for caption in scene.captions:
            assert scene.colour in caption
            assert PLACES[scene.place].words in caption
            assert scene.category in caption
        assert scene.captions[2].split(",")[0].endswith(("left", "middle", "right"))


def test_colours_are_seen():
    """Median colour inside the mask is nearest to the colour that is named, in most scenes."""
    scene = make_scene(0, split="train", seed=3)
    found = {}
    for colour in COLOURS:
        image, mask = draw_scene(replace(scene, colour=colour), seed=0)
        inside = image[mask].astype(float)
        found[colour] = inside.mean(axis=0) / np.linalg.norm(inside.mean(axis=0))
    # a named hue points where its own sRGB value points, whatever the shade
    for colour in ("red", "orange", "yellow", "green", "blue", "purple"):
        towards = {name: found[colour] @ np.array(c) / np.linalg.norm(c)
                   for name, c in COLOURS.items()}  # fmt: skip
        assert max(towards, key=towards.get) == colour


@pytest.mark.parametrize("place", PLACES)
def test_every_place_draws_and_is_its_own(place):
    image, ground = background(place, SIZE, np.random.default_rng(0))
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert SIZE // 2 <= ground <= 0.65 * SIZE
    again, _ = background(place, SIZE, np.random.default_rng(0))
    np.testing.assert_array_equal(image, again)
    other, _ = background(place, SIZE, np.random.default_rng(1))
    assert not np.array_equal(image, other)


def test_categories_go_round_and_all_places_and_colours_are_used():
    drawn = [make_scene(k, split="train", seed=0, categories=FEW) for k in range(90)]
    assert [scene.category for scene in drawn[:6]] == [*FEW, *FEW]
    assert {scene.place for scene in drawn} == set(PLACES)
    assert {scene.colour for scene in drawn} == set(COLOURS)
    assert {scene.category for scene in map(lambda k: make_scene(k, split="a", seed=0),
            range(len(CATEGORIES)))} == set(CATEGORIES)  # fmt: skip


def test_stimuli_give_picture_captions_and_factors(scenes):
    stimuli = scenes.stimuli()
    assert stimuli.simulated
    name = scenes.ids[3]
    np.testing.assert_array_equal(np.asarray(stimuli[name].image()), scenes.images[3])
    assert stimuli.captions(name) == scenes.scenes[3].captions
    assert stimuli[name].category == scenes.scenes[3].category
    assert stimuli[name].factors["x"] == scenes.scenes[3].x
    part = scenes.select([5, 3])
    assert part.ids == [scenes.ids[5], scenes.ids[3]]
    np.testing.assert_array_equal(part.stimuli()[name].image(), scenes.images[3])


def test_outlines_know_nothing_of_place_across_and_size(scenes):
    """The same object elsewhere and smaller is nearer to itself than to all other objects."""
    scene = scenes.scenes[4]
    there = replace(scene, x=0.9, scale=0.6)
    image, mask = draw_scene(there, seed=0)
    moved = replace(scenes.select([4]), images=image[None], masks=mask[None])
    ours, other = silhouettes(scenes.select([4]))[0], silhouettes(moved)[0]
    assert ours.shape == (256,)
    towards = [np.corrcoef(one, other)[0, 1] for one in silhouettes(scenes)]
    assert np.argmax(towards) == 4
    assert towards[4] > 0.8
    assert 0 <= ours.min() <= ours.max() <= 1
    nothing = replace(moved, masks=np.zeros_like(mask)[None])
    assert not silhouettes(nothing).any()


@pytest.mark.parametrize("index", [-1, -20])
def test_negative_scenes_are_refused(index):
    with pytest.raises(UsageError, match="nothing to draw"):
        make_scene(index, split="train", seed=0)


def test_nothing_to_simulate_is_told():
    with pytest.raises(UsageError, match="nothing to draw"):
        make_scene(0, split="train", seed=0, categories=())
    with pytest.raises(UsageError, match="0 scenes and 1 workers"):
        make_scenes(0, split="train", seed=0)
    with pytest.raises(UsageError, match="1 scenes and 0 workers"):
        make_scenes(1, split="train", seed=0, workers=0)
    with pytest.raises(UsageError, match=r"no place 'beech'.*beach"):
        background("beech", SIZE, np.random.default_rng(0))
