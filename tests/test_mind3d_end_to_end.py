"""The whole published chain on golden numbers: frames, tokens, 63 calls, greedy codes, planes."""

import importlib.util
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.models.published_sizes import sizes_of
from neurodiff.pipelines.mind3d_protocol import MIND3D_2024
from neurodiff.pipelines.mind3d_published import Decoding, PublishedMinD3D
from neurodiff.pipelines.shape_meshes import occupancy_grid


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parent / "golden" / "recipe.py"
    spec = importlib.util.spec_from_file_location("golden_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case(recipe):
    return recipe.load("mind3d_end_to_end")["mind3d.end_to_end"]


@pytest.fixture(scope="module")
def pipe(recipe, case):
    """Built from nothing but the names and shapes of the golden manifest."""
    names = case["manifest"]["params"]
    shapes = {
        name: tuple(map(int, shape.removesuffix("xexcluded").split("x")))
        for name, shape in names.items()
    }
    sizes = sizes_of(shapes, encoder_heads=4, decoder_heads=4)
    whole = nn.Module()
    brain = BrainNetworks(sizes.encoder, sizes.bridge, aggregated_tokens=sizes.aggregated_tokens)
    for name, part in brain.named_children():
        whole.add_module(name, part)
    whole.shape_generator = shapes = ShapeGenerator(sizes.decoder, sizes.tokenizer)
    assert recipe.manifest(whole, case["recipe"]["exclude"]) == names
    recipe.fill(whole, case["recipe"])
    return PublishedMinD3D(
        brain,
        shapes,
        sizes,
        protocol=MIND3D_2024.with_switches(["bridge_norms=plain"]),  # the float32 branch
        decoding=Decoding(candidates=2, greedy=True),
    )


def golden_noise(call, x):
    return torch.sin(0.9 * torch.arange(x.numel(), dtype=torch.float64) + call).reshape(x.shape)


def test_from_frames_to_occupancy(recipe, case, pipe):
    out, x = case["outputs"], recipe.make(case["inputs"]["x"])
    with torch.no_grad():
        encoded = pipe.networks.fmri_encoder(x[0][:, None])
    recipe.check(encoded, out["encoder_tokens"], 1e-9)
    tokens = pipe.tokens(x)
    recipe.check(tokens, out["fa_tokens"], 1e-9)
    start = 1.4 * torch.sin(0.53 * torch.arange(2 * 512, dtype=torch.float64) + 0.2)
    drawn = pipe.sample(tokens, start=start.reshape(2, 512), noise=golden_noise)
    recipe.check(drawn.chosen, out["embedding"], 1e-6)
    ids = pipe.codes(drawn.chosen)
    stored = zlib.crc32(ids[0].numpy().astype("<i4").tobytes())
    assert stored == out["greedy_ids_crc32_of_int32_le"]
    assert ids[0, :64].tolist() == out["greedy_ids_first64"]
    assert ids[0, -8:].tolist() == out["greedy_ids_last8"]
    _check_planes(recipe, pipe, ids, out, "plane_{}", "occupancy_9cubed_grid_1.1box")


def test_planes_and_occupancy_of_given_codes(recipe, case, pipe):
    i = np.arange(1024)
    ids = torch.from_numpy((5 * i * i + 7 * i + 1) % 64)[None]
    names = ("plane_{}_fixed_ids", "occupancy_grid_fixed_ids")
    _check_planes(recipe, pipe, ids, case["outputs"], *names)


@torch.no_grad()
def _check_planes(recipe, pipe, ids, out, plane, occupancy):
    tokenizer = pipe.shapes.vqvae_model
    planes = tokenizer.planes_from_ids(ids)
    checked = 0
    for k, axes in enumerate(("xz", "xy", "yz")):
        if plane.format(axes) in out:
            recipe.check(planes[:, k], out[plane.format(axes)], 1e-8)
            checked += 1
    assert checked
    line = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64) * 1.1
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(1, -1, 3)
    recipe.check(tokenizer.occupancy(planes, points), out[occupancy], 1e-8)


@pytest.mark.slow
def test_surface_of_given_codes(case, pipe):
    """Where the surface crosses the grid's edges: count, place and spread of all 1,195,574 points.

    Area and volume are not compared: this field is so rough that they depend on how marching cubes
    joins the points in ambiguous cells (ours and the published one differ by 3 % of the area).
    """
    golden, i = case["outputs"]["mesh_fixed_ids"], np.arange(1024)
    tokenizer = pipe.shapes.vqvae_model
    ids = torch.from_numpy((5 * i * i + 7 * i + 1) % 64)[None]
    level, bias = float(np.log(0.2 / 0.8)), tokenizer.decoder.fc_out.bias
    with torch.no_grad():
        bias += golden["bias_shift"]
        planes = tokenizer.planes_from_ids(ids)[0]
        values = occupancy_grid(tokenizer, planes, level=level, resolution=128)
        bias -= golden["bias_shift"]
    padded = np.pad(values, 1, constant_values=-1e6) - level
    points = []
    for axis in range(3):
        low, high = (np.moveaxis(padded, axis, 0)[part] for part in (slice(-1), slice(1, None)))
        crossed = np.argwhere((low >= 0) != (high >= 0)).astype(float)
        before, after = (side[tuple(crossed.astype(int).T)] for side in (low, high))
        crossed[:, 0] += before / (before - after)
        points.append(np.insert(crossed[:, 1:], axis, crossed[:, 0], axis=1))
    points = 1.1 * ((np.concatenate(points) - 1) / 128 - 0.5)
    assert len(points) == golden["n_vertices"]
    np.testing.assert_allclose(points.mean(0), golden["vertex_mean"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(points.std(0), golden["vertex_std"], rtol=0, atol=1e-8)
    bounds = [points.min(0), points.max(0)]
    np.testing.assert_allclose(bounds, golden["bounds"], rtol=0, atol=1e-8)
