"""One rule says which stimuli may change places, whatever method asks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.attribution_ablation import roi_only
from neurodiff.analysis.attribution_conditions import _with_partners
from neurodiff.analysis.attribution_pairs import others, shown_to
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.analysis.attribution_statistics import exchange_blocks as of_attribution
from neurodiff.analysis.encoding_data import exchange_blocks as of_encoding
from neurodiff.analysis.encoding_data import responses_of
from neurodiff.analysis.encoding_maps import encoding_maps
from neurodiff.analysis.exchange import exchange_of, exchange_words
from neurodiff.core.errors import UsageError
from neurodiff.core.recording import Recording


def designs() -> dict[str, pd.DataFrame]:
    """Trials tables of designs on which two rules could differ."""
    names = [f"s{k:02d}" for k in range(20)]
    once = pd.DataFrame({"stimulus": names, "session": 1})
    twice = pd.concat([once, once], ignore_index=True)
    return {
        "one run": once.assign(run=1),
        "two runs": once.assign(run=np.arange(20) // 10),
        "pairs": once.assign(run=np.arange(20) // 2),
        "one stray": once.assign(run=np.where(np.arange(20) < 19, np.arange(20) // 10, 9)),
        "repeats in the same runs": twice.assign(run=np.arange(40) // 10),
        "repeats all over": twice.assign(
            run=np.r_[np.arange(20) // 5, 4 + np.random.default_rng(0).permutation(20) // 5]
        ),
        "every run": twice.assign(run=np.arange(40) // 20),
    }


BLOCKS = {
    "one run": None,
    "two runs": [10] * 20,
    "pairs": None,  # a pair keeps its places every other time
    "one stray": [10] * 10 + [9] * 9 + [1],
    "repeats in the same runs": [10] * 20,
    "repeats all over": None,
    "every run": None,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_attribution_and_encoding_name_the_same_blocks(name):
    table = designs()[name].assign(subject="a")
    ids, of = np.unique(table["stimulus"].to_numpy(), return_inverse=True)
    one = of_attribution(table, ids, of)
    responses = responses_of(Recording.from_arrays(np.ones((len(table), 1)), table), "a")
    other, words = of_encoding(responses, "auto")
    assert responses.ids == list(ids)
    if BLOCKS[name] is None:
        assert one is None
        assert len(set(other)) == 1
    else:
        np.testing.assert_array_equal(one, other)
        assert [int((one == block).sum()) for block in one] == BLOCKS[name]
        assert words == exchange_words(one)


class Echo:
    """Says the responses themselves."""

    name, stages = "echo", ("features",)

    def decode(self, data, trials):
        return {"features": np.asarray(data)}

    def truth(self, ids):
        return {"features": np.stack([truth_of(i) for i in ids])}


def truth_of(name: str) -> np.ndarray:
    return np.random.default_rng(int(name[1:])).standard_normal(6)


def test_the_notes_of_a_page_name_one_null():
    table = designs()["two runs"].assign(subject="a")
    decoder = Echo()
    truth = decoder.truth(list(table["stimulus"]))
    data = truth["features"] + 0.1 * np.random.default_rng(9).standard_normal((20, 6))
    rois = {"half": np.arange(6) < 3, "rest": np.arange(6) >= 3}
    recording = Recording.from_arrays(data.astype(np.float32), table, rois)
    problem = Problem(decoder=decoder, test=recording, truth=truth, rois=rois, draws=19)
    words = "shown in the same runs equally often (2 blocks of 20 stimuli; 0 have no partner)"
    assert any(words in note for note in roi_only(problem, matched=0).notes)
    apart = replace(problem, train=recording)
    assert any(words in note for note in encoding_maps(apart).notes)


def test_truths_of_others_are_of_the_block_and_of_oneself_where_alone():
    table = designs()["one stray"].assign(subject="a")
    decoder = Echo()
    truth = decoder.truth(list(table["stimulus"]))
    recording = Recording.from_arrays(truth["features"], table, {"all": np.ones(6, bool)})
    problem = Problem(decoder=decoder, test=recording, truth=truth, rois=recording.rois, draws=9)
    shown = shown_to(problem, ("features",), "a")
    found = others(shown, 12, 0)
    assert found.shape == (20, 8)  # of a block of nine
    np.testing.assert_array_equal(shown.blocks[found], np.repeat(shown.blocks[:, None], 8, 1))
    assert (found[19] == 19).all()
    assert (found[:19] != np.arange(19)[:, None]).all()


def test_those_without_a_partner_are_partners_of_each_other():
    assert list(_with_partners(np.array(["a", "a", "b", "c"]))) == ["a", "a", "alone", "alone"]
    assert list(_with_partners(np.array(["a", "a", "b"]))) == ["a", "a", "a"]


def test_blocks_stay_in_folds_and_wrong_names_are_told():
    folds = np.arange(20) % 2
    blocks, words = exchange_of(["1"] * 10 + ["2"] * 10, folds=folds)
    assert len(set(blocks)) == 4
    assert "and of the same fold (4 blocks of 20" in words
    assert exchange_of(["1"] * 20, "all").blocks is None
    assert list(exchange_of(list("ab") * 10, folds=folds, exchange="all").blocks) == list(folds)
    with pytest.raises(UsageError, match="no two of the 3 stimuli"):
        exchange_of(["1", "2", "3"], "runs")
    with pytest.raises(UsageError, match="exchange is 'weekday'"):
        exchange_of(["1", "2", "3"], "weekday", table=pd.DataFrame({"kind": [1, 2, 3]}))
