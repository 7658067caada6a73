"""CLIP's tokens: transformers' real classes at tiny sizes, against the published formulas."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.features.clip_tokens import TEXT_SHAPE, VISION_SHAPE, CLIPPixels, CLIPTokens

WORDS = ["a", "red", "chair", "on", "grass", "dog"]
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TOKENS, SIDE, WIDTH = 12, 28, 8


def vocabulary():
    letters = sorted({letter for word in WORDS for letter in word})
    units = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in units:
                units.append(parts[0])
    units += ["<|startoftext|>", "<|endoftext|>"]
    return {unit: k for k, unit in enumerate(units)}, list(dict.fromkeys(merges))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny CLIP in its own layout, and the same one in that of Versatile Diffusion."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    root = tmp_path_factory.mktemp("clip")
    vocab, merges = vocabulary()
    end = vocab["<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)
    config = CLIPConfig(
        text_config={
            **TEXT,
            "num_attention_heads": 2,
            "vocab_size": len(vocab),
            "max_position_embeddings": TOKENS,
            "eos_token_id": end,
            "bos_token_id": end - 1,
            "pad_token_id": end,
            "projection_dim": WIDTH,
        },
        vision_config={
            **TEXT,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 7,
            "projection_dim": WIDTH,
        },
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    processor = {
        "crop_size": SIDE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(CLIPPixels().mean),
        "image_std": list(CLIPPixels().sd),
        "resample": 3,
        "size": SIDE,
    }
    own, parts = root / "own", root / "parts"
    model.save_pretrained(own)
    tokenizer.save_pretrained(own)
    (own / "preprocessor_config.json").write_text(json.dumps(processor))
    CLIPTextModelWithProjection.from_pretrained(own).save_pretrained(parts / "text_encoder")
    CLIPVisionModelWithProjection.from_pretrained(own).save_pretrained(parts / "image_encoder")
    tokenizer.save_pretrained(parts / "tokenizer")
    (parts / "image_feature_extractor").mkdir()
    shutil.copy(own / "preprocessor_config.json", parts / "image_feature_extractor")
    return own, parts, model, tokenizer


@pytest.fixture(scope="module")
def clip(folders):
    return CLIPTokens.from_folder(folders[0], any_size=True)


def pictures(n=2, shape=(60, 60), seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (n, *shape, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in values]


def test_the_published_shapes_are_those_of_vit_l_14():
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        projection_dim=768,
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    assert sum(p.numel() for p in model.parameters()) == 427_616_513  # as released
    clip = CLIPTokens(
        (model.text_model, model.text_projection),
        (model.vision_model, model.visual_projection),
        None,
        pixels=CLIPPixels(),
        name="ViT-L/14",
        device="meta",
    )
    assert clip.text_shape == TEXT_SHAPE == (77, 768)
    assert clip.vision_shape == VISION_SHAPE == (257, 768)


@torch.no_grad()
def test_text_tokens_follow_the_published_formula(folders, clip):
    _, _, model, tokenizer = folders
    captions = [["a red chair", "a dog"], ["grass"], ["a red chair on grass"]]
    expected = []
    for texts in captions:
        of_picture = []
        for text in texts:
            ids = tokenizer(
                text, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
            )["input_ids"]
            hidden = model.text_model(input_ids=ids).last_hidden_state[0]
            end = int((ids[0] == tokenizer.eos_token_id).int().argmax())
            projected = hidden @ model.text_projection.weight.T
            of_picture.append(projected / projected[end].norm())
        expected.append(torch.stack(of_picture).mean(0).numpy())
    got = clip.text(captions, batch=2)
    assert got.dtype == np.float32
    assert got.shape == (3, TOKENS, WIDTH)
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-6)
    whole = clip.text([["a red chair"]])[0]
    end = 4  # start, a, red, chair, end
    assert np.linalg.norm(whole[end]) == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_vision_tokens_follow_the_published_formula(folders, clip):
    _, _, model, _ = folders
    images = pictures()
    got = clip.vision(images, batch=1)
    assert got.shape == (2, 17, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(got[:, 0], axis=-1), 1, atol=1e-6)
    x = torch.from_numpy(np.stack([clip.pixels(image) for image in images]))
    hidden = model.vision_model(pixel_values=x).last_hidden_state
    norm = model.vision_model.post_layernorm
    hidden = torch.nn.functional.layer_norm(hidden, (16,), norm.weight, norm.bias, norm.eps)
    projected = (hidden @ model.visual_projection.weight.T).numpy()
    expected = projected / np.linalg.norm(projected[:, :1], axis=-1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_both_layouts_give_the_same_tokens(folders, clip):
    other = CLIPTokens.from_folder(folders[1], any_size=True)
    captions = [["a red chair", "a dog"]]
    np.testing.assert_array_equal(other.text(captions), clip.text(captions))
    np.testing.assert_array_equal(other.vision(pictures()), clip.vision(pictures()))


@pytest.mark.parametrize("shape", [(425, 425), (300, 411), (224, 224), (97, 64)])
def test_pixels_are_those_of_transformers_for_uint8(shape):
    """The reference is transformers' own processor on PIL pictures, without the detour."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = pictures(1, shape)[0]
    expected = CLIPImageProcessorPil()(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(CLIPPixels(detour=None)(image), expected, atol=1e-6)
    detour = image.resize((512, 512), Image.Resampling.BILINEAR)
    expected = CLIPImageProcessorPil()(detour, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(CLIPPixels()(image), expected, atol=1e-6)


def test_the_trap_that_is_guarded_against():
    """transformers takes floats from 0 to 1 for 0 to 255: a mean near -1.67, not 0.18."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = pictures(1, (224, 224))[0]
    floats = np.asarray(image, np.float32) / 255
    processor = CLIPImageProcessorPil()
    twice = processor(floats, return_tensors="np")["pixel_values"]
    once = processor(floats, do_rescale=False, return_tensors="np")["pixel_values"]
    ours = CLIPPixels(detour=None)(image)
    assert twice.mean() == pytest.approx(-1.67, abs=0.05)
    assert abs(ours - twice[0]).max() > 1
    np.testing.assert_allclose(ours, once[0], atol=1e-6)


def test_the_detour_is_a_switch(folders):
    straight = CLIPTokens.from_folder(folders[0], detour=None, any_size=True)
    detour = CLIPTokens.from_folder(folders[0], any_size=True)
    assert straight.pixels.detour is None
    assert detour.pixels.detour == 512
    assert abs(straight.vision(pictures()) - detour.vision(pictures())).max() > 1e-3


def test_an_items_tokens_do_not_depend_on_its_batch(clip):
    captions = [["a red chair", "dog"], ["grass"], ["a dog on grass", "a", "red"]]
    whole = clip.text(captions)
    for k in range(3):
        np.testing.assert_allclose(clip.text(captions[k : k + 1])[0], whole[k], atol=1e-6)
    both = clip.text([["dog"], ["grass"]])
    np.testing.assert_allclose(clip.text([["dog", "grass"]])[0], both.mean(0), atol=1e-6)
    images = pictures(3)
    whole = clip.vision(images)
    np.testing.assert_allclose(clip.vision(images[2:])[0], whole[2], atol=1e-5)
    array = np.stack([np.asarray(image) for image in images])
    np.testing.assert_array_equal(clip.vision(array), whole)


def test_null_tokens(clip):
    text, vision = clip.null_text(), clip.null_vision()
    assert text.shape == clip.text_shape == (TOKENS, WIDTH)
    assert vision.shape == clip.vision_shape == (17, WIDTH)
    assert np.linalg.norm(text[1]) == pytest.approx(1, abs=1e-6)  # end follows start at once
    assert np.linalg.norm(vision[0]) == pytest.approx(1, abs=1e-6)
    darker, lighter = (
        clip.vision([Image.new("RGB", (SIDE, SIDE), (v, v, v))])[0] for v in (127, 128)
    )
    np.testing.assert_allclose(vision, (darker + lighter) / 2, atol=1e-3)  # 0.5 is 127.5


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((1, 28, 28, 3), np.float32), "float32; give uint8"),
        ([np.zeros((28, 28, 3), np.float32)], "picture 0 is no PIL picture but float32"),
        (np.zeros((28, 28, 3), np.uint8), r"shape \(28, 28, 3\)"),
        ([Image.new("L", (28, 28))], r"mode L; use .convert\('RGB'\)"),
        ([torch.zeros(3, 28, 28)], r"but torch.float32"),
    ],
)
def test_pictures_in_floats_and_other_strangers_are_refused(clip, images, says):
    with pytest.raises(UsageError, match=says):
        clip.vision(images)


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        (["a dog"], "plain strings"),
        ("a dog", "plain strings"),
        ([["a dog"], []], "picture 1 has no caption"),
        ([["a dog", " "]], "a caption of picture 0 is empty"),
    ],
)
def test_captions_that_are_none_are_refused(clip, captions, says):
    with pytest.raises(UsageError, match=says):
        clip.text(captions)


def test_no_captions_and_no_pictures_give_empty_arrays(clip):
    assert clip.text([]).shape == (0, TOKENS, WIDTH)
    assert clip.vision([]).shape == (0, 17, WIDTH)


def test_another_clip_is_refused_unless_allowed(folders):
    with pytest.raises(DataError, match=r"12 x 8 for text and 17 x 8 for pictures, not 77 x 768"):
        CLIPTokens.from_folder(folders[0])


@pytest.fixture
def copied(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "own")
    return tmp_path / "own"


def test_missing_parts_get_a_sentence(copied, tmp_path):
    with pytest.raises(MissingDataError, match="is not a folder"):
        CLIPTokens.from_folder(tmp_path / "none", any_size=True)
    (copied / "preprocessor_config.json").unlink()
    with pytest.raises(MissingDataError, match=r"preprocessor_config\.json is missing"):
        CLIPTokens.from_folder(copied, any_size=True)
    for path in copied.glob("*token*"):
        path.unlink()
    with pytest.raises(MissingDataError, match=r"no tokenizer\.json and no vocab\.json"):
        CLIPTokens.from_folder(copied, any_size=True)
    (copied / "config.json").unlink()
    with pytest.raises(MissingDataError, match=r"no config\.json; expected a CLIPModel"):
        CLIPTokens.from_folder(copied, any_size=True)


def test_weights_that_are_not_there_are_not_made_up(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights of CLIPModel .*visual_projection"):
        CLIPTokens.from_folder(copied, any_size=True)
    (copied / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="no complete CLIPModel"):
        CLIPTokens.from_folder(copied, any_size=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"crop_size": {"height": 14, "width": 14}},
            "of 14 pixels and its network takes 28",
        ),
        ({"resample": 2}, "resampling 2"),
        ({"do_normalize": False}, "do_normalize to False"),
        ({"image_std": [0.2, 0.0, 0.2]}, "not CLIP's"),
    ],
)
def test_processors_that_do_not_fit_are_refused(copied, change, says):
    path = copied / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=says):
        CLIPTokens.from_folder(copied, any_size=True)
