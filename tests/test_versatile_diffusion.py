"""The dual-guided U-Net: golden numbers of the published networks, and what its blocks must do."""

import importlib.util
import math
from pathlib import Path

import diffusers
import pytest
import torch

from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.objective import Objective
from neurodiff.diffusion.paths import add_noise, scaled_linear
from neurodiff.diffusion.sampling import NetworkDenoiser
from neurodiff.models.versatile_diffusion import (
    PUBLISHED,
    DualGuidedUNet,
    DualUNetSize,
    Tokens,
    load_states,
)
from neurodiff.models.versatile_diffusion_names import (
    from_published,
    published_autoencoder_name,
    published_unet_name,
)
from neurodiff.pipelines.versatile_diffusion import Settings, VersatileDiffusionGenerator

FOLDER = Path(__file__).parent / "golden"
spec = importlib.util.spec_from_file_location("golden_recipe", FOLDER / "recipe.py")
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
GOLDEN = recipe.load("versatile_diffusion")

SMALL = DualUNetSize(channels=(8, 16), heads=2, groups=4, text_width=6, image_width=5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill_by_published_name(module, names, rules):
    """The golden recipe, under published names; 1 x 1 convolutions are matrices here."""
    for name, parameter in module.named_parameters():
        value = recipe.parameter_value(names[name], tuple(parameter.shape), rules)
        parameter.data = torch.tensor(value)
    return module.double().eval()


class Sinusoids(torch.nn.Module):
    """Embedding of time, in float64 throughout: the golden keys ``_emb64``."""

    def forward(self, t):
        frequencies = torch.exp(-math.log(10000) * torch.arange(16, dtype=torch.float64) / 16)
        angles = t.double()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@pytest.fixture(scope="module")
def published():
    """The published network at the golden size, its inputs and its golden outputs."""
    case = GOLDEN["vd.unet"]
    size = DualUNetSize(
        channels=(32, 64),
        heads=4,
        text_width=24,
        image_width=24,
        attention=(True, False),
    )
    network = DualGuidedUNet(size)
    names = {name: published_unet_name(name, size) for name, _ in network.named_parameters()}
    fill_by_published_name(network, names, case["recipe"])
    inputs = {
        name: recipe.make(told)
        for name, told in case["inputs"].items()
        if isinstance(told, dict) and "fn" in told
    }
    return network, names, inputs, case["outputs"]


@pytest.fixture
def in_double(published):
    unet = published[0].unet
    single, unet.time_proj = unet.time_proj, Sinusoids()
    yield published
    unet.time_proj = single


def test_names_and_shapes_are_the_published_ones(published):
    network, names, _, _ = published
    ours = {
        names[name]: "x".join(map(str, parameter.shape))
        for name, parameter in network.named_parameters()
    }
    assert ours == GOLDEN["vd.unet"]["manifest"]["params"]


@pytest.mark.parametrize("share", [0.6, 1.0, 0.0])
def test_golden_forward(in_double, share):
    network, _, inputs, golden = in_double
    given = (inputs["x"], torch.tensor([37, 741]), inputs["text"], inputs["vision"])
    ours = network(*given, 1 - share)  # the published share is that of the vision
    recipe.check(ours, golden[f"forward_dc_mix{share}_emb64"], tol=1e-9)


@pytest.mark.parametrize("share", [0.6, 1.0, 0.0])
def test_golden_forward_with_sinusoids_in_single_precision(published, share):
    network, _, inputs, golden = published
    given = (inputs["x"], torch.tensor([37, 741]), inputs["text"], inputs["vision"])
    recipe.check(network(*given, 1 - share), golden[f"forward_dc_mix{share}"], tol=1e-6)


def loop(published, protocol="brain-diffuser-2023"):
    network, _, inputs, _ = published
    generator = VersatileDiffusionGenerator(
        network,
        torch.nn.Linear(1, 1),  # no pictures in this test
        null_text_tokens=inputs["uncond_text"],
        null_image_tokens=inputs["uncond_vision"],
        settings=Settings(protocol=protocol),
    )
    generator.null_text, generator.null_image = inputs["uncond_text"], inputs["uncond_vision"]
    return generator


@pytest.mark.parametrize("steps", [50, 10])
@pytest.mark.parametrize(("suffix", "tol"), [("_emb64", 1e-7), ("", 1e-5)])
def test_golden_loop(request, steps, suffix, tol):
    published = request.getfixturevalue("in_double" if suffix else "published")
    _, _, inputs, golden = published
    told = GOLDEN["vd.unet"]["inputs"][f"ddim{steps}"]
    generator = loop(published)
    noised, grid = generator.levels(steps=steps, strength=told["t_start"] / steps)
    calls = golden["decode_calls_t" if steps == 50 else "decode_10_calls_t"]
    assert [level.t for level in grid[:-1]] == calls
    x = add_noise(inputs["x0"], inputs["noise"], noised)
    if steps == 50:
        recipe.check(x, golden[f"z_enc{suffix}"], tol=1e-7)  # published roots are float32
    condition = inputs["text"][:1], inputs["vision"][:1], 1 - told["mix"]
    ours = generator.denoise(x, grid, condition, guidance=told["guidance"])
    name = "decode_dc" + "_10steps" * (steps == 10) + suffix
    recipe.check(ours, golden[name], tol=tol)


def test_golden_alphas():
    golden, path = GOLDEN["vd.unet"]["outputs"], Settings().path()
    times = [1, 21, 41, 981]
    ours = [float(path.alphas_cumprod[t]) for t in times]
    assert ours == pytest.approx(golden["ddim50_alphas_first3_last"], rel=1e-6)
    before = [float(path.alphas_cumprod[t]) for t in (0, 1, 21, 961)]
    assert before == pytest.approx(golden["ddim50_alphas_prev_first3_last"], rel=1e-6)


def test_golden_autoencoder():
    case = GOLDEN["vd.autokl"]
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    )
    names = {n: published_autoencoder_name(n, levels=2) for n, _ in vae.named_parameters()}
    wanted = case["manifest"]["params"]
    ours = {names[n]: "x".join(map(str, p.shape)) for n, p in vae.named_parameters()}
    ours = {n: s + "x1x1" * (".attn_1." in n and "x" in s) for n, s in ours.items()}
    assert ours == wanted
    fill_by_published_name(vae, names, case["recipe"])
    inputs = {name: recipe.make(told) for name, told in case["inputs"].items()}
    with torch.no_grad():
        posterior = vae.encode(inputs["image"]).latent_dist
        decoded = vae.decode(inputs["latent"]).sample
    outputs = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "mode": posterior.mode(),
        "decode": decoded,
        "sample_injected": posterior.mean + posterior.std * inputs["eps"],
    }
    for name, ours in outputs.items():
        recipe.check(ours, case["outputs"][name], tol=1e-9)


