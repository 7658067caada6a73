"""The contract checks: ours pass them, and each broken promise is found."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

import neurodiff as nd
from neurodiff.analysis.attribution_decoders import RidgeDecoder
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.recording import Recording
from neurodiff.testing import (
    ContractError,
    check_bridge,
    check_dataset,
    check_decoder,
    check_tracker,
)


def small(seed=0, **changes):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"stimulus": ["cup", "lamp", "sofa"], "split": ["train", "train", "test"]})
    betas = rng.standard_normal((3, 6)).astype(np.float32)
    return Recording.from_arrays(betas, table.assign(**changes), {"V1": np.arange(6) < 2})


class Names:
    """Stimuli, as far as a contract reads them."""

    def __init__(self, *ids):
        self.ids = list(ids)


ALL = Names("cup", "lamp", "sofa")


def test_readers_of_ours_keep_the_contract():
    check_dataset(lambda: (small(), ALL))
    check_dataset(lambda: nd.open_dataset("simulated_tiny"))


def test_each_broken_promise_of_a_reader_is_found():
    seeds = iter(range(9))
    with pytest.raises(ContractError, match="two fingerprints"):
        check_dataset(lambda: (small(next(seeds)), ALL))
    with pytest.raises(ContractError, match="not among the stimuli"):
        check_dataset(lambda: (small(), Names("cup", "lamp")))
    with pytest.raises(ContractError, match="in several splits"):
        check_dataset(lambda: (small(stimulus=["cup", "lamp", "cup"]), ALL))
    with pytest.raises(ContractError, match=r"give a neurodiff\.Recording"):
        check_dataset(lambda: (np.zeros(3), ALL))

    class Shuffled:
        shape, ndim = (3, 6), 2
        values = np.arange(18, dtype=np.float32).reshape(3, 6)

        def __len__(self):
            return 3

        def __getitem__(self, which):
            return self.values[np.sort(which) if isinstance(which, np.ndarray) else which]

    broken = Recording(Shuffled(), small().trials, {}, None)
    with pytest.raises(ContractError, match="in another order"):
        check_dataset(lambda: (broken, ALL))


def test_our_ridge_and_scikit_learns_keep_the_contract():
    check_bridge(MultiTargetRidge)
    check_bridge(Ridge)


class Careless(MultiTargetRidge):
    """Standardises by whatever is decoded together."""

    def predict(self, X):
        X = np.asarray(X)
        if len(X) > 1:
            X = X - X.mean(axis=0)
        return super().predict(X)


class Silent(MultiTargetRidge):
    def predict(self, X):
        return super().predict(np.nan_to_num(X))


class Constant(MultiTargetRidge):
    def predict(self, X):
        return np.zeros((len(X), 5))


def test_each_broken_promise_of_a_bridge_is_found():
    with pytest.raises(ContractError, match="alone and among others"):
        check_bridge(Careless)
    with pytest.raises(ContractError, match="NaN in what is predicted from: is taken"):
        check_bridge(Silent)
    with pytest.raises(ContractError, match="explains nothing"):
        check_bridge(Constant)


def test_decoders_keep_it_or_are_found_out():
    recording = small()
    features = {name: np.arange(4.0) + k for k, name in enumerate(("cup", "lamp", "sofa"))}
    target = np.stack([features[s] for s in recording.trials["stimulus"]])
    model = Ridge().fit(recording.array(), target)
    decoder = RidgeDecoder(model, features)
    check_decoder(decoder, recording)

    class Wrong(RidgeDecoder):
        def decode(self, data, trials):
            return {self.stages[0]: super().decode(data, trials)[self.stages[0]] + len(data)}

    with pytest.raises(ContractError, match="a trial alone is another"):
        check_decoder(Wrong(model, features), recording)

    class Bent(RidgeDecoder):
        def decode(self, data, trials):
            return {self.stages[0]: np.tanh(super().decode(data, trials)[self.stages[0]])}

    with pytest.raises(ContractError, match="linear form is not decode"):
        check_decoder(Bent(model, features), recording)


def test_a_tracker_needs_three_methods():
    class Two:
        def begin(self, stage, settings): ...

        def log(self, stage, values, step): ...

    with pytest.raises(ContractError, match="no method close"):
        check_tracker(Two())
