"""Seeds follow from identity, by the stated hash, and nothing global is touched."""

import hashlib

import numpy as np
import pytest
import torch

from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed, numpy_generator, seeded_layers, torch_generator


def test_seed_is_the_first_63_bits_of_the_stated_hash():
    digest = hashlib.sha256(b'[7,"sub-01","cup",2,"bridge"]').hexdigest()
    expected = int(bin(int(digest, 16))[2:].zfill(256)[:63], 2)
    assert item_seed(7, subject="sub-01", stimulus="cup", sample=2, stage="bridge") == expected


def test_each_part_of_the_identity_changes_the_seed():
    base = {"subject": "1", "stimulus": "cup", "sample": 0, "stage": "a"}
    seeds = [item_seed(0, **base), item_seed(1, **base)]
    for change in ({"subject": "2"}, {"stimulus": "mug"}, {"sample": 1}, {"stage": "b"}):
        seeds.append(item_seed(0, **(base | change)))
    # Parts cannot run into each other: "1" + "1cup" is not "11" + "cup".
    seeds.append(item_seed(0, **(base | {"subject": "11", "stimulus": "up"})))
    seeds.append(item_seed(0, **(base | {"subject": "1", "stimulus": "1up"})))
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_numbers_and_text_name_the_same_subject():
    assert item_seed(0, subject=1, stimulus=5) == item_seed(0, subject="1", stimulus="5")


def test_generators_repeat_and_leave_the_global_state_alone():
    before_numpy = np.random.get_state()[1].copy()  # noqa: NPY002
    before_torch = torch.get_rng_state()
    seed = item_seed(3, subject="a", stimulus="b")
    first, second = numpy_generator(seed).normal(size=4), numpy_generator(seed).normal(size=4)
    np.testing.assert_array_equal(first, second)
    draws = [torch.randn(4, generator=torch_generator(seed)) for _ in range(2)]
    assert torch.equal(*draws)
    np.testing.assert_array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before_torch, torch.get_rng_state())


def test_first_weights_follow_from_the_seed_and_the_global_state_is_put_back():
    before = torch.get_rng_state()

    def weights(seed: int) -> torch.Tensor:
        with seeded_layers(seed):
            return torch.nn.Linear(3, 2).weight

    assert torch.equal(weights(4), weights(4))
    assert not torch.equal(weights(4), weights(5))
    with pytest.raises(RuntimeError), seeded_layers(4):
        torch.randn(3).reshape(2)  # what goes wrong in the block leaves nothing behind, too
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "7", True, None])
@pytest.mark.parametrize("make", [numpy_generator, torch_generator])
def test_seeds_out_of_range_are_refused(make, seed):
    with pytest.raises(UsageError, match="whole number"):
        make(seed)


def test_the_largest_seed_is_accepted():
    assert torch_generator(2**63 - 1).initial_seed() == 2**63 - 1
    assert numpy_generator(2**63 - 1).integers(10) in range(10)