def test_published_tensors_load_by_name(published):
    network, names, _, _ = published
    own = network.state_dict()
    file = {names[name]: tensor for name, tensor in own.items()}
    back = from_published(own, names, file)
    assert all(torch.equal(back[name], own[name]) for name in own)
    first = next(iter(file))
    with pytest.raises(ValueError, match=r"1 published names are missing: unet_image\.input"):
        from_published(own, names, {n: t for n, t in file.items() if n != first})
    with pytest.raises(ValueError, match="has shape"):
        from_published(own, names, {**file, first: file[first][:1]})


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return DualGuidedUNet(SMALL)


def given(n=2, side=8):
    return draw(n, 4, side, side), torch.tensor([3, 700, 20][:n]), draw(n, 7, 6), draw(n, 3, 5)


def test_the_block_is_a_mixture_of_its_two_transformers(small):
    """P11: 0.4 of the text, 0.6 of the image, whatever the two are."""
    pair = small.pairs()[0]
    h, text, image = draw(2, 8, 8, 8), draw(2, 77, 6), draw(2, 257, 5)
    seen = pair.vision(h, encoder_hidden_states=image, return_dict=False)[0]
    read = pair.text(h, encoder_hidden_states=text, return_dict=False)[0]
    for mix in (0.0, 0.4, 1.0):
        ours = pair(h, Tokens(text, image, mix))[0]
        torch.testing.assert_close(ours, h + (1 - mix) * (seen - h) + mix * (read - h))
        torch.testing.assert_close(ours, (1 - mix) * seen + mix * read)


def test_without_text_it_is_the_image_unet_of_diffusers(small):
    """At mix 0 the network is an ordinary U-Net that is conditioned on image tokens."""
    plain = diffusers.UNet2DConditionModel(**SMALL.config())
    vision = {
        name.removeprefix("unet.").replace(".vision.", "."): tensor
        for name, tensor in small.state_dict().items()
        if ".text." not in name
    }
    plain.load_state_dict(vision)
    x, t, text, image = given()
    theirs = plain(x, t, encoder_hidden_states=image).sample
    torch.testing.assert_close(small(x, t, text, image, 0.0), theirs, rtol=1e-4, atol=1e-5)


