"""A fitted pipeline as a folder: equal after a round trip, and refused when anything is amiss."""

import json
import shutil

import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import load_file, save_file

from neurodiff import MinD3D, Recording, Stimuli
from neurodiff.core import atomic
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.pipelines.mind3d_files import BRAIN, INDEX, SHAPES, model_fingerprint

QUICK = [
    "tokenizer.training.steps=4",
    "decoder.training.steps=3",
    "decoder.adapters.steps=2",
    "bridge.training.steps=2",
    "mesh.threshold=0.3",
]


@pytest.fixture(scope="session")
def blocks():
    """12 boxes of three proportions, and responses of 20 features that follow them."""
    import pandas as pd

    rng = np.random.default_rng(0)
    sizes = {f"box{k}": 0.3 + 0.7 * rng.random(3) for k in range(12)}
    table = pd.DataFrame({"id": list(sizes), "category": ["flat", "tall", "wide"] * 4})
    stimuli = Stimuli(table, lambda name: trimesh.creation.box(sizes[name]))
    mixing = rng.standard_normal((3, 20))
    betas = np.stack(list(sizes.values())) @ mixing + 0.1 * rng.standard_normal((12, 20))
    trials = pd.DataFrame({"stimulus": list(sizes)})
    return Recording.from_arrays(betas[:, None, :], trials), stimuli


@pytest.fixture(scope="session")
def fitted(blocks):
    return MinD3D.from_recipe("mind3d_tiny", QUICK).fit(*blocks)


@pytest.fixture(scope="session")
def saved(fitted, session_tmp):
    return fitted.save_pretrained(session_tmp / "model")


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def relist(folder, *files):
    """Make the index agree with changed files, so that only their content is judged."""
    from neurodiff.core.safe_io import sha256_of

    index = json.loads((folder / INDEX).read_text())
    for file in files:
        name, _, leaf = file.partition("/")
        index["components"][name][leaf] = sha256_of(folder / file)
    (folder / INDEX).write_text(json.dumps(index))


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.mark.parametrize("bridge", ["network", "ridge"])
def test_round_trip_predicts_the_same(fitted, saved, blocks, bridge):
    loaded = MinD3D.from_pretrained(saved)
    recording = blocks[0].select(slice(0, 3))
    here = fitted.predict(recording, samples=2, bridge=bridge)
    there = loaded.predict(recording, samples=2, bridge=bridge)
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.embedding, other.embedding)
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.mesh.vertices, other.mesh.vertices)
    assert loaded.recipe == fitted.recipe
    assert [gate["stage"] for gate in loaded.gates] == [gate["stage"] for gate in fitted.gates]


def test_one_folder_a_component_and_nothing_that_runs(saved):
    assert {path.name for path in saved.iterdir()} == {*SHAPES, *BRAIN, INDEX}
    for part in (*SHAPES, *BRAIN):
        names = {path.name for path in (saved / part).iterdir()}
        assert names == {"config.json", "model.safetensors"}
    names = load_file(saved / "prior_network" / "model.safetensors")
    assert any(name.startswith("causal_transformer.") for name in names)  # published names


def test_loading_leaves_the_global_generator_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    MinD3D.from_pretrained(saved)
    assert torch.equal(torch.rand(2), expected)


def test_shapes_alone_are_saved_and_cannot_decode(fitted, blocks, tmp_path):
    shapes = MinD3D(fitted.recipe)
    shapes.shapes, shapes.embedding = fitted.shapes, fitted.embedding
    loaded = MinD3D.from_pretrained(shapes.save_pretrained(tmp_path / "shapes"))
    codes = np.zeros((1, fitted.recipe.decoder.size.sequence), np.int64)
    first, second = next(fitted.meshes(codes)), next(loaded.meshes(codes))
    np.testing.assert_array_equal(first.vertices, second.vertices)
    with pytest.raises(UsageError, match="not fitted"):
        loaded.predict(blocks[0])


