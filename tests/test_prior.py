"""The bridge against closed forms: a network that knows the exact posterior of a Gaussian."""

from dataclasses import dataclass, replace

import pytest
import torch

from neurodiff.bridges.prior import denoising_loss, sample_embeddings, with_anchor
from neurodiff.diffusion.paths import cosine
from neurodiff.models.feature_bridge import FeatureBridge, FeatureBridgeSize

PATH = cosine(100)
D = 6


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class State:
    tokens: torch.Tensor
    candidates: int = 1

    def repeat(self, candidates):
        return replace(self, candidates=self.candidates * candidates)

    def rows(self):
        return self.tokens.repeat_interleave(self.candidates, dim=0)


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean of the fMRI tokens, sd^2): its posterior mean given x_t, less an anchor."""

    sd: float = 0.5
    anchored: bool = False

    def prepare(self, tokens, drop=None):
        return State(tokens)

    def step(self, x, t, state):
        tokens = state.rows()
        alpha, sigma = (table[t][:, None].float() for table in (PATH.alpha, PATH.sigma))
        mean = (tokens[:, :-1] if self.anchored else tokens).mean(dim=1)
        gain = alpha * self.sd**2 / (alpha**2 * self.sd**2 + sigma**2)
        exact = mean + gain * (x - alpha * mean)
        return exact - tokens[:, -1] if self.anchored else exact


@dataclass(frozen=True)
class Zero:
    def prepare(self, tokens, drop=None):
        return State(tokens)

    def step(self, x, t, state):
        return torch.zeros_like(x)


class Echo(Zero):
    """Says that the noisy state is the clean one: one step returns the starting noise."""

    def step(self, x, t, state):
        return x


@pytest.fixture(scope="module")
def bridge():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = FeatureBridgeSize(dim=D, depth=1, heads=2, dim_head=4, ff_mult=2, null_tokens=1)
        return FeatureBridge(size).eval()


# ----------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_draws_of_an_exact_network_have_the_posterior(anchored, eta):
    tokens, anchor = draw(3, 2, D), draw(3, D, seed=1) if anchored else None
    options = {"path": PATH, "anchor": anchor, "steps": 50, "eta": eta}
    network = Gaussian(anchored=anchored)
    n = 800
    mean = sample_embeddings(network, tokens, seeded(0, 1, 2), candidates=n, **options)
    error = 0.5 / n**0.5
    assert (mean - tokens.mean(dim=1)).abs().max() < 4.5 * error  # 18 values
    options["anchor"] = None if anchor is None else anchor[:1].expand(n, -1)
    same = tokens[:1].expand(n, -1, -1)
    single = sample_embeddings(network, same, seeded(*range(n)), candidates=1, **options)
    assert single.std(dim=0).numpy() == pytest.approx(0.5, rel=0.12)


@pytest.mark.parametrize("candidates", [1, 8])
def test_anchor_and_a_network_that_adds_nothing(candidates):
    tokens, anchor = draw(4, 3, D), draw(4, D, seed=1)
    got = sample_embeddings(
        Zero(), tokens, seeded(0, 1, 2, 3), path=PATH, anchor=anchor, candidates=candidates
    )
    torch.testing.assert_close(got, anchor, rtol=0 if candidates == 1 else 3e-7, atol=0)


def test_an_items_draws_do_not_depend_on_its_batch(bridge):
    tokens, anchor = draw(5, 3, D), draw(5, D, seed=1)

    def sampled(rows):
        return sample_embeddings(
            bridge,
            tokens[rows],
            seeded(*rows),
            path=PATH,
            anchor=anchor[rows],
            candidates=3,
            steps=6,
        )

    whole = sampled([0, 1, 2, 3, 4])
    torch.testing.assert_close(sampled([4, 2, 0]), whole[[4, 2, 0]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sampled([3]), whole[[3]], rtol=1e-5, atol=1e-5)
    assert (whole - anchor).abs().max() > 0.1  # the network had its say
    other = sample_embeddings(
        bridge, tokens, seeded(9, 9, 9, 9, 9), path=PATH, anchor=anchor, candidates=3, steps=6
    )
    assert (whole - other).abs().max() > 1e-2


def test_the_three_choices():
    """In one step of the echo the draws are sigma_T times the first noise of each generator."""
    tokens = draw(4, 3, D)
    draws = torch.stack([torch.randn(7, D, generator=g) for g in seeded(0, 1, 2, 3)])
    draws = draws * float(PATH.sigma[-1])

    def chosen(choose):
        return sample_embeddings(
            Echo(), tokens, seeded(0, 1, 2, 3), path=PATH, candidates=7, steps=1, choose=choose
        )

    mean = draws.mean(dim=1)
    torch.testing.assert_close(chosen("mean"), mean)
    for choose, aim in (("nearest-to-mean", mean), ("fmri-cosine", tokens.mean(dim=1))):
        unit = draws / draws.norm(dim=-1, keepdim=True)
        best = (unit * aim[:, None]).sum(-1).argmax(dim=1)
        torch.testing.assert_close(chosen(choose), draws[torch.arange(4), best])
    assert not torch.equal(chosen("nearest-to-mean"), chosen("fmri-cosine"))


def test_without_a_brain_neither_tokens_nor_anchor_matter(bridge):
    options = {"path": PATH, "candidates": 2, "steps": 4, "unconditional": True}
    one = sample_embeddings(
        bridge, draw(2, 3, D), seeded(0, 1), anchor=draw(2, D, seed=1), **options
    )
    other = sample_embeddings(
        bridge, draw(2, 3, D, seed=2), seeded(0, 1), anchor=draw(2, D, seed=3), **options
    )
    assert torch.equal(one, other)
    null = bridge.null_fmri_embeds.detach().expand(2, 4, -1)  # 3 tokens and the anchor's
    plain = sample_embeddings(bridge, null, seeded(0, 1), **(options | {"unconditional": False}))
    torch.testing.assert_close(one, plain)


# --------------------------------------------------------------------------------------- loss


def loss_of(network, target, tokens, *, seed=0, **options):
    return denoising_loss(
        network,
        target,
        tokens,
        path=PATH,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def test_loss_of_a_perfect_network_is_zero():
    target, tokens, anchor = draw(50, D), draw(50, 3, D, seed=1), draw(50, D, seed=2)

    def perfect(x, t, condition, *, drop_fmri, drop_image):
        return target

    def rest(x, t, condition, *, drop_fmri, drop_image):
        assert torch.equal(condition, torch.cat([tokens, anchor[:, None]], dim=1))
        return target - torch.where(drop_fmri[:, None], 0.0, anchor)

    assert float(loss_of(perfect, target, tokens)) == 0
    assert float(loss_of(rest, target, tokens, anchor=anchor, dropout=0.5)) < 1e-12
    # and one that ignores the anchor is off by it where it was not dropped
    off = loss_of(perfect, target, tokens, anchor=anchor, dropout=0.0)
    assert float(off) == pytest.approx(float((anchor**2).mean()), rel=1e-6)


def test_what_the_network_is_given():
    n = 4000
    target, tokens = draw(n, D), draw(n, 2, D, seed=1)
    seen = {}

    def network(x, t, condition, **drops):
        seen.update(x=x, t=t, **drops)
        return torch.zeros_like(x)

    loss = loss_of(network, target, tokens, dropout=0.3)
    assert float(loss) == pytest.approx(float((target**2).mean()))
    t = seen["t"]
    noise = (seen["x"] - PATH.alpha[t][:, None] * target) / PATH.sigma[t][:, None]
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert abs(float((noise * target).mean())) < 0.03
    counts = torch.bincount(t, minlength=100)
    assert counts.min() > 10  # 40 expected
    assert counts.max() < 80
    fmri, image = seen["drop_fmri"].float(), seen["drop_image"].float()
    assert float(fmri.mean()) == pytest.approx(0.3, abs=0.04)
    assert float(image.mean()) == pytest.approx(0.3, abs=0.04)
    assert float((fmri * image).mean()) == pytest.approx(0.09, abs=0.03)  # independent


def test_dropout_hides_tokens_and_anchor(bridge):
    target = draw(8, D)

    def loss(tokens_seed, anchor_seed, dropout):
        with torch.no_grad():
            return float(
                loss_of(
                    bridge,
                    target,
                    draw(8, 3, D, seed=tokens_seed),
                    anchor=draw(8, D, seed=anchor_seed),
                    dropout=dropout,
                )
            )

    assert loss(1, 2, 1.0) == loss(3, 2, 1.0) == loss(1, 4, 1.0)
    assert loss(1, 2, 0.0) != loss(3, 2, 0.0)
    assert loss(1, 2, 0.0) != loss(1, 4, 0.0)


def test_anchor_becomes_the_last_token():
    tokens, anchor = draw(2, 3, D), draw(2, D, seed=1)
    joined = with_anchor(tokens, anchor)
    assert torch.equal(joined[:, :3], tokens)
    assert torch.equal(joined[:, 3], anchor)
    assert with_anchor(tokens, None) is tokens
