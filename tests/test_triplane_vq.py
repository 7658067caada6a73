"""Three-plane VQ autoencoder: golden numbers, straight-through gradients, sizes, learning."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from neurodiff.models.codebook import code_usage, reseed_dead_codes
from neurodiff.models.triplane_vq import TriplaneVQ, TriplaneVQSize
from neurodiff.models.unet2d import UNet2D

_SPEC = importlib.util.spec_from_file_location(
    "golden_recipe", Path(__file__).parent / "golden" / "recipe.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)

CASE = recipe.load("mind3d_vqvae")["mind3d.vqvae"]
GOLDEN = CASE["outputs"]
PLANES = ("xz", "xy", "yz")
GOLDEN_SIZE = TriplaneVQSize(
    vocab=128, width=64, unet_depth=3, start_filters=8, plane_resolution=64, grid=8
)
SMALL = TriplaneVQSize(
    hidden=4,
    plane_resolution=8,
    grid=4,
    vocab=16,
    width=8,
    unet_depth=2,
    start_filters=4,
    blocks=2,
    unused_encoder_unet=False,
)


@pytest.fixture(scope="module")
def golden():
    model = recipe.fill(TriplaneVQ(GOLDEN_SIZE), CASE["recipe"])
    i = torch.arange(64)
    return model, ((5 * i * i + 7 * i + 1) % 128)[None], recipe.make(CASE["inputs"]["pointcloud"])


@pytest.fixture
def small():
    state = torch.get_rng_state()
    torch.manual_seed(3)
    model = TriplaneVQ(SMALL).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    points, queries = torch.rand(2, 30, 3).double() - 0.5, torch.rand(2, 7, 3).double() - 0.5
    torch.set_rng_state(state)
    return model, points, queries


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        model = TriplaneVQ(GOLDEN_SIZE)
    assert recipe.manifest(model) == CASE["manifest"]["params"]


def test_full_size_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        model = TriplaneVQ()
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    assert counts == {"encoder": 1_962_208, "quantizer": 5_280_612, "decoder": 16_001}


@torch.no_grad()
def test_planes_and_occupancy_from_codes_equal_the_published_code(golden):
    model, ids, cloud = golden
    planes = model.planes_from_ids(ids)
    for k, name in enumerate(PLANES):
        recipe.check(planes[:, k], GOLDEN[f"plane_{name}"])
    recipe.check(model.occupancy(planes, cloud), GOLDEN["occupancy_logits_sincloud"])
    five = model.occupancy(planes, recipe.make(CASE["inputs"]["points5"]))[0].tolist()
    assert five == pytest.approx(GOLDEN["occupancy_logits_5pts"], rel=1e-9)


@torch.no_grad()
def test_encoding_equals_the_published_code(golden):
    model, _, cloud = golden
    planes = model.encode_planes(cloud)
    for k, name in enumerate(PLANES):
        recipe.check(planes[:, k], GOLDEN[f"encoder_plane_{name}"])
    recipe.check(model.encode(planes).unflatten(1, (8, 8)), GOLDEN["pre_quant"])
    ids, quantised, loss = model.quantise(planes)
    assert ids[0].tolist() == GOLDEN["quantise_ids"]
    assert loss.item() == pytest.approx(GOLDEN["vq_loss"], rel=1e-9)
    decoded = model.planes_from_codes(quantised)
    recipe.check(decoded[:, 0], GOLDEN["quantise_forward_plane_xz"])


@torch.no_grad()
def test_float32_stays_within_rounding_of_the_published_code(golden):
    _, ids, cloud = golden
    model = recipe.fill(TriplaneVQ(GOLDEN_SIZE), CASE["recipe"]).float()
    planes = model.planes_from_ids(ids)
    recipe.check(planes[:, 2], GOLDEN["plane_yz"], tol=1e-5)
    recipe.check(model.occupancy(planes, cloud.float()), GOLDEN["occupancy_logits_sincloud"], 1e-5)
    assert (
        model.quantise(model.encode_planes(cloud.float()))[0][0].tolist()
        == (GOLDEN["quantise_ids"])
    )


@torch.no_grad()
def test_forward_is_the_composition_and_codes_reproduce_it(small):
    model, points, queries = small
    logits, loss, ids = model(points, queries)
    assert logits.shape == (2, 7)
    assert ids.shape == (2, 16)
    assert loss.ndim == 0
    torch.testing.assert_close(model.occupancy(model.planes_from_ids(ids), queries), logits)


@torch.no_grad()
def test_an_object_does_not_depend_on_its_batch_or_on_the_order_of_points(small):
    model, points, queries = small
    logits, _, ids = model(points, queries)
    alone, _, ids_alone = model(points[1:, torch.randperm(30)], queries[1:])
    assert ids_alone[0].tolist() == ids[1].tolist()
    torch.testing.assert_close(alone[0], logits[1], rtol=1e-10, atol=1e-10)


def test_gradients_pass_straight_through_and_the_losses_move_their_own_side(small):
    model, points, _ = small
    planes = model.encode_planes(points).detach().requires_grad_()
    codebook = model.quantizer.quantizer.embedding.weight
    _, quantised, loss = model.quantise(planes)
    direction = torch.randn_like(quantised)
    (through,) = torch.autograd.grad(quantised, planes, direction, retain_graph=True)
    (direct,) = torch.autograd.grad(model.encode(planes), planes, direction)
    torch.testing.assert_close(through, direct)
    # mean over (n, tokens, dim) of the squared distance: 2 (q - z) / count on the codebook's side
    z, size = model.encode(planes), quantised.numel()
    ids = model.quantise(planes)[0]
    expected = torch.zeros_like(codebook)
    expected.index_add_(0, ids.flatten(), (2 * (quantised - z) / size).detach().flatten(0, 1))
    (on_codes,) = torch.autograd.grad(loss, codebook, retain_graph=True)
    torch.testing.assert_close(on_codes, expected)
    (on_planes,) = torch.autograd.grad(loss, planes)
    (pull,) = torch.autograd.grad(z, planes, (0.4 * 2 * (z - quantised) / size).detach())
    torch.testing.assert_close(on_planes, pull)


def test_every_parameter_but_the_unused_ones_learns():
    model = TriplaneVQ(SMALL).double()
    points, queries = torch.rand(2, 40, 3).double() - 0.5, torch.rand(2, 9, 3).double() - 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    logits, loss, _ = model(points, queries)
    (logits.sum() + loss).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_few_steps_learn_to_tell_balls_of_two_sizes_apart():
    generator = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    size = TriplaneVQSize(
        hidden=16, plane_resolution=8, grid=4, vocab=16, width=8, unet_depth=2, start_filters=8,
        blocks=2, unused_encoder_unet=False,
    )  # fmt: skip
    model = TriplaneVQ(size)
    torch.set_rng_state(state)
    radius = torch.tensor([0.3, 0.6]).repeat(2)[:, None, None]
    points = radius * F.normalize(torch.randn(4, 64, 3, generator=generator), dim=-1)
    queries = torch.rand(4, 128, 3, generator=generator) - 0.5
    inside = (queries.norm(dim=-1) < radius[..., 0]).float()
    codebook = model.quantizer.quantizer.embedding.weight
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    usage = torch.zeros(16)
    for step in range(70):
        if step % 5 == 0:
            vectors = model.encode(model.encode_planes(points)).detach()
            reseed_dead_codes(codebook, usage, vectors, generator)
        optimiser.zero_grad()
        logits, loss, ids = model(points, queries)
        (F.binary_cross_entropy_with_logits(logits, inside) + loss).backward()
        optimiser.step()
        usage = code_usage(ids, 16)
    right = ((logits > 0) == (inside > 0)).float().mean()
    constant = torch.maximum(inside.mean(), 1 - inside.mean())
    assert right > constant + 0.5 * (1 - constant)
    assert int((usage > 0).sum()) > 5
    assert ids[0].tolist() != ids[1].tolist()


@pytest.mark.parametrize(("resolution", "grid", "stages"), [(8, 8, 0), (16, 8, 1), (32, 4, 3)])
@torch.no_grad()
def test_stages_follow_the_ratio_of_planes_to_grid(resolution, grid, stages):
    size = TriplaneVQSize(
        hidden=4, plane_resolution=resolution, grid=grid, vocab=8, width=8, unet_depth=2,
        start_filters=4, blocks=1, unused_encoder_unet=False,
    )  # fmt: skip
    model = TriplaneVQ(size)
    strided = [m for m in model.quantizer.down if getattr(m, "stride", (1, 1)) == (2, 2)]
    assert size.stages == stages == len(strided)
    planes = model.planes_from_ids(torch.zeros(1, grid * grid, dtype=torch.long))
    assert planes.shape == (1, 3, 4, resolution, resolution)
    assert model.encode(planes).shape == (1, grid * grid, 4)


def test_unet_refuses_sides_it_cannot_halve():
    with pytest.raises(ValueError, match="12 x 10 cannot be halved 2 times"):
        UNet2D(2, 2, depth=3, start_filters=2)(torch.zeros(1, 2, 12, 10))
    with pytest.raises(ValueError, match="depth is 0"):
        UNet2D(2, 2, depth=0, start_filters=2)


def test_errors_say_what_is_wrong(small):
    model, points, _ = small
    with pytest.raises(ValueError, match="9 codes an object; this network has 16"):
        model.planes_from_ids(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="reach from 0 to 16; the codebook has codes 0 to 15"):
        model.planes_from_ids(torch.arange(16)[None] + (torch.arange(16) == 15).long())
    with pytest.raises(ValueError, match="points is empty"):
        model.encode_planes(points[:, :0])
    with pytest.raises(ValueError, match="not finite"):
        model.encode_planes(points / 0)
    with pytest.raises(ValueError, match="power of 2"):
        TriplaneVQSize(plane_resolution=96, grid=32)
    with pytest.raises(ValueError, match="unet_depth 4 is too large"):
        TriplaneVQSize(plane_resolution=8, grid=4)