def test_conditions_act_by_their_share(small):
    x, t, text, image = given()
    other_text, other_image = draw(2, 7, 6, seed=5), draw(2, 3, 5, seed=6)
    torch.testing.assert_close(
        small(x, t, text, image, 0.0), small(x, t, other_text, image, 0.0), rtol=0, atol=0
    )
    torch.testing.assert_close(
        small(x, t, text, image, 1.0), small(x, t, text, other_image, 1.0), rtol=0, atol=0
    )
    half = small(x, t, text, image, 0.5)
    assert (half - small(x, t, other_text, image, 0.5)).abs().max() > 1e-4
    assert (half - small(x, t, text, other_image, 0.5)).abs().max() > 1e-4


def test_what_is_prepared_once_gives_the_same(small):
    x, t, text, image = given()
    whole = small(x, t, text, image, 0.4)
    torch.testing.assert_close(small.step(x, t, small.prepare((text, image, 0.4))), whole)
    one = small.prepare((text[:1], image[:1], 0.4))  # one row serves a batch
    rows = small(x, t, text[:1].expand(2, -1, -1), image[:1].expand(2, -1, -1), 0.4)
    torch.testing.assert_close(small.step(x, t, one), rows)


def test_it_trains_and_both_sets_of_transformers_learn():
    torch.manual_seed(1)
    network, path = DualGuidedUNet(SMALL), scaled_linear(1000)
    objective, denoiser = Objective(path, EPS), NetworkDenoiser(network, EPS)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    x0, text, image = draw(8, 4, 8, 8), draw(8, 7, 6), draw(8, 3, 5)

    def loss():
        generator = torch.Generator().manual_seed(3)
        return objective(denoiser, x0, (text, image, 0.4), generator=generator)["loss"]

    first = loss()
    first.backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    for _ in range(15):
        optimiser.step()
        optimiser.zero_grad()
        loss().backward()
    assert float(loss().detach()) < 0.8 * float(first.detach())


def test_two_unets_of_diffusers_make_one():
    """Names of an image and a text U-Net; the text U-Net's other weights are left out."""
    network = DualGuidedUNet(SMALL)
    image = diffusers.UNet2DConditionModel(**SMALL.config())
    text = diffusers.UNet2DConditionModel(**{**SMALL.config(), "cross_attention_dim": 6})
    report = load_states(network, image.state_dict(), text.state_dict())
    assert report.sentence() == ""
    assert set(report.matched) == set(network.state_dict())
    assert report.left_out == [n for n in text.state_dict() if ".attentions." not in n]
    x, t, read, seen = given()
    torch.testing.assert_close(
        network(x, t, read, seen, 0.0), image(x, t, encoder_hidden_states=seen).sample
    )
    with pytest.raises(ValueError, match=r"of another shape: .*attn2.to_k"):
        load_states(network, image.state_dict(), image.state_dict())
    with pytest.raises(ValueError, match="missing"):
        load_states(network, {}, text.state_dict())
    with pytest.raises(ValueError, match=r"1 unexpected: unet.extra"):
        load_states(network, {**image.state_dict(), "extra": torch.zeros(1)}, text.state_dict())


def test_the_published_size_has_the_published_number_of_parameters():
    """859,520,964 in an SD-like image U-Net of 768-wide tokens, and the text's transformers."""
    with torch.device("meta"):
        network = DualGuidedUNet(PUBLISHED)
    counts = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(n for name, n in counts.items() if ".text." not in name) == 859_520_964
    sides = [
        sum(n for name, n in counts.items() if side in name) for side in (".text.", ".vision.")
    ]
    assert sides[0] == sides[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mix": 1.2}, "mix is 1.2"),
        ({"mix": float("nan")}, "mix is nan"),
        ({"text": draw(2, 7, 5)}, r"text tokens have the shape \(2, 7, 5\)"),
        ({"image": draw(2, 3, 6)}, r"image tokens have the shape"),
    ],
)
def test_wrong_conditions_are_named(small, change, said):
    x, t, text, image = given()
    told = {"text": text, "image": image, "mix": 0.4} | change
    with pytest.raises(ValueError, match=said):
        small(x, t, told["text"], told["image"], told["mix"])
    with pytest.raises(ValueError, match=said):
        small.prepare((told["text"], told["image"], told["mix"]))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"channels": (10, 16)}, "10 channels are no multiple"),
        ({"channels": ()}, "give some of each"),
        ({"layers": 0}, "give some of each"),
        ({"attention": (True,)}, "names 1 levels"),
    ],
)
def test_wrong_sizes_are_named(sizes, said):
    with pytest.raises(ValueError, match=said):
        DualUNetSize(**{"channels": (8, 16), "groups": 4, "heads": 2} | sizes)