def test_saving_again_replaces_the_whole_model_and_keeps_its_fingerprint(fitted, copy):
    before = model_fingerprint(copy)
    (copy / "left_over.txt").write_text("of an older version")
    fitted.save_pretrained(copy)
    assert not (copy / "left_over.txt").exists()
    assert model_fingerprint(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_what_is_not_fitted_or_no_model_is_not_overwritten(fitted, tmp_path):
    with pytest.raises(UsageError, match="not fitted"):
        MinD3D(fitted.recipe).save_pretrained(tmp_path / "m")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no MinD-3D model"):
        fitted.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_disk_full_leaves_the_earlier_model(fitted, copy, monkeypatch):
    import errno

    before = model_fingerprint(copy)
    real, calls = atomic.os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(DataError, match="disk full") as error:
        fitted.save_pretrained(copy)
    one_sentence(error)
    monkeypatch.undo()
    assert model_fingerprint(copy) == before
    MinD3D.from_pretrained(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_no_model_there(tmp_path):
    with pytest.raises(MissingDataError, match="is no fitted model"):
        MinD3D.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"format": "neurodiff-brain-diffuser-1"}')
    with pytest.raises(DataError, match="has format 'neurodiff-brain-diffuser-1'"):
        MinD3D.from_pretrained(tmp_path / "other")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MissingDataError, match="has no fitted model"):
        MinD3D.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["ridge/model.safetensors", "vqvae_model/config.json"])
def test_missing_file(copy, file):
    (copy / file).unlink()
    with pytest.raises(MissingDataError, match="is missing") as error:
        MinD3D.from_pretrained(copy)
    assert file in one_sentence(error)


@pytest.mark.parametrize("part", [*SHAPES, *BRAIN])
def test_a_changed_byte_is_seen(copy, part):
    path = copy / part / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="other SHA-256") as error:
        MinD3D.from_pretrained(copy)
    assert part in one_sentence(error)


def test_truncated_weights_that_the_index_lists(copy):
    path = copy / "fa_module" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    relist(copy, "fa_module/model.safetensors")
    with pytest.raises(DataError, match="not a complete safetensors file") as error:
        MinD3D.from_pretrained(copy)
    one_sentence(error)


def test_a_pickle_in_the_place_of_weights(copy, tmp_path):
    torch.save({"a": torch.zeros(1)}, copy / "ridge" / "model.safetensors")
    relist(copy, "ridge/model.safetensors")
    with pytest.raises(DataError, match="not a complete safetensors file"):
        MinD3D.from_pretrained(copy)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("ridge", "coef_"),
        ("embedding", "axes"),
        ("brain_input", "mean"),
        ("fa_module", None),
        ("transformer_model", None),
    ],
)
def test_arrays_of_another_size(copy, part, name):
    path = copy / part / "model.safetensors"
    weights = load_file(path)
    name = name or max(weights, key=lambda key: weights[key].ndim)
    weights[name] = torch.zeros((*weights[name].shape[:-1], weights[name].shape[-1] + 1))
    save_file(weights, path)
    relist(copy, f"{part}/model.safetensors")
    with pytest.raises(DataError, match="another size") as error:
        MinD3D.from_pretrained(copy)
    assert name in one_sentence(error)


def test_a_weight_that_is_absent_and_one_too_many(copy):
    path = copy / "prior_network" / "model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    save_file({**weights, "strange": torch.zeros(1)}, path)
    relist(copy, "prior_network/model.safetensors")
    with pytest.raises(DataError, match="holds 'strange'"):
        MinD3D.from_pretrained(copy)
    save_file({name: value for name, value in weights.items() if name != first}, path)
    relist(copy, "prior_network/model.safetensors")
    with pytest.raises(DataError, match=f"lacks '{first}'"):
        MinD3D.from_pretrained(copy)


def test_recipe_of_another_size_or_version(copy):
    index = json.loads((copy / INDEX).read_text())
    width = index["recipe"]["decoder"]["size"]["width"]
    index["recipe"]["decoder"]["size"]["width"] = 2 * width
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="of different models") as error:
        MinD3D.from_pretrained(copy)
    one_sentence(error)
    index["recipe"]["decoder"]["size"]["wide"] = 3
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"wide: unknown key.*another version") as error:
        MinD3D.from_pretrained(copy)
    one_sentence(error)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "diffusers"},
        {"components": []},
        {"components": {"ridge": {}}},
        {"recipe": 3},
    ],
)
def test_an_index_that_is_not_ours(copy, change):
    index = json.loads((copy / INDEX).read_text()) | change
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError) as error:
        MinD3D.from_pretrained(copy)
    assert INDEX in one_sentence(error)


def test_a_component_path_cannot_leave_the_folder(copy):
    index = json.loads((copy / INDEX).read_text())
    index["components"]["../../elsewhere"] = index["components"].pop("ridge")
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="lists other components"):
        MinD3D.from_pretrained(copy)
