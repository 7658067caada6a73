"""Directions of codes: scores, moves as published, released files, hostile input."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.pipelines.ldae_directions import (
    Direction,
    fit_direction,
    load_directions,
    published_direction,
    save_directions,
)


@pytest.fixture
def direction():
    rng = np.random.default_rng(0)
    return Direction(
        "AD", rng.normal(size=8), 0.3, rng.normal(size=8), rng.uniform(0.5, 2, 8), "class", "logit"
    )


def codes(n=5, d=8, seed=1):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_a_move_adds_amount_times_the_root_of_d_in_z_scores(direction):
    there = direction.move(codes(), 2.5)
    step = (there - codes()) / direction.std
    assert np.allclose(np.linalg.norm(step, axis=1), 2.5 * math.sqrt(8), rtol=1e-5)
    assert there.dtype == np.float32
    gain = direction.score(there) - direction.score(codes())
    assert np.allclose(gain, 2.5 * math.sqrt(8) * np.linalg.norm(direction.weight), rtol=1e-5)
    assert np.allclose(direction.move(there, -2.5), codes(), atol=1e-5)


def test_a_change_moves_the_score_by_that_much_and_no_farther_than_needed(direction):
    there = direction.change(codes(), 3.0)
    assert np.allclose(direction.score(there) - direction.score(codes()), 3.0, atol=1e-5)
    length = np.linalg.norm((there - codes()) / direction.std, axis=1)
    assert np.allclose(length, 3.0 / np.linalg.norm(direction.weight), rtol=1e-5)


def test_an_item_moves_alike_in_any_batch(direction):
    whole = direction.move(codes(), 1.0)
    assert np.array_equal(whole[2:3], direction.move(codes()[2:3], 1.0))


def test_the_fitted_directions_point_where_they_say():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(120, 6)) * [1, 5, 0.1, 1, 1, 1] + 3
    x[:, 5] = 4.0  # never varies
    age = 70 + 8 * (x[:, 1] - 3) / 5
    older = fit_direction(x, age, "age", unit="years")
    assert older.kind == "number"
    assert np.abs(older.score(x) - age).max() < 0.2
    assert np.allclose(older.score(older.change(x, 10.0)) - older.score(x), 10.0, atol=1e-3)
    words = np.where(x[:, 0] + rng.normal(size=120) > 3, "AD", "CN")
    ill = fit_direction(x, words, "AD", groups=np.arange(120) // 2)
    assert ill.kind == "class"
    assert ill.weight[5] == 0
    assert ill.score(x)[words == "AD"].mean() > ill.score(x)[words == "CN"].mean()
    well = fit_direction(x, words, "AD", positive="CN", groups=np.arange(120) // 2)
    assert np.allclose(well.weight, -ill.weight, atol=1e-5)


def released(folder, d=8):
    generator = torch.Generator().manual_seed(0)
    state = {"weight": torch.randn(1, d, generator=generator), "bias": torch.tensor([0.25])}
    torch.save(state, folder / "disease_classifier.ckpt")
    mean, std = torch.randn(d, generator=generator), torch.rand(d, generator=generator) + 0.5
    torch.save(mean, folder / "semantic_mean.pt")
    torch.save(std, folder / "semantic_std.pt")
    return state, mean, std


def test_the_released_classifier_points_to_cn_and_ad_is_its_opposite(tmp_path):
    state, mean, std = released(tmp_path)
    well, ill = (published_direction(tmp_path, towards=t) for t in ("CN", "AD"))
    assert np.allclose(well.weight, state["weight"].double().numpy()[0])
    assert np.allclose(ill.score(codes()), -well.score(codes()))
    z = (torch.from_numpy(codes()) - mean) / std
    w = state["weight"][0]
    wanted = (z - 2 * math.sqrt(8) * w / w.norm()) * std + mean
    assert np.allclose(ill.move(codes(), 2.0), wanted.numpy(), atol=1e-5)


class Hostile:
    def __reduce__(self):
        return (print, ("ran",))


def test_released_files_that_are_broken_get_a_sentence(tmp_path, capsys):
    with pytest.raises(MissingDataError, match="disease_classifier"):
        published_direction(tmp_path)
    released(tmp_path)
    with pytest.raises(UsageError, match="MCI"):
        published_direction(tmp_path, towards="MCI")
    torch.save(Hostile(), tmp_path / "semantic_std.pt")
    with pytest.raises(DataError, match="other than a tensor"):
        published_direction(tmp_path)
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "semantic_std.pt").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match="not a complete file"):
        published_direction(tmp_path)
    torch.save({"a": torch.ones(8)}, tmp_path / "semantic_std.pt")
    with pytest.raises(DataError, match="expected one tensor"):
        published_direction(tmp_path)
    torch.save(torch.zeros(8), tmp_path / "semantic_std.pt")
    with pytest.raises(DataError, match="SDs above 0"):
        published_direction(tmp_path)
    torch.save(torch.ones(9), tmp_path / "semantic_std.pt")
    with pytest.raises(DataError, match=r"\(9,\)"):
        published_direction(tmp_path)
    (tmp_path / "semantic_std.pt").unlink()
    with pytest.raises(MissingDataError, match="semantic_std"):
        published_direction(tmp_path)
    torch.save({"linear": torch.ones(1, 8)}, tmp_path / "disease_classifier.ckpt")
    with pytest.raises(DataError, match="expected 'weight'"):
        published_direction(tmp_path)


def test_saved_directions_come_back_to_the_bit(direction, tmp_path):
    older = Direction(
        "age", direction.weight * 3, 70.0, direction.mean, direction.std, "number", "years"
    )
    save_directions({"AD": direction, "age of scan": older}, tmp_path)
    back = load_directions(tmp_path)
    assert list(back) == ["AD", "age of scan"]
    assert np.array_equal(back["AD"].score(codes()), direction.score(codes()))
    assert back["age of scan"].unit == "years"
    (tmp_path / "directions.json").write_text('{"AD": {"name": "AD"}}')
    with pytest.raises(DataError, match="does not fit"):
        load_directions(tmp_path)


def test_bad_input_gets_a_sentence(direction):
    with pytest.raises(UsageError, match="8"):
        direction.score(codes(d=7))
    with pytest.raises(UsageError, match="amount"):
        direction.move(codes(), math.nan)
    with pytest.raises(DataError, match="NaN"):
        direction.move(codes() * np.nan, 1.0)
    nothing = Direction("x", np.zeros(3), 0.0, np.zeros(3), np.ones(3))
    with pytest.raises(DataError, match="found nothing"):
        nothing.move(np.zeros((1, 3)), 1.0)
    words = np.array(["AD", "CN"] * 5)
    x = codes(10)
    with pytest.raises(DataError, match="two classes"):
        fit_direction(x, np.array(["AD"] * 10), "AD")
    with pytest.raises(UsageError, match="MCI"):
        fit_direction(x, words, "ill", positive="MCI")
    with pytest.raises(UsageError, match="3 classes"):
        fit_direction(x, np.array(["AD", "CN", "MCI", *words[:7]]), "AD")
    with pytest.raises(DataError, match="missing"):
        fit_direction(x, np.array(["AD", None, *words[:8]], dtype=object), "AD")
    with pytest.raises(DataError, match="1 values of 'AD' are missing"):
        fit_direction(x, pd.array(["AD", pd.NA, *words[:8]]), "AD")
    with pytest.raises(DataError, match="give a code"):
        fit_direction(x, words[:9], "AD")
    with pytest.raises(DataError, match="NaN"):
        fit_direction(x, np.full(10, np.nan), "age")
    with pytest.raises(DataError, match="groups"):
        fit_direction(x, words, "AD", groups=[1, 2])


def test_along_the_pattern_codes_move_as_codes_of_the_class_differ():
    """Two numbers share noise that the weight cancels: it is large there, the pattern is not."""
    rng = np.random.default_rng(0)
    n = 20_000
    ill, shared = rng.random(n) < 0.5, rng.normal(size=n)
    table = np.stack([ill + shared, shared], axis=1)  # only the first tells the class
    table += 0.1 * rng.normal(size=table.shape)
    direction = fit_direction(table, ill, "AD")
    assert direction.weight[1] / direction.weight[0] < -0.8  # not small: it cancels
    moved = direction.move(table, 1.0, how="pattern") - table
    difference = table[ill].mean(axis=0) - table[~ill].mean(axis=0)
    cosine = moved[0] @ difference / np.linalg.norm(moved[0]) / np.linalg.norm(difference)
    assert cosine > 0.99
    published = direction.move(table, 1.0) - table
    assert (
        published[0] @ difference / np.linalg.norm(published[0]) / np.linalg.norm(difference) < 0.8
    )
    gained = direction.score(direction.move(table, 1.0, how="pattern")) - direction.score(table)
    assert np.allclose(gained, direction.score(table).std(), rtol=1e-3)


def test_a_pattern_is_saved_and_turned_round(tmp_path):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(50, 3))
    age = fit_direction(table, table[:, 0] + 70.0, "age")
    save_directions({"age": age}, tmp_path)
    again = load_directions(tmp_path)["age"]
    assert again.identity == age.identity
    assert np.array_equal(again.pattern, age.pattern)
    assert np.array_equal(age.away("young").pattern, -age.pattern)


def test_a_direction_without_pattern_says_so():
    nothing = Direction("x", np.ones(3), 0.0, np.zeros(3), np.ones(3))
    with pytest.raises(UsageError, match="has no pattern"):
        nothing.move(np.zeros((1, 3)), 1.0, how="pattern")
