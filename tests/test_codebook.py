"""Codebook: nearest codes, effective size, re-seeding of dead codes."""

import pytest
import torch

from neurodiff.models.codebook import code_usage, nearest_codes, perplexity, reseed_dead_codes


def test_nearest_codes_of_shifted_codes_are_themselves():
    codebook = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 100
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    z = codebook[order].view(5, 10, 4) + 1e-3
    assert nearest_codes(z, codebook).flatten().tolist() == order.tolist()


def test_nearest_code_survives_large_offsets_in_float32():
    # |z|^2 is 4e8: a distance by matrix products would have an error of ~32, the codes differ by 1
    codebook = torch.tensor([[1e4, 1e4], [1e4, 1e4 + 1], [1e4, 1e4 + 2]])
    z = torch.tensor([[[1e4, 1e4 + 0.9], [1e4, 1e4 + 1.8]]])
    assert nearest_codes(z, codebook).tolist() == [[1, 2]]


def test_first_of_equal_codes_wins():
    assert nearest_codes(torch.zeros(1, 1, 2), torch.ones(3, 2)).tolist() == [[0]]


def test_perplexity_counts_codes_in_use():
    usage = code_usage(torch.tensor([[0, 1, 1], [3, 3, 0]]), 8)
    assert usage.tolist() == [2, 2, 0, 2, 0, 0, 0, 0]
    assert perplexity(usage) == pytest.approx(3.0)
    assert perplexity(torch.tensor([7, 0])) == 1.0
    with pytest.raises(ValueError, match="all zero"):
        perplexity(torch.zeros(4, dtype=torch.long))


def test_dead_codes_move_onto_candidates_and_the_living_stay():
    embedding = torch.nn.Parameter(torch.zeros(6, 2))
    usage = torch.tensor([5, 0, 1, 0, 9, 0])
    candidates = torch.arange(1, 9, dtype=torch.float32).view(1, 4, 2)
    moved = reseed_dead_codes(embedding, usage, candidates, torch.Generator().manual_seed(0))
    assert moved.tolist() == [1, 3, 5]
    rows = [tuple(row) for row in embedding.detach().tolist()]
    allowed = {tuple(row) for row in candidates[0].tolist()}
    assert {rows[i] for i in (1, 3, 5)} <= allowed
    assert len({rows[i] for i in (1, 3, 5)}) == 3  # without repetition
    assert rows[0] == rows[2] == rows[4] == (0.0, 0.0)
    again = torch.nn.Parameter(torch.zeros(6, 2))
    reseed_dead_codes(again, usage, candidates, torch.Generator().manual_seed(0))
    assert torch.equal(again, embedding)
    assert reseed_dead_codes(again, usage, candidates, torch.Generator(), minimum=6).tolist() == [
        0,
        1,
        2,
        3,
        5,
    ]


def test_few_candidates_are_used_evenly_and_none_dead_changes_nothing():
    embedding, generator = torch.zeros(7, 1), torch.Generator().manual_seed(2)
    reseed_dead_codes(embedding, torch.zeros(7, dtype=torch.long), torch.tensor([[1.0], [2.0]]),
                      generator)  # fmt: skip
    ones, twos = int((embedding == 1).sum()), int((embedding == 2).sum())
    assert sorted((ones, twos)) == [3, 4]
    before = embedding.clone()
    alive = torch.ones(7, dtype=torch.long)
    assert reseed_dead_codes(embedding, alive, torch.zeros(2, 1), generator).tolist() == []
    assert torch.equal(embedding, before)


def test_errors_say_what_is_wrong():
    usage, generator = torch.zeros(3, dtype=torch.long), torch.Generator()
    with pytest.raises(ValueError, match="candidates of length 3"):
        reseed_dead_codes(torch.zeros(3, 2), usage, torch.zeros(4, 3), generator)
    with pytest.raises(ValueError, match="usage of 3 codes"):
        reseed_dead_codes(torch.zeros(4, 2), usage, torch.zeros(4, 2), generator)
    with pytest.raises(ValueError, match="empty or not finite"):
        reseed_dead_codes(torch.zeros(3, 2), usage, torch.full((4, 2), torch.nan), generator)
