"""Tokens of the demo's networks, with random weights: order, norms, padding, fitted axes."""

import numpy as np
import pytest
import torch
from PIL import Image

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.features.efficientnet_lite import EfficientNetLite0
from neurodiff.features.small_tokens import EfficientNetTokens, SentenceTokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "chair", "lamp", "shell"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    place = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=12,
            )
        ).save_pretrained(place)
    BertTokenizerFast(vocab={word: k for k, word in enumerate(WORDS)}).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def text(folder):
    return SentenceTokens.from_folder(folder, tokens=6)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = EfficientNetLite0()
    return made.requires_grad_(False)


def pictures(n=3, side=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vision(network):
    return EfficientNetTokens(network, grid=2, width=4).fit(pictures(4))


def test_token_0_is_the_sentences_vector_and_padding_is_zero(text, folder):
    (tokens,) = text.text([["a red chair"]])  # start, three words, end
    assert tokens.shape == text.text_shape == (6, 16)
    np.testing.assert_allclose(tokens[0], text(["a red chair"])[0], atol=1e-6)
    assert np.linalg.norm(tokens[0]) == pytest.approx(1, abs=1e-6)
    assert (abs(tokens[1:5]).max(axis=1) > 0.01).all()
    assert not tokens[5].any()


@torch.no_grad()
def test_other_tokens_are_hidden_states_over_the_same_norm(text):
    from transformers import BertModel

    model, tokenizer = text._model, text._tokenizer
    assert isinstance(model, BertModel)
    hidden = model(**tokenizer(["a lamp"], return_tensors="pt"))[0][0]
    (tokens,) = text.text([["a lamp"]])
    expected = hidden[1:] / hidden.mean(0).norm()
    np.testing.assert_allclose(tokens[1:4], expected.numpy(), atol=1e-5)


def test_captions_are_averaged_and_alone_in_their_batch(text):
    captions = [["a red chair", "a lamp"], ["shell"], ["a a a red red red chair"]]
    whole = text.text(captions)
    one, two = (text.text([[caption]])[0] for caption in captions[0])
    np.testing.assert_allclose(whole[0], (one + two) / 2, atol=1e-6)
    np.testing.assert_allclose(text.text(captions[1:2])[0], whole[1], atol=1e-6)
    cut = text._tokenizer(captions[2][0], truncation=True, max_length=6)["input_ids"]
    assert len(cut) == 6
    assert abs(whole[2][5]).max() > 0.01
    assert text.text([]).shape == (0, 6, 16)


def test_the_null_caption_has_a_start_an_end_and_zeros(text):
    null = text.null_text()
    assert null.shape == (6, 16)
    assert np.linalg.norm(null[0]) == pytest.approx(1, abs=1e-6)
    assert null[1].any()
    assert not null[2:].any()


def test_wrong_captions_and_lengths(text, folder):
    with pytest.raises(UsageError, match="plain strings"):
        text.text(["a lamp"])
    with pytest.raises(UsageError, match="a caption of picture 0 is empty"):
        text.text([[""]])
    for tokens in (2, 13):
        with pytest.raises(UsageError, match="give from 3 to 12"):
            SentenceTokens.from_folder(folder, tokens=tokens)
    with pytest.raises(MissingDataError, match="no_such_encoder"):
        SentenceTokens.from_package("no_such_encoder")


def test_vision_tokens_are_means_over_the_cells(network, vision):
    images = pictures(2)
    raw = vision._raw(images, 8)
    assert vision.vision_shape == (5, 4)
    assert raw.shape == (2, 5, 1280)
    resized = Image.fromarray(images[1]).resize((224, 224), Image.BICUBIC)
    x = (torch.tensor(np.array(resized)).float().permute(2, 0, 1)[None] - 127) / 128
    features = network.features(x)[0].numpy()  # (1280, 7, 7)
    np.testing.assert_allclose(raw[1, 0], features.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(raw[1, 2], features[:, :4, 3:].mean(axis=(1, 2)), atol=1e-5)
    logits = network(x)
    torch.testing.assert_close(logits[0], network._fc(torch.tensor(raw[1, 0])), atol=1e-4, rtol=0)


def test_axes_are_the_principal_ones_and_token_0_has_norm_1(vision):
    raw = vision._raw(pictures(4), 8).reshape(-1, 1280).astype(np.float64)
    arrays = vision.arrays()
    np.testing.assert_allclose(arrays["axes"] @ arrays["axes"].T, np.eye(4), atol=1e-5)
    kept = ((raw - raw.mean(0)) @ arrays["axes"].T.astype(np.float64)).var(axis=0)
    singular = np.linalg.svd(raw - raw.mean(0), compute_uv=False) ** 2 / len(raw)
    np.testing.assert_allclose(kept, singular[:4], rtol=1e-4)
    tokens = vision.vision(pictures(3, seed=1))
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(tokens[:, 0], axis=-1), 1, atol=1e-6)


def test_an_items_tokens_do_not_depend_on_its_batch_or_type(vision):
    images = pictures(3, seed=2)
    whole = vision.vision(images, batch=2)
    np.testing.assert_allclose(vision.vision(images[2:])[0], whole[2], atol=1e-4)
    as_pil = vision.vision([Image.fromarray(one) for one in images], batch=2)
    np.testing.assert_array_equal(as_pil, whole)


def test_fitted_arrays_move_to_another_object(network, vision):
    other = EfficientNetTokens(network, grid=2, width=4).with_arrays(vision.arrays())
    np.testing.assert_array_equal(other.null_vision(), vision.null_vision())
    assert vision.null_vision().shape == (5, 4)
    with pytest.raises(DataError, match=r"axes .* \(4, 1280\), not \(5, 1280\)"):
        EfficientNetTokens(network, width=5).with_arrays(vision.arrays())
    with pytest.raises(DataError, match=r"mean .* None"):
        EfficientNetTokens(network).with_arrays({})


def test_wrong_pictures_and_settings(network, vision):
    with pytest.raises(UsageError, match="no axes yet"):
        EfficientNetTokens(network).vision(pictures(1))
    with pytest.raises(UsageError, match="1 pictures make 10 tokens, too few for 128 axes"):
        EfficientNetTokens(network).fit(pictures(1))
    with pytest.raises(DataError, match="vary along fewer than 30 axes"):
        EfficientNetTokens(network, width=30).fit(pictures(1).repeat(4, axis=0))
    with pytest.raises(UsageError, match="float64; give uint8"):
        vision.vision(pictures(1) / 255)
    for wrong in ({"grid": 8}, {"width": 0}):
        with pytest.raises(UsageError, match="grid from 1 to 7"):
            EfficientNetTokens(network, **wrong)


def test_weights_come_from_a_file_or_a_package(network, tmp_path, monkeypatch):
    state = {n: t for n, t in network.state_dict().items() if "num_batches" not in n}
    place = tmp_path / "some_weights_package" / "models"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("raise SystemExit('this package must not be run')")
    torch.save(state, place / "efficientnet-lite0-0.pth")
    monkeypatch.syspath_prepend(tmp_path)
    found = EfficientNetTokens.from_package("some_weights_package", grid=1, width=2)
    np.testing.assert_allclose(
        found.fit(pictures(4))._raw(pictures(1), 1),
        EfficientNetTokens(network, grid=1)._raw(pictures(1), 1),
        atol=1e-6,
    )
    del state["_conv_head.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"lacks 1 tensors .*_conv_head\.weight"):
        EfficientNetTokens.from_file(tmp_path / "other.pth")
    with pytest.raises(MissingDataError, match="no_such_package"):
        EfficientNetTokens.from_package("no_such_package")
    with pytest.raises(MissingDataError):
        EfficientNetTokens.from_file(tmp_path / "none.pth")
