"""Scores of decoded objects: closed forms, and nothing guessed where there is no truth."""

import numpy as np
import pandas as pd
import pytest
import trimesh

import neurodiff as nd
from neurodiff.analysis.evaluation import NO_TRUTH, evaluate
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.pipelines.mind3d import Reconstruction

SHAPES = {
    "cube": trimesh.creation.box((1, 1, 1)),
    "rod": trimesh.creation.box((0.2, 1, 0.2)),
    "ball": trimesh.creation.icosphere(subdivisions=3, radius=0.5),
    "plate": trimesh.creation.box((1, 0.1, 1)),
}


def load(name):
    if name not in SHAPES:
        raise MissingDataError(f"stimulus {name!r} has no mesh")
    return SHAPES[name].copy()


@pytest.fixture
def truth():
    table = pd.DataFrame(
        {"id": [*SHAPES, "secret"], "category": ["solid", "thin", "solid", "thin", "solid"]}
    )
    return nd.Stimuli(table, load)


def result(stimulus, mesh=None, *, subject="s", repeat=1, sample=0):
    mesh = SHAPES[stimulus].copy() if mesh is None else mesh
    return Reconstruction(subject, stimulus, repeat, sample, np.zeros(2), np.zeros(2, int), mesh)


def test_the_truth_itself_is_perfect_up_to_the_drawing_of_points(truth):
    table = evaluate([result(name) for name in SHAPES], truth, full=True).table
    assert list(table["stimulus"]) == list(SHAPES)
    np.testing.assert_array_equal(table["IoU"], 1.0)
    np.testing.assert_array_equal(table["within"], 1.0)
    # other points than those of the truth: n points on an area A have their nearest of the other
    # set at a mean squared distance of A / (pi n), in both directions
    floor = [200 * SHAPES[name].area / (np.pi * 2048) for name in SHAPES]
    np.testing.assert_allclose(table["CD"], floor, rtol=0.1)
    assert (table["note"] == "").all()


def test_cubes_of_other_size_in_closed_form(truth):
    half = trimesh.creation.box((0.5, 0.5, 0.5))
    row = evaluate([result("cube", half)], truth).table.iloc[0]
    assert row["IoU"] == pytest.approx(0.125, abs=1e-9)  # 16^3 of 32^3 voxels
    # nearest points. Truth to prediction: a face point (x, y) of the big cube lies 1/4 above the
    # small face, and max(|x| - 1/4, 0) beside it, mean square 2 (1/4)^3 / 3 an axis. Back: 1/4.
    there = 1 / 16 + 2 * (2 * (1 / 4) ** 3 / 3)
    assert row["CD"] == pytest.approx(100 * (there + 1 / 16), rel=0.03)
    assert row["F@2%"] == 0


def test_scale_and_place_of_the_true_mesh_do_not_count(truth):
    moved = nd.Stimuli(
        truth.table, lambda name: load(name).apply_scale(30).apply_translation((5, -2, 9))
    )
    before, after = (evaluate([result("rod")], t).table.iloc[0] for t in (truth, moved))
    assert after["IoU"] == before["IoU"] == 1
    assert after["CD"] == pytest.approx(before["CD"], rel=1e-4)


def test_earth_movers_distance_of_a_shifted_shape(truth):
    shifted = SHAPES["rod"].copy().apply_translation((0, 0, 0.5))
    row = evaluate([result("rod", shifted)], truth, full=True).table.iloc[0]
    # no plan moves less than the centre does; points of one set are some 0.03 from the other's
    assert 49 < row["EMD"] < 55


def test_an_open_true_mesh_is_closed_first(truth):
    def opened(name):
        mesh = load(name)
        mesh.update_faces(np.arange(len(mesh.faces)) > 1)  # one side of the cube is missing
        return mesh

    row = evaluate([result("cube")], nd.Stimuli(truth.table, opened)).table.iloc[0]
    assert np.isfinite(row["IoU"])


