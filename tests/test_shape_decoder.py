"""Autoregressive shape decoder: golden numbers, cache against full pass, sampling, adapters."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.models.decoder_cost import decoding_flops, generate_uncached
from neurodiff.models.shape_decoder import (
    ShapeDecoder,
    ShapeDecoderSize,
    _draw_uniforms,
    draw_codes,
)

_SPEC = importlib.util.spec_from_file_location(
    "golden_recipe", Path(__file__).parent / "golden" / "recipe.py"
)
recipe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recipe)

CASE = recipe.load("mind3d_ar_decoder")["mind3d.ar_decoder"]
GOLDEN = CASE["outputs"]
SMALL = ShapeDecoderSize(
    vocab=20, width=16, heads=2, layers=3, positions=14, condition=5, sequence=12, adapter_every=2
)


def golden_decoder():
    size = ShapeDecoderSize(vocab=128, width=64, heads=4, layers=5, condition=64)
    return ShapeDecoder(size)


@pytest.fixture(scope="module")
def golden():
    decoder = recipe.fill(golden_decoder(), CASE["recipe"])
    condition = recipe.make(CASE["inputs"]["clip_embedding"])
    i = torch.arange(40)
    ids = torch.stack([(7 * i * i + 3 * i + 11 * r + 2) % 128 for r in range(2)])
    return decoder, condition, ids


@pytest.fixture
def small():
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    decoder = ShapeDecoder(SMALL).double().eval()
    with torch.no_grad():  # far from uniform, adapters at work
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    condition = torch.randn(4, 5, dtype=torch.float64)
    torch.set_rng_state(torch_state)
    return decoder, condition


def test_names_and_shapes_are_the_published_ones():
    decoder = golden_decoder()
    assert recipe.manifest(decoder) == CASE["manifest"]["params"]
    assert sum(p.numel() for p in decoder.parameters()) == CASE["manifest"]["n_params"]
    assert "z_value_dec.weight" in decoder.state_dict()


def test_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        decoder = ShapeDecoder()
    assert sum(p.numel() for p in decoder.parameters()) == 3_702_296_576
    assert sum(p.numel() for p in decoder.adapter_parameters()) == 37_779_456


@torch.no_grad()
def test_teacher_forced_logits_equal_the_published_code(golden):
    decoder, condition, ids = golden
    logits = decoder(ids, condition)
    recipe.check(logits, GOLDEN["teacher_forced_logits"])
    recipe.check(decoder(ids, condition, use_adapters=False), GOLDEN["logits_if_adapters_skipped"])
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten()).item()
    assert loss == pytest.approx(GOLDEN["ce_loss"], rel=1e-9)
    best = logits[:, 5].topk(10)
    assert best.indices.sort().values.tolist() == GOLDEN["topk10_ids_at_pos5"]
    largest = best.values.softmax(-1)[:, 0]
    assert largest.tolist() == pytest.approx(GOLDEN["topk10_probs_max"], rel=1e-9)


def test_float32_stays_within_rounding_of_the_published_code(golden):
    _, condition, ids = golden
    decoder = recipe.fill(golden_decoder(), CASE["recipe"]).float()
    with torch.no_grad():
        logits = decoder(ids, condition.float())
    recipe.check(logits, GOLDEN["teacher_forced_logits"], tol=1e-5)
    ids32 = decoder.generate(condition.float(), length=32, greedy=True)
    assert ids32.tolist() == GOLDEN["greedy_ids_32"]


def test_greedy_codes_equal_the_published_code(golden):
    decoder, condition, _ = golden
    ids = decoder.generate(condition, length=32, greedy=True)
    assert ids.tolist() == GOLDEN["greedy_ids_32"]
    without = decoder.generate(condition, length=32, greedy=True, use_adapters=False)
    assert without.tolist() != ids.tolist()


@torch.no_grad()
def test_cached_draws_equal_draws_from_the_full_pass(small):
    decoder, condition = small
    uniforms = torch.from_numpy(np.random.default_rng(1).random((4, 12)))
    drawn = decoder.generate(condition, temperature=2.0, top_k=9, uniforms=uniforms)
    ids = torch.zeros(4, 12, dtype=torch.long)
    for step in range(12):
        logits = decoder(ids, condition)[:, step]
        ids[:, step] = draw_codes(logits, uniforms[:, step], 2.0, 9)
    assert drawn.tolist() == ids.tolist()
    assert len(drawn.unique()) > 5


def test_logits_depend_on_earlier_codes_and_the_condition_only(small):
    decoder, condition = small
    ids = torch.arange(12).repeat(4, 1)
    changed = ids.clone()
    changed[:, 6] = 19
    with torch.no_grad():
        a, b = decoder(ids, condition), decoder(changed, condition)
        c = decoder(ids, condition + 1)
    torch.testing.assert_close(a[:, :7], b[:, :7], rtol=0, atol=0)
    assert ((a - b)[:, 7:].abs().amax(-1) > 1e-6).all()
    assert ((a - c).abs().amax(-1) > 1e-6).all()


def test_codes_of_an_item_do_not_depend_on_its_batch(small):
    decoder, condition = small

    def generators(items):
        return [torch.Generator().manual_seed(100 + i) for i in items]

    together = decoder.generate(condition, generators=generators(range(4)), top_k=None)
    for i in (0, 3):
        alone = decoder.generate(condition[i : i + 1], generators=generators([i]), top_k=None)
        assert alone[0].tolist() == together[i].tolist()
    turned = decoder.generate(condition.flip(0), generators=generators([3, 2, 1, 0]), top_k=None)
    assert turned.flip(0).tolist() == together.tolist()


def test_every_item_and_position_has_one_uniform_of_its_own():
    """Whatever the batch, and however many positions are drawn."""

    def drawn(items, length):
        generators = [torch.Generator().manual_seed(100 + i) for i in items]
        return _draw_uniforms(generators, len(items), length)

    whole = drawn(range(24), 12)
    assert len(whole.unique()) == 24 * 12
    assert torch.equal(drawn([5], 12)[0], whole[5])
    assert torch.equal(drawn(range(24)[3::7], 12), whole[3::7])
    assert torch.equal(drawn(range(23, -1, -1), 12).flip(0), whole)
    assert torch.equal(drawn(range(24), 5), whole[:, :5])


@pytest.mark.parametrize("top_k", [None, 5])
def test_token_ids_are_identical_in_any_batch_in_single_precision(small, top_k):
    """Rounding of the products depends on the batch; a code would change only where a uniform lies
    within it of a step of the cumulative distribution, as none of 98,304 draws was."""
    decoder, n = small[0].float(), 56
    condition = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))

    def codes(items):
        uniforms = [torch.Generator().manual_seed(100 + i) for i in items]
        return decoder.generate(condition[list(items)], generators=uniforms, top_k=top_k)

    whole = codes(range(n))
    assert len(whole.unique()) > 5
    for size in (1, 8):
        parts = [codes(range(k, k + size)) for k in range(0, n, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(codes(range(n)[3::7]), whole[3::7])
    assert torch.equal(codes(range(n - 1, -1, -1)).flip(0), whole)


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    u = torch.tensor([0.0, 0.099, 0.101, 0.299, 0.301, 0.599, 0.601, 0.999999])
    assert draw_codes(logits.expand(8, 4), u).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # two most likely codes only: 3/7 and 4/7
    edges = torch.tensor([0.0, 3 / 7 - 1e-6, 3 / 7 + 1e-6, 1 - 1e-12], dtype=torch.float64)
    assert draw_codes(logits.expand(4, 4), edges, top_k=2).tolist() == [2, 2, 3, 3]
    # temperature 0.5 squares the probabilities: 1, 4, 9, 16 of 30
    u = torch.tensor([0.9, 4.9, 5.1, 13.9, 14.1]) / 30
    assert draw_codes(logits.expand(5, 4), u, temperature=0.5).tolist() == [0, 1, 2, 2, 3]


def test_draws_have_the_truncated_distribution():
    logits = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64).log()
    u = (torch.arange(9000, dtype=torch.float64) + 0.5) / 9000
    counts = torch.bincount(draw_codes(logits.expand(9000, 3), u, top_k=2), minlength=3)
    assert counts.tolist() == [5000, 0, 4000]


def test_adapters_start_as_the_identity_and_only_they_can_learn():
    torch.manual_seed(0)
    decoder = ShapeDecoder(SMALL)
    ids, condition = torch.arange(12).repeat(2, 1), torch.ones(2, 5)
    with torch.no_grad():
        a, b = decoder(ids, condition), decoder(ids, condition, use_adapters=False)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    adapters = list(decoder.adapter_parameters())
    names = [n for n, p in decoder.named_parameters() if any(p is q for q in adapters)]
    assert sorted({n.rsplit(".", 2)[0] for n in names}) == ["blocks.0.adapter", "blocks.2.adapter"]
    decoder.requires_grad_(False)
    for parameter in adapters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.SGD(adapters, lr=1.0)
    before = F.cross_entropy(decoder(ids, condition).flatten(0, 1), ids.flatten())
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(decoder(ids, condition).flatten(0, 1), ids.flatten()).backward()
        optimiser.step()
    after = F.cross_entropy(decoder(ids, condition).flatten(0, 1), ids.flatten())
    assert after < before - 0.01


def test_output_table_stays_tied_to_the_embedding():
    decoder = ShapeDecoder(SMALL)
    other = ShapeDecoder(SMALL)
    other.load_state_dict(decoder.state_dict(), assign=True)
    other.tie_weights()
    assert other.z_value_dec.weight is other.emb.weight
    torch.testing.assert_close(other.emb.weight, decoder.emb.weight, rtol=0, atol=0)


def test_generation_keeps_no_graph_and_its_codes_can_train():
    decoder = ShapeDecoder(SMALL)
    condition = torch.ones(2, 5, requires_grad=True)
    ids = decoder.generate(condition, greedy=True)
    assert not ids.requires_grad
    decoder(ids, condition).sum().backward()
    assert condition.grad is not None


def test_the_cache_saves_most_of_the_work():
    """Operations of 64 drawn codes, against running the whole prefix again for each."""
    from torch.utils.flop_counter import FlopCounterMode

    size = ShapeDecoderSize(
        vocab=512, width=192, heads=6, layers=4, positions=66, condition=64, sequence=64
    )
    decoder = ShapeDecoder(size).eval()
    with FlopCounterMode(display=False) as cached:
        ids = decoder.generate(torch.ones(2, 64), greedy=True)
    with FlopCounterMode(display=False) as again, torch.no_grad():
        for step in range(1, 65):
            decoder(ids[:, :step], torch.ones(2, 64))
    # 2 + 63 tokens instead of 2 + 3 + ... + 65
    assert again.get_total_flops() > 25 * cached.get_total_flops()


def test_errors_say_what_is_wrong(small):
    decoder, condition = small
    with pytest.raises(ValueError, match="needs uniforms or generators"):
        decoder.generate(condition)
    with pytest.raises(ValueError, match="3 generators for 4 items"):
        decoder.generate(condition, generators=[torch.Generator()] * 3)
    with pytest.raises(ValueError, match=r"shape \(4, 3\); expected \(4, 12\)"):
        decoder.generate(condition, uniforms=torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        decoder.generate(condition, temperature=0.0, uniforms=torch.zeros(4, 12))
    with pytest.raises(ValueError, match="top_k is 0"):
        decoder.generate(condition, top_k=0, uniforms=torch.zeros(4, 12))
    with pytest.raises(ValueError, match="14 codes asked for"):
        decoder.generate(condition, length=14, greedy=True)
    with pytest.raises(ValueError, match=r"takes \(n, 5\)"):
        decoder.generate(torch.zeros(4, 6, dtype=torch.float64), greedy=True)
    with pytest.raises(ValueError, match="ids has 3 rows, condition 4"):
        decoder(torch.zeros(3, 12, dtype=torch.long), condition)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        ShapeDecoderSize(width=10, heads=4)
    with pytest.raises(ValueError, match="needs at least 1025"):
        ShapeDecoderSize(positions=1024)


# --- what the cache saves ------------------------------------------------------------------------


def test_cached_and_recomputed_codes_are_the_same():
    """Greedy codes of the published way, the whole prefix again at every step, in float64."""
    torch.manual_seed(0)
    size = ShapeDecoderSize(
        vocab=64, width=32, heads=4, layers=3, positions=130, condition=16, sequence=128
    )
    decoder = ShapeDecoder(size).double().eval()
    torch.nn.init.normal_(decoder.emb.weight, std=1.0)  # codes that differ from step to step
    condition = torch.randn(2, 16, dtype=torch.float64)
    ids = decoder.generate(condition, greedy=True)
    assert torch.equal(ids, generate_uncached(decoder, condition, 128))
    assert len(ids.unique()) > 8


def test_operations_are_counted_exactly():
    """The count from a few steps is that of running all of them."""
    size = ShapeDecoderSize(
        vocab=20, width=16, heads=2, layers=3, positions=20, condition=8, sequence=16
    )
    with torch.device("meta"):
        decoder, condition = ShapeDecoder(size), torch.zeros(1, 8)
    counted = []
    for run in (
        lambda: decoder.generate(condition, greedy=True),
        lambda: generate_uncached(decoder, condition, 16),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    assert decoding_flops(size) == tuple(counted)


def test_the_cache_saves_513_times_the_work_at_the_published_size():
    """2 + 3 + ... + 1,025 tokens become 1,025; attention itself adds a little to the ratio."""
    assert sum(range(2, 1026)) / 1025 == pytest.approx(513, abs=0.01)
    cached, whole = decoding_flops()
    assert whole / cached == pytest.approx(513, rel=0.01)
    assert cached == pytest.approx(7.5e12, rel=0.05)
    assert whole == pytest.approx(3860e12, rel=0.05)
