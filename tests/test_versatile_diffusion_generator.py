"""Pictures by Versatile Diffusion: the loop against closed forms, files, bad input."""

import json
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.seeds import torch_generator
from neurodiff.diffusion.paths import add_noise
from neurodiff.models.versatile_diffusion import DualGuidedUNet, DualUNetSize
from neurodiff.models.versatile_diffusion_names import published_unet_name
from neurodiff.pipelines.generators import Generator, pictures, pixels
from neurodiff.pipelines.versatile_diffusion import Settings, VersatileDiffusionGenerator
from neurodiff.pipelines.versatile_diffusion_files import dual_unet_from_checkpoint, key_report

SIZE = DualUNetSize(channels=(8, 16), heads=2, groups=4, text_width=6, image_width=5)
TEXTS, IMAGES, SIDE = 3, 4, 16


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scene(seed, side=SIDE):
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def small_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
    )


def make(unet=None, **settings):
    torch.manual_seed(0)
    return VersatileDiffusionGenerator(
        unet or DualGuidedUNet(SIZE),
        small_vae(),
        null_text_tokens=draw(TEXTS, 6, seed=1),
        null_image_tokens=draw(IMAGES, 5, seed=2),
        settings=Settings(**settings),
    )


@pytest.fixture(scope="module")
def generator():
    return make(batch=2)


def request(n=3):
    return {
        "init_images": [scene(at) for at in range(n)],
        "text_tokens": draw(n, TEXTS, 6, seed=3),
        "image_tokens": draw(n, IMAGES, 5, seed=4),
        "strength": 0.75,
        "guidance": 2.0,
        "mix": 0.4,
        "steps": 4,
        "seed": list(range(10, 10 + n)),
    }


def arrays(images):
    return np.stack([np.asarray(image).astype(int) for image in images])


def test_it_is_a_generator(generator):
    assert isinstance(generator, Generator)
    made = generator.generate(**request())
    assert [(image.mode, image.size) for image in made] == [("RGB", (SIDE, SIDE))] * 3


def test_a_picture_does_not_change_with_its_batch(generator):
    told = request()
    together = arrays(generator.generate(**told))
    order = [2, 0, 1]
    shuffled = told | {
        name: [told[name][at] for at in order]
        if isinstance(told[name], list)
        else told[name][order]
        for name in ("init_images", "text_tokens", "image_tokens", "seed")
    }
    assert np.abs(arrays(generator.generate(**shuffled)) - together[order]).max() <= 1
    for at in range(3):
        alone = told | {
            name: told[name][at : at + 1]
            for name in ("init_images", "text_tokens", "image_tokens", "seed")
        }
        assert np.abs(arrays(generator.generate(**alone))[0] - together[at]).max() <= 1


def test_what_is_told_matters(generator):
    told = request()
    first = arrays(generator.generate(**told))
    np.testing.assert_array_equal(arrays(generator.generate(**told)), first)
    changes = {
        "seed": [0, 11, 12],
        "text_tokens": told["text_tokens"] + torch.tensor([3.0, 0, 0])[:, None, None],
        "image_tokens": told["image_tokens"] + torch.tensor([3.0, 0, 0])[:, None, None],
        "init_images": [scene(99), *told["init_images"][1:]],
    }
    for name, value in changes.items():
        made = arrays(generator.generate(**told | {name: value}))
        assert np.abs(made[0] - first[0]).max() > 1, name
        assert np.abs(made[1:] - first[1:]).max() <= 1, name  # the others stay


def test_the_global_random_state_is_left_alone(generator):
    before = torch.get_rng_state()
    generator.generate(**request(1))
    assert torch.equal(torch.get_rng_state(), before)


# --------------------------------------------------------------------------- the loop (P10)