def test_an_empty_mesh_scores_the_worst_and_is_noted(truth):
    row = evaluate([result("cube", trimesh.Trimesh())], truth).table.iloc[0]
    assert row["note"] == "empty mesh"
    assert (row["IoU"], row["F@2%"]) == (0, 0)
    # a point at the origin: squared distances to the surface of the unit cube, 1/4 + 2/12, and 1/4
    assert row["CD"] == pytest.approx(100 * (1 / 4 + 1 / 6 + 1 / 4), rel=0.03)


def test_no_truth_is_listed_and_never_guessed(truth):
    found = evaluate([result("secret", SHAPES["cube"]), result("cube")], truth)
    assert found.no_truth == ["secret"]
    row = found.table.iloc[0]
    assert row["note"].startswith(NO_TRUTH)
    assert row[["CD", "F@2%", "IoU", "within"]].isna().all()
    assert found.summary().loc["CD", "n"] == 1
    alone = evaluate([result("secret", SHAPES["cube"])], truth, full=True)
    assert (alone.summary()["n"] == 0).all()
    assert alone.summary()["mean"].isna().all()
    assert "1 stimuli without truth" in repr(alone)


def test_summary_averages_samples_first_and_resamples_stimuli(truth):
    half = trimesh.creation.box((0.5, 0.5, 0.5))
    found = evaluate(
        [result("cube"), result("cube", half, sample=1), result("ball"), result("rod")], truth
    )
    row = found.summary().loc["IoU"]
    values = np.array([(1 + 0.125) / 2, 1, 1])
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(values.mean())
    assert row["median"] == 1
    assert values.min() <= row["low"] < row["mean"] < row["high"] <= 1
    assert found.summary().equals(found.summary())


def test_repeats_are_no_distractors_of_each_other(truth):
    once = [result(name) for name in SHAPES]
    again = [result(name, repeat=2) for name in SHAPES]
    table = evaluate([*once, *again], truth).table
    np.testing.assert_array_equal(table["within"], 1.0)


def test_order_of_the_results_is_the_order_of_the_rows(truth):
    items = [result("plate"), result("secret", SHAPES["cube"]), result("cube", SHAPES["ball"])]
    table = evaluate(items, truth).table
    assert list(table["stimulus"]) == ["plate", "secret", "cube"]
    assert table["IoU"].iloc[0] == 1
    assert table["IoU"].iloc[2] == pytest.approx(np.pi / 6, abs=0.02)  # ball in cube


def test_wrong_use(truth):
    with pytest.raises(UsageError, match=r"no protocol 'neurodif-1'.*Did you mean"):
        evaluate([result("cube")], truth, protocol="neurodif-1")
    with pytest.raises(UsageError, match="no reconstruction to score"):
        evaluate([], truth)
    with pytest.raises(UsageError, match=r"no stimulus 'cub'.*'cube'"):
        evaluate([result("cub", SHAPES["cube"])], truth)
    bare = nd.Stimuli(truth.table, lambda name: trimesh.Trimesh())
    with pytest.raises(DataError, match="'cube' has no faces"):
        evaluate([result("cube")], bare)


def test_the_public_name_scores_meshes_as_this_does(truth):
    results = [result("cube"), result("rod")]
    pd.testing.assert_frame_equal(
        nd.evaluate(results, truth, seed=1).table, evaluate(results, truth, seed=1).table
    )


def test_means_of_different_numbers_of_trials_are_compared_with_each_other(truth):
    """Of a mean, the column repeat counts trials; it makes no groups."""
    mixed = [result(name, repeat=1 + k % 3) for k, name in enumerate(SHAPES)]
    alike = [result(name, repeat=3) for name in SHAPES]
    one, other = (evaluate(some, truth).table.drop(columns="repeat") for some in (mixed, alike))
    pd.testing.assert_frame_equal(one, other)
