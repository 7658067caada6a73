"""Stable Diffusion with an IP-Adapter: the real classes of diffusers with tiny random weights."""

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.seeds import torch_generator
from neurodiff.pipelines.generators import Generator
from neurodiff.pipelines.ip_adapter import IPAdapterGenerator, adapter_state

TEXTS, WIDTH, SIDE = 5, 8, 16
PLAIN, PLUS = (1, 12), (7, 10)  # count and width of an image token


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scene(seed, side=SIDE):
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def small_unet():
    return diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def small_pipe():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
    )
    return diffusers.StableDiffusionImg2ImgPipeline(
        vae=vae,
        unet=small_unet(),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def adapter(kind):
    """Weights under the names of the published files."""
    unet, state, key = small_unet(), {}, 1
    for name, processed in unet.named_modules():
        if name.endswith("attn2"):
            for side in "kv":
                shape = (processed.to_q.out_features, WIDTH)
                state[f"ip_adapter.{key}.to_{side}_ip.weight"] = draw(*shape, seed=key)
            key += 2
    if kind == "plain":
        state["image_proj.proj.weight"] = draw(4 * WIDTH, PLAIN[1])
        state["image_proj.proj.bias"] = draw(4 * WIDTH)
        state["image_proj.norm.weight"] = torch.ones(WIDTH)
        state["image_proj.norm.bias"] = torch.zeros(WIDTH)
        return state
    hidden = 64  # one head
    state["image_proj.latents"] = draw(1, 3, hidden)
    for part, (wide, narrow) in {"proj_in": (hidden, PLUS[1]), "proj_out": (WIDTH, hidden)}.items():
        state[f"image_proj.{part}.weight"] = draw(wide, narrow)
        state[f"image_proj.{part}.bias"] = torch.zeros(wide)
    norms = ["norm_out"]
    for layer in range(4):
        at = f"layers.{layer}"
        norms += [f"{at}.0.norm1", f"{at}.0.norm2", f"{at}.1.0"]
        for seed, (part, rows) in enumerate({"to_q": 64, "to_kv": 128, "to_out": 64}.items()):
            state[f"image_proj.{at}.0.{part}.weight"] = 0.1 * draw(rows, hidden, seed=seed)
        state[f"image_proj.{at}.1.1.weight"] = 0.1 * draw(4 * hidden, hidden)
        state[f"image_proj.{at}.1.3.weight"] = 0.1 * draw(hidden, 4 * hidden)
    for name in norms:
        width = WIDTH if name == "norm_out" else hidden
        state[f"image_proj.{name}.weight"] = torch.ones(width)
        state[f"image_proj.{name}.bias"] = torch.zeros(width)
    return state


@pytest.fixture(scope="module", params=["plain", "plus"])
def made(request, tmp_path_factory):
    """A generator read from local files, and the shape of its image tokens."""
    place = tmp_path_factory.mktemp(request.param)
    small_pipe().save_pretrained(place / "sd")
    save_file(adapter(request.param), place / "adapter.safetensors")
    shape = {"plain": PLAIN, "plus": PLUS}[request.param]
    return read(place, shape), shape


def read(place, shape=PLAIN, **options):
    told = {
        "null_text_tokens": draw(TEXTS, WIDTH, seed=8),
        "null_image_tokens": torch.zeros(shape),
        "device": "cpu",
    }
    return IPAdapterGenerator.from_folder(
        place / "sd", place / "adapter.safetensors", **told | options
    )


def request_of(shape, n=2):
    return {
        "init_images": [scene(at) for at in range(n)],
        "text_tokens": draw(n, TEXTS, WIDTH, seed=3),
        "image_tokens": draw(n, *shape, seed=4),
        "strength": 0.75,
        "guidance": 2.0,
        "mix": 0.4,
        "steps": 4,
        "seed": list(range(10, 10 + n)),
    }


def arrays(images):
    return np.stack([np.asarray(image).astype(int) for image in images])


def test_it_is_a_generator_and_every_picture_has_its_own_tokens_and_noise(made):
    generator, shape = made
    assert isinstance(generator, Generator)
    told = request_of(shape) | {"guidance": 20.0}  # random weights hardly listen
    first = arrays(generator.generate(**told))
    assert first.shape == (2, SIDE, SIDE, 3)
    alone = told | {
        name: told[name][1:] for name in ("init_images", "text_tokens", "image_tokens", "seed")
    }
    np.testing.assert_array_equal(arrays(generator.generate(**alone))[0], first[1])
    shift = torch.tensor([4.0, 0.0])[:, None, None]
    for name in ("text_tokens", "image_tokens"):
        other = told[name] + shift * draw(*told[name].shape, seed=7)
        changed = arrays(generator.generate(**told | {name: other}))
        assert np.abs(changed[0] - first[0]).max() > 0, name
        np.testing.assert_array_equal(changed[1], first[1])
    reseeded = arrays(generator.generate(**told | {"seed": [99, 11]}))
    assert np.abs(reseeded[0] - first[0]).max() > 1
    np.testing.assert_array_equal(reseeded[1], first[1])


def test_at_mix_one_the_text_leads_alone(made):
    generator, shape = made
    told = request_of(shape, 1) | {"mix": 1.0}
    first = arrays(generator.generate(**told))
    other = told | {"image_tokens": 5 * draw(1, *shape, seed=9)}
    np.testing.assert_array_equal(arrays(generator.generate(**other)), first)
    assert np.abs(arrays(generator.generate(**other | {"mix": 0.0})) - first).max() > 0


def test_the_picture_is_that_of_a_loop_written_out(made):
    """DDIM from level 721 (37 of 50 steps), guided, over the U-Net and its adapter."""
    generator, shape = made
    pipe, told = generator.pipe, request_of(shape, 1) | {"steps": 8, "mix": 0.25}
    ours = arrays(generator.generate(**told))
    rng = torch_generator(10)
    values = torch.from_numpy(np.array(scene(0))).permute(2, 0, 1)[None] / 127.5 - 1
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(8)
    times = scheduler.timesteps[2:]
    with torch.no_grad():
        z = pipe.vae.encode(values.float()).latent_dist.sample(rng) * pipe.vae.config.scaling_factor
        x = scheduler.add_noise(z, torch.randn(z.shape, generator=rng), times[:1])
        text = torch.cat([generator.null_text, told["text_tokens"]])
        image = torch.cat([generator.null_image, told["image_tokens"]])
        image = image if generator.plain else image[:, None]
        pipe.set_ip_adapter_scale(0.75)
        for t in times:
            pair = pipe.unet(
                x.expand(2, -1, -1, -1), t, text, added_cond_kwargs={"image_embeds": [image]}
            ).sample
            x = scheduler.step(pair[:1] + 2.0 * (pair[1:] - pair[:1]), t, x).prev_sample
        out = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    expected = ((out.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - expected).max() <= 1


def test_published_levels(made):
    """0.75 of 50 steps: 37 calls, the first at 721, which is the level that noise is added to."""
    pipe = made[0].pipe
    pipe.scheduler.set_timesteps(50)
    times, calls = pipe.get_timesteps(50, 0.75, "cpu")
    assert (int(times[0]), calls) == (721, 37)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"mix": 1.5}, UsageError, "mix is 1.5"),
        ({"strength": 0.0}, UsageError, "strength is 0.0"),
        ({"guidance": 0.5}, UsageError, "guidance is 0.5"),
        ({"steps": 2000}, UsageError, "the scheduler has 1000"),
        ({"seed": [1]}, UsageError, "1 seeds for 2 pictures"),
        ({"init_images": [scene(0).convert("L")] * 2}, DataError, "picture 0 is L"),
        ({"init_images": [scene(0, 18)] * 2}, DataError, "multiples of 4"),
        ({"text_tokens": draw(2, TEXTS, 9)}, DataError, "text tokens have the shape"),
        ({"image_tokens": draw(2, 2, 2)}, DataError, "image tokens have the shape"),
        ({"text_tokens": draw(2, TEXTS, WIDTH) / 0}, DataError, "hold NaN or infinity"),
    ],
)
def test_bad_input_is_one_sentence(made, change, error, said):
    generator, shape = made
    with pytest.raises(error, match=said):
        generator.generate(**request_of(shape) | change)