class Exact(torch.nn.Module):
    """Predicts the noise of known latents, without error."""

    def __init__(self, path):
        super().__init__()
        self.size, self.path, self.calls = SIZE, path, []
        self.unused = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def prepare(self, cond):
        return cond

    def step(self, x, t, cond):
        level = self.path.level(int(t[0]))
        self.calls.append(level.t)
        return (x - level.alpha * self.x0) / level.sigma


@pytest.mark.parametrize(
    ("protocol", "start"), [("neurodiff-1", 721), ("brain-diffuser-2023", 741)]
)
def test_levels_of_the_two_protocols(protocol, start):
    """Noised at 721 or at 741, denoised from 721 in 37 calls; the end in closed form."""
    network = Exact(Settings().path())
    generator = make(network, protocol=protocol)
    noised, grid = generator.levels(steps=50, strength=0.75)
    assert (noised.t, grid[0].t, grid[-1].t, len(grid) - 1) == (start, 721, 0, 37)
    network.x0, eps = draw(2, 4, 8, 8).double(), draw(2, 4, 8, 8, seed=1).double()
    x = add_noise(network.x0, eps, noised)
    cond = draw(2, TEXTS, 6), draw(2, IMAGES, 5), 0.4
    end = generator.denoise(x, grid, cond, guidance=1.0)
    assert network.calls == [float(t) for t in range(721, 0, -20)]
    kept = (x - grid[0].alpha * network.x0) / grid[0].sigma  # eps, if the levels are one
    expected = grid[-1].alpha * network.x0 + grid[-1].sigma * kept
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(kept, eps) == (protocol == "neurodiff-1")


def test_the_trajectory_of_the_scheduler_of_diffusers():
    """P10: DDIM of diffusers, noised at 741 and run along ``timesteps[13:]``."""
    generator = make(protocol="brain-diffuser-2023")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(50)
    z, eps = draw(1, 4, 8, 8), draw(1, 4, 8, 8, seed=1)
    text, image = draw(1, TEXTS, 6), draw(1, IMAGES, 5)
    null = generator.null_text, generator.null_image
    theirs = scheduler.add_noise(z, eps, torch.tensor([741]))
    noised, grid = generator.levels(steps=50, strength=0.75)
    x = add_noise(z, eps, noised)
    torch.testing.assert_close(x, theirs, rtol=0, atol=1e-6)
    with torch.no_grad():
        for t in scheduler.timesteps[13:]:
            base = generator.unet(theirs, t[None], *null, 0.4)
            led = generator.unet(theirs, t[None], text, image, 0.4)
            theirs = scheduler.step(base + 7.5 * (led - base), t, theirs).prev_sample
    ours = generator.denoise(x, grid, (text, image, 0.4), guidance=7.5)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_the_latent_is_drawn_from_the_posterior_by_its_own_generator():
    generator = make(encode="sample")
    images = [scene(0), scene(1)]
    with torch.no_grad():
        found = generator.vae.encode(pixels(images)).latent_dist
    eps = torch.stack(
        [
            torch.randn(4, 8, 8, generator=torch_generator(seed), dtype=torch.float64)
            for seed in (5, 6)
        ]
    )
    expected = 0.18215 * (found.mean + found.std * eps.float())
    ours = generator.encode(images, [torch_generator(5), torch_generator(6)])
    torch.testing.assert_close(ours, expected)
    mode = make(encode="mode").encode(images, [torch_generator(5), torch_generator(6)])
    torch.testing.assert_close(mode, 0.18215 * found.mean)


def test_guidance_one_never_asks_for_the_null(generator):
    told = request(1) | {"guidance": 1.0}
    kept = generator.null_text
    try:
        first = arrays(generator.generate(**told))
        generator.null_text = torch.full_like(kept, torch.nan)
        np.testing.assert_array_equal(arrays(generator.generate(**told)), first)
        with pytest.raises(DataError, match="NaN or infinite"):
            generator.generate(**request(1))
    finally:
        generator.null_text = kept


