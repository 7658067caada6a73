"""Real tasks as batches: they make what the verbs make, whatever the order, shards and workers.

What is decoded here is poor on purpose: these are tests of the chain, not of the decoder.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neurodiff.jobs as jobs
from neurodiff.analysis import decoding, image_items, image_scorer, verbs
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json
from neurodiff.jobs_manifest import find_batch, read_manifest
from neurodiff.jobs_tasks import task_of
from neurodiff.jobs_worker import do_item, do_items, work

pytestmark = pytest.mark.slow  # fits tiny models


def _load(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_of(run, folder):
    return Run.open(shutil.copytree(run.folder, folder))


# ------------------------------------------------------------------------------------ objects


@pytest.fixture(scope="module")
def fitted(tiny_runs, tmp_path_factory):
    return Run.open(tiny_runs(tmp_path_factory.mktemp("objects")))


@pytest.fixture(scope="module")
def by_verb(fitted, tmp_path_factory):
    """What the verb decodes, sixteen trials at a time, and its scores."""
    run = copy_of(fitted, tmp_path_factory.mktemp("verb") / "run")
    verbs.reconstruct_run(run.folder, None, None, None, None)
    return run


@pytest.fixture
def run(fitted, tmp_path):
    return copy_of(fitted, tmp_path / "run")


def results(run):
    return {one.key: one.result for one in decoding.stored_results(run)}


def assert_same(found, expected):
    assert found
    for key, one in found.items():
        other = expected[key]
        np.testing.assert_allclose(one.embedding, other.embedding, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(one.codes, other.codes)
        assert len(one.mesh.faces) == len(other.mesh.faces)
        if len(one.mesh.faces):
            np.testing.assert_allclose(one.mesh.vertices, other.mesh.vertices, atol=1e-4)


def test_a_batch_decodes_what_the_verb_decodes(run, by_verb):
    manifest = jobs.plan(run, "reconstruct")
    expected = results(by_verb)
    assert sorted(manifest.keys) == sorted(expected)  # the same items, by key
    told = jobs.submit(run, 2, "inline")
    assert (told.done, told.finished) == (12, True)
    assert_same(results(run), expected)
    assert set(run.items_table()["task"]) == {decoding.TASK}


def test_one_shard_of_seven_in_reverse_order_and_alone(run, by_verb):
    """Each item has its own noise, so that neither order nor company changes it."""
    manifest, expected = jobs.plan(run, "reconstruct"), results(by_verb)
    work(read_manifest(manifest.folder, shard=(3, 7)), 3, 7)
    found = results(run)
    assert sorted(found) == sorted(row.key for row in manifest.shard(3, 7))
    assert_same(found, expected)
    task = task_of("reconstruct")
    state = task.prepare(run, manifest.settings, Path)
    for row in reversed(manifest.rows):
        assert do_item(task, state, manifest.item(run, row), row.extra)
    assert_same(results(run), expected)


def test_eight_at_once_decode_what_one_decodes(run, by_verb):
    """One that cannot be decoded fails alone."""
    manifest = jobs.plan(run, "reconstruct", settings={"together": 8})
    task, calls = task_of("reconstruct"), []
    state = task.prepare(run, manifest.settings, Path)
    pairs = [(manifest.item(run, row), dict(row.extra)) for row in manifest.rows[:8]]
    pairs[2][1]["trial"] = 99
    assert do_items(task, state, pairs) == [True, True, False, True, True, True, True, True]
    assert_same(results(run), results(by_verb))
    shutil.rmtree(run.folder / "items")
    many = task.do_many
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task), "do_many", lambda self, *a: calls.append(len(a[1])) or many(*a))
        assert jobs.submit(run, 1, "inline").done == 12
    assert calls == [8, 4]
    assert_same(results(run), results(by_verb))


def test_three_workers_decode_what_one_decodes(run, by_verb):
    jobs.plan(run, "reconstruct")
    assert jobs.submit(run, 3, "local").done == 12
    assert_same(results(run), results(by_verb))


def test_samples_have_noise_of_their_own_that_is_the_batchs(run, by_verb, tmp_path):
    manifest = jobs.plan(run, "reconstruct", samples=2)
    assert len(manifest) == 24
    assert set(results(by_verb)) < set(manifest.keys)
    seeds = {manifest.item(run, row).seed for row in manifest.rows}
    assert len(seeds) == 24


def test_a_batch_of_another_model_or_other_trials_is_not_done(run):
    manifest = jobs.plan(run, "reconstruct")
    settings = {**manifest.settings, "model": "another"}
    with pytest.raises(DataError, match="not the one that the batch was planned for"):
        task_of("reconstruct").prepare(run, settings, Path)
    task = task_of("reconstruct")
    state = task.prepare(run, manifest.settings, Path)
    item = manifest.item(run, manifest.rows[0])
    assert not do_item(task, state, item, {"trial": 1})
    assert "not what it was when the batch was planned" in item.error
    assert not do_item(task, state, item, {"trial": 99})
    assert "has no trial 99" in item.error


def test_weights_are_read_from_the_local_disk(run, tmp_path, by_verb):
    from neurodiff.jobs_site import Site

    jobs.plan(run, "reconstruct", stimuli=[next(iter(results(by_verb).values())).stimulus])
    told = jobs.submit(run, 1, "inline", Site(local_disk=str(tmp_path / "disk")))
    assert told.done == told.items >= 1
    assert list((tmp_path / "disk").glob("neurodiff-*/model/model_index.json"))


def test_scores_of_a_batch_are_those_of_the_verb(by_verb, tmp_path):
    run = copy_of(by_verb, tmp_path / "run")
    with pytest.raises(UsageError, match="none"):
        jobs.plan(run, "evaluate", settings={"protocol": "none"})
    manifest = jobs.plan(run, "evaluate")
    jobs.submit(run, 1, "inline", batch=manifest.name)
    jobs.collect(run, batch=manifest.name)
    found = pd.read_csv(manifest.folder / "scores.csv").set_index("key")
    verbs.evaluate_run(run.folder, False)
    expected = run.read_scores().query("condition == 'MinD-3D'").set_index("key")
    for name in ("CD", "IoU", "F@2%", "within"):
        pd.testing.assert_series_equal(found[name].sort_index(), expected[name].sort_index())


def test_nothing_to_evaluate_is_told(run):
    with pytest.raises(MissingDataError, match="holds no reconstruction"):
        jobs.plan(run, "evaluate")


def test_attribution_is_an_item_a_subject_and_method(run):
    from neurodiff.analysis.attribution import Attribution

    with pytest.raises(UsageError, match=r"no method 'shapely'.*Did you mean 'shapley'"):
        jobs.plan(run, "attribute", settings={"methods": ["shapely"]})
    before = sorted(path.name for path in run.folder.iterdir())
    for wrong, said in (
        ({"settings": {"rois": "V1,LO9"}}, r"no region 'LO9'; it has .*V1.*Did you mean 'LO"),
        ({"settings": {"metric": "correlate"}}, r"no metric 'correlate'.*'correlation'"),
        ({"subjects": ["nobody"]}, r"no subject 'nobody' to do; there are "),
        ({"stimuli": ["encoding", "nothing"], "settings": {"methods": "encoding"}}, "'nothing'"),
        ({"samples": 2}, "an item of attribute has one sample"),
        ({"samples": 0}, "samples is 0"),
    ):
        with pytest.raises(UsageError, match=said):
            jobs.plan(run, "attribute", **wrong)
    assert sorted(path.name for path in run.folder.iterdir()) == before  # nothing was written
    methods = ["leave_one_out:permuted", "encoding"]
    settings = {"methods": ",".join(methods), "rois": ["V1", "LO1"], "draws": 20}
    manifest = jobs.plan(run, "attribute", settings=settings)
    assert [row.stimulus for row in manifest.rows] == methods
    assert jobs.submit(run, 2, "inline").done == 2
    jobs.collect(run)
    table = pd.read_csv(manifest.folder / "attribution.csv")
    assert set(table["method"]) == set(methods)
    assert set(table["roi"]) == {"V1", "LO1"}
    item = manifest.item(Run.open(run) if not isinstance(run, Run) else run, manifest.rows[0])
    assert Attribution.open(item.folder / "attribution").results[0].method == methods[0]


# ------------------------------------------------------------------------------------- images


def test_pictures_of_a_batch_are_those_of_the_verb(tmp_path, monkeypatch):
    from neurodiff.analysis.image_fit import fit_images
    from neurodiff.analysis.image_verbs import reconstruct_image_run

    monkeypatch.setattr(image_scorer, "PIXELS", 48)
    monkeypatch.setattr(image_scorer, "PERMUTATIONS", 20)
    monkeypatch.delenv("NEURODIFF_WEIGHTS", raising=False)
    quick = [
        f"{part}.training={{steps: 6, batch_size: 8, warmup: 1, checkpoint_every: 6}}"
        for part in ("low_level", "generator.autoencoder", "generator")
    ]
    how = ([*quick, "generator.steps=3"], tmp_path / "runs", "simulated_scenes_tiny")
    folder = fit_images("brain_diffuser_tiny", *how, None, None, 0, False)
    run = copy_of(Run.open(folder), tmp_path / "batch")
    reconstruct_image_run(folder, None, None, None, None)
    expected = {one.key: one.picture for one in image_items.stored_pictures(Run.open(folder))}
    manifest = jobs.plan(run, "reconstruct")
    assert sorted(manifest.keys) == sorted(expected)
    jobs.submit(run, 3, "inline")
    found = {one.key: one.picture for one in image_items.stored_pictures(run)}
    assert sorted(found) == sorted(expected)
    for key, picture in found.items():
        one, other = (np.asarray(p.image, float) for p in (picture, expected[key]))
        assert np.abs(one - other).max() <= 1  # of 255: a batch of one against a batch of several
    scores = jobs.plan(run, "evaluate")
    jobs.submit(run, 1, "inline", batch=scores.name)
    jobs.collect(run, batch=scores.name)
    table = pd.read_csv(scores.folder / "scores.csv")
    assert sorted(table["key"]) == sorted(expected)
    assert table["PixCorr"].between(-1, 1).all()


# -------------------------------------------------------------------------------------- scans


def test_codes_of_a_batch_are_those_of_the_verb(tmp_path):
    from neurodiff.analysis.ldae_fit import fit_cohort
    from neurodiff.analysis.ldae_verbs import encode_cohort
    from neurodiff.core.code_table import read_codes

    short = [f"{s}.training.steps=3" for s in ("autoencoder", "trunk", "semantic")]
    short += ["sampling.steps=2", "sampling.iterations=1"]
    scans = _load("ldae_cohort").write_scans(tmp_path / "scans")
    folder = fit_cohort("ldae_tiny", short, tmp_path / "runs", str(scans), None, None, 0, False)
    run = Run.open(folder)
    few = _load("ldae_cohort").write_scans(tmp_path / "few", people=2)
    expected = read_codes(encode_cohort(few, tmp_path / "codes", folder))
    with pytest.raises(UsageError, match="its task is encode"):
        jobs.plan(run, "reconstruct")
    manifest = jobs.plan(run, "encode", settings={"cohort": str(few)})
    assert sorted(row.stimulus for row in manifest.rows) == sorted(expected.scans["scan"])
    jobs.submit(run, 2, "inline")
    jobs.collect(run)
    found = read_codes(manifest.folder / "codes.parquet")
    order = [found.scans["scan"].tolist().index(scan) for scan in expected.scans["scan"]]
    np.testing.assert_allclose(found.codes[order], expected.codes, rtol=0, atol=1e-4)
    assert found.model == expected.model
    spoiled = few / f"{manifest.rows[0].stimulus}.nii.gz"
    spoiled.write_bytes(spoiled.read_bytes()[:-7])
    task = task_of("encode")
    state = task.prepare(run, manifest.settings, Path)
    item = manifest.item(run, manifest.rows[0])
    shutil.rmtree(item.folder)
    assert not do_item(task, state, item, {})
    assert "not what it was" in item.error
    assert read_json(find_batch(run).parent.parent / "run.json")["seed"] == 0