def test_what_cannot_be_read_is_named(tmp_path):
    small_pipe().save_pretrained(tmp_path / "sd")
    good = adapter("plain")
    with pytest.raises(MissingDataError, match=r"adapter\.safetensors"):
        read(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(DataError, match="no image_proj and no ip_adapter"):
        read(tmp_path)
    bad = {name: torch.cat([value, value], -1) for name, value in good.items()}
    save_file(bad, tmp_path / "adapter.safetensors")
    with pytest.raises(DataError, match="does not fit the U-Net"):
        read(tmp_path)
    save_file(
        {n: v for n, v in good.items() if ".3.to_k" not in n}, tmp_path / "adapter.safetensors"
    )
    with pytest.raises(DataError, match=r"does not fit the U-Net .*3\.to_k_ip"):
        read(tmp_path)
    save_file(good, tmp_path / "adapter.safetensors")
    with pytest.raises(UsageError, match="null image tokens have a count of 2"):
        read(tmp_path, null_image_tokens=torch.zeros(2, PLAIN[1]))
    with pytest.raises(UsageError, match="null text tokens have the shape"):
        read(tmp_path, null_text_tokens=torch.zeros(2, 3))
    (tmp_path / "sd/vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DataError, match="could not be read by diffusers"):
        read(tmp_path)
    (tmp_path / "sd/model_index.json").unlink()
    with pytest.raises(MissingDataError, match=r"no model_index\.json"):
        read(tmp_path)


def test_a_pipeline_without_an_adapter_is_refused():
    with pytest.raises(UsageError, match="0 IP-Adapters"):
        IPAdapterGenerator(
            small_pipe(),
            null_text_tokens=draw(TEXTS, WIDTH),
            null_image_tokens=torch.zeros(PLAIN),
        )


def test_files_of_torch_are_read_too(tmp_path):
    flat = adapter("plain")
    nested = {
        group: {n.removeprefix(f"{group}."): t for n, t in flat.items() if n.startswith(group)}
        for group in ("image_proj", "ip_adapter")
    }
    torch.save(nested, tmp_path / "adapter.bin")
    state = adapter_state(tmp_path / "adapter.bin")
    assert {g: set(names) for g, names in state.items()} == {g: set(n) for g, n in nested.items()}