def test_published_tokens_go_through():
    """P11: 77 text tokens and 257 of the image."""
    generator = make()
    generator.null_text, generator.null_image = draw(1, 77, 6), draw(1, 257, 5)
    frozen = draw(1, 77, 6).numpy()
    frozen.setflags(write=False)  # as a mapped file is
    told = request(1) | {
        "text_tokens": frozen,
        "image_tokens": draw(1, 257, 5).double().numpy(),
        "steps": 2,
    }
    assert len(generator.generate(**told)) == 1


def test_half_precision_keeps_a_trajectory_in_single():
    generator = make()
    single = arrays(generator.generate(**request()))
    generator.unet.to(torch.bfloat16)
    z = generator.encode([scene(0)], [torch_generator(0)])
    cond = draw(1, TEXTS, 6), draw(1, IMAGES, 5), 0.4
    _, grid = generator.levels(steps=4, strength=0.75)
    assert generator.denoise(z, grid, cond, guidance=2.0).dtype == torch.float32
    half = arrays(generator.generate(**request()))
    assert 0 < np.abs(half - single).mean() < 5


def test_pixels_and_pictures_are_inverse():
    images = [scene(0), scene(1)]
    values = pixels(images)
    assert values.shape == (2, 3, SIDE, SIDE)
    assert float(values.abs().max()) <= 1
    np.testing.assert_array_equal(arrays(pictures(values)), arrays(images))
    np.testing.assert_array_equal(arrays(pictures(values + 3)), 255)


# -------------------------------------------------------------------------------------- files


def test_saved_and_read_again(generator, tmp_path):
    place = generator.save_pretrained(tmp_path / "generator")
    again = VersatileDiffusionGenerator.from_pretrained(place)
    assert (again.settings, again.unet.size) == (generator.settings, generator.unet.size)
    np.testing.assert_array_equal(
        arrays(again.generate(**request())), arrays(generator.generate(**request()))
    )
    theirs = diffusers.AutoencoderKL.from_pretrained(place / "vae", local_files_only=True)
    assert theirs.config.latent_channels == 4
    assert not [path for path in place.rglob("*") if path.name.startswith(".tmp")]


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda d: (d / "config.json").unlink(), MissingDataError, "has no config.json"),
        (lambda d: (d / "unet/model.safetensors").unlink(), MissingDataError, "is missing"),
        (
            lambda d: (d / "unet/model.safetensors").write_bytes(b"x"),
            DataError,
            "other SHA-256",
        ),
        (lambda d: (d / "config.json").write_text("[]"), DataError, "format 'list'"),
        (lambda d: edit(d / "config.json", settings={"batch": "x"}), DataError, "batch"),
        (lambda d: edit(d / "config.json", settings=[]), DataError, "holds list"),
        (lambda d: edit(d / "config.json", files={}), DataError, "other SHA-256"),
    ],
)
def test_damaged_folders_are_refused(generator, tmp_path, damage, error, said):
    place = generator.save_pretrained(tmp_path / "generator")
    damage(place)
    with pytest.raises(error, match=said):
        VersatileDiffusionGenerator.from_pretrained(place)


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


NULL = {"null_text_tokens": torch.zeros(TEXTS, 6), "null_image_tokens": torch.zeros(IMAGES, 5)}


@pytest.fixture
def published(tmp_path):
    """A tiny pipeline folder of diffusers; its text U-Net has weights that nothing here reads."""
    torch.manual_seed(0)
    place = tmp_path / "versatile-diffusion"
    image = diffusers.UNet2DConditionModel(**SIZE.config())
    text = diffusers.UNet2DConditionModel(**{**SIZE.config(), "cross_attention_dim": 6})
    image.save_pretrained(place / "image_unet")
    text.save_pretrained(place / "text_unet")
    edit(place / "text_unet/config.json", _class_name="UNetFlatConditionModel")
    small_vae().save_pretrained(place / "vae")
    diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).save_pretrained(place / "scheduler")
    return place, image, text


def read(place, **options):
    return VersatileDiffusionGenerator.from_folder(place, **{**NULL, "device": "cpu", **options})


def test_a_published_folder_is_read(published):
    place, image, text = published
    generator = read(place, protocol="brain-diffuser-2023")
    assert generator.unet.size == DualUNetSize(**{**vars(SIZE), "attention": (True, False)})
    assert generator.settings.protocol == "brain-diffuser-2023"
    x, t, seen = draw(1, 4, 8, 8), torch.tensor([500]), draw(1, IMAGES, 5)
    ours = generator.unet(x, t, draw(1, TEXTS, 6), seen, 0.0)
    torch.testing.assert_close(ours, image(x, t, encoder_hidden_states=seen).sample)
    pair = generator.unet.pairs()[0]
    theirs = text.down_blocks[0].attentions[0]
    assert torch.equal(pair.text.proj_in.weight, theirs.proj_in.weight)
    assert len(generator.generate(**request(1))) == 1
    half = read(place, dtype=torch.float16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}


def test_a_wrong_protocol_is_named_before_anything_is_loaded(published):
    place, _, _ = published
    for file in place.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(UsageError, match="protocol is 'x'"):
        read(place, protocol="x")


def test_the_keys_of_a_published_folder_are_reported(published):
    place, _, text = published
    report = key_report(place)
    assert report.sentence() == ""
    assert len(report.matched) == len(DualGuidedUNet(SIZE).state_dict())
    others = {name for name in text.state_dict() if ".attentions." not in name}
    assert set(report.left_out) == others
    file = place / "image_unet/diffusion_pytorch_model.safetensors"
    save_file({"extra": torch.zeros(1)} | load_file(file), file)
    assert key_report(place).sentence() == "1 unexpected: unet.extra"


def test_a_checkpoint_under_published_names_is_read(tmp_path):
    torch.manual_seed(0)
    network = DualGuidedUNet(SIZE)
    state = network.state_dict()
    names = {name: f"model.diffusion_model.{published_unet_name(name, SIZE)}" for name in state}
    torch.save({names[name]: tensor for name, tensor in state.items()}, tmp_path / "vd.pth")
    again = dual_unet_from_checkpoint(tmp_path / "vd.pth", SIZE).state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)
    with pytest.raises(DataError, match="published names are missing"):
        dual_unet_from_checkpoint(tmp_path / "vd.pth")


def test_attention_of_old_autoencoders_is_renamed(published):
    place, _, _ = published
    file = place / "vae/diffusion_pytorch_model.safetensors"
    kept = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in kept.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor.clone()
    assert renamed.keys() != kept.keys()
    save_file(renamed, file)
    again = read(place).vae.state_dict()
    assert all(torch.equal(again[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda d: remove(d / "text_unet"), MissingDataError, "has no text_unet; expected"),
        (
            lambda d: (d / "image_unet/diffusion_pytorch_model.safetensors").unlink(),
            MissingDataError,
            "image_unet has no weights",
        ),
        (
            lambda d: edit(d / "image_unet/config.json", block_out_channels=[8, 32]),
            DataError,
            "different models",
        ),
        (
            lambda d: [
                edit(d / f"{part}/config.json", block_out_channels=[8, 32])
                for part in ("image_unet", "text_unet")
            ],
            DataError,
            "of another shape",
        ),
        (
            lambda d: edit(d / "text_unet/config.json", cross_attention_dim=7),
            DataError,
            r"of another shape: .*attn2",
        ),
        (
            lambda d: edit(d / "image_unet/config.json", use_linear_projection=True),
            DataError,
            "use_linear_projection True",
        ),
        (
            lambda d: edit(d / "image_unet/config.json", down_block_types=["A", "B"]),
            DataError,
            "does not know 'A'",
        ),
        (
            lambda d: edit(d / "scheduler/scheduler_config.json", prediction_type="sample"),
            DataError,
            "prediction_type 'sample'",
        ),
        (lambda d: edit(d / "vae/config.json", latent_channels=3), DataError, "has shape"),
        (lambda d: (d / "vae/config.json").write_text("3"), DataError, "holds int"),
    ],
)
def test_broken_published_folders_are_refused(published, damage, error, said):
    place, _, _ = published
    damage(place)
    with pytest.raises(error, match=said):
        read(place)


def remove(folder: Path):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


# ----------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"mix": 1.5}, UsageError, "mix is 1.5"),
        ({"mix": -0.1}, UsageError, "mix is -0.1"),
        ({"mix": float("nan")}, UsageError, "mix is nan"),
        ({"strength": 0.0}, UsageError, "strength is 0.0"),
        ({"strength": 1.5}, UsageError, "strength is 1.5"),
        ({"strength": 0.1}, UsageError, "leaves no step"),
        ({"guidance": float("inf")}, UsageError, "guidance is inf"),
        ({"steps": 0}, UsageError, "steps is 0"),
        ({"steps": 2.5}, UsageError, "steps is 2.5"),
        ({"steps": 5000}, UsageError, "this path has 1000"),
        ({"seed": [1, 2]}, UsageError, "2 seeds for 3 pictures"),
        ({"seed": 1}, UsageError, "a single seed"),
        ({"seed": [1, 2, -3]}, UsageError, "the seed is -3"),
        ({"init_images": []}, UsageError, "no initial picture"),
        ({"init_images": [scene(0), scene(1)]}, UsageError, "3 seeds for 2 pictures"),
        ({"init_images": [scene(0).convert("L")] * 3}, DataError, "initial picture 0 is L"),
        ({"init_images": [scene(0).convert("RGBA")] * 3}, DataError, "is RGBA"),
        ({"init_images": [np.zeros((16, 16, 3))] * 3}, DataError, "is ndarray"),
        ({"init_images": [scene(0), scene(1), scene(2, 20)]}, DataError, "have the sizes"),
        ({"init_images": [scene(0, 18)] * 3}, DataError, "multiples of 4"),
        ({"text_tokens": draw(3, TEXTS, 7)}, DataError, r"text tokens have the shape \(3, 3, 7\)"),
        ({"text_tokens": draw(3, TEXTS + 1, 6)}, DataError, r"needs \(3, 3, 6\)"),
        ({"text_tokens": draw(2, TEXTS, 6)}, DataError, r"needs \(3, 3, 6\) for 3 pictures"),
        ({"image_tokens": draw(3, 20)}, DataError, "image tokens have the shape"),
        ({"image_tokens": "abc"}, DataError, "image tokens are str that are no numbers"),
        ({"image_tokens": draw(3, IMAGES, 5) * torch.nan}, DataError, "picture 0 hold NaN"),
    ],
)
def test_bad_input_is_one_sentence(generator, change, error, said):
    with pytest.raises(error, match=said) as found:
        generator.generate(**request() | change)
    assert "\n" not in str(found.value)


def test_wrong_settings_are_named():
    with pytest.raises(UsageError, match="protocol is 'x'"):
        Settings(protocol="x")
    with pytest.raises(UsageError, match="encode is 'x'"):
        Settings(encode="x")
    with pytest.raises(UsageError, match="batch is 0"):
        Settings(batch=0)
    with pytest.raises(UsageError, match="before: lower the strength"):
        make(protocol="brain-diffuser-2023").levels(steps=50, strength=1.0)
    assert make().levels(steps=50, strength=1.0)[0].t == 981
    options = {"null_text_tokens": draw(TEXTS, 6), "null_image_tokens": draw(IMAGES, 6)}
    with pytest.raises(UsageError, match="null image tokens have the shape"):
        VersatileDiffusionGenerator(DualGuidedUNet(SIZE), small_vae(), **options)
    options["null_image_tokens"] = draw(IMAGES, 5) / 0
    with pytest.raises(DataError, match="null image tokens hold NaN"):
        VersatileDiffusionGenerator(DualGuidedUNet(SIZE), small_vae(), **options)
