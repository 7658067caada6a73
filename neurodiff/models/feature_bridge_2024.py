"""Loss and sampling of the feature bridge exactly as published (protocol ``mind3d-2024``).

For published weights and for comparison; the library's own bridge is ``neurodiff.bridges.prior``.
What is published, and differs from the consistent way:

- fMRI tokens have unit length in training, and any length in sampling;
- the grid starts one short of the noisiest step, from unit noise;
- a step hands the network a state one step cleaner than it says (:class:`BridgeDDIM2024`);
- guidance's null hides the noisy embedding together with the fMRI;
- the decoder is trained on embeddings of length sqrt(dim) and used with length 1.

Image embeddings are directions (length 1) outside and have length sqrt(dim) inside the diffusion.
Source: Gao et al., "MinD-3D: Reconstruct High-quality 3D Objects in Human Brain", ECCV 2024.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from neurodiff.diffusion.grids import explicit
from neurodiff.diffusion.guidance import ClassifierFree
from neurodiff.diffusion.paths import CLEAN, Level, VariancePreserving, add_noise
from neurodiff.diffusion.sampling import Noise, item_noise, sample
from neurodiff.diffusion.solvers import ancestral_sd, renoised
from neurodiff.models.feature_bridge import BridgeState, FeatureBridge


@dataclass(frozen=True)
class BridgeDDIM2024:
    """The DDIM step of the published MinD-3D bridge (protocol ``mind3d-2024``).

    It takes the noise out at step t, and does the rest one row further down the table: the state
    that it hands to the network as step t' has the level of t' - 1, and the share of fresh noise
    is that between t - 1 and t' - 1.  On the cosine path of 100 steps the state is cleaner than
    the network is told: sigma is lower by 2 % at t = 40, 8 % at t = 10, 28 % at t = 2.  Kept for
    published weights; :class:`~neurodiff.diffusion.solvers.DDIM` is the consistent step.
    """

    path: VariancePreserving
    eta: float = 1.0

    def step(self, x, a, b, denoise, fresh, memory) -> Tensor:
        """State that the network is told to be at ``b``; no fresh noise from t' = 0 on."""
        before, after = self._before(a), self._before(b)
        sd = self.eta * ancestral_sd(before, after) if b.t >= 1 else 0.0
        return renoised(x, denoise(x, a), a, after, sd, fresh)

    def _before(self, level: Level) -> Level:
        return CLEAN if level.t < 1 else self.path.level(int(level.t) - 1)


def bridge_2024(path: VariancePreserving, points: int = 64) -> list[Level]:
    """The grid of the published MinD-3D bridge: ``points`` - 1 network calls, then clean data.

    Times are those of a line of ``points`` + 1 from -1 to T, without its end, cut to integers
    towards 0.  The first is not the noisiest step although sampling starts from pure noise.

    Examples
    --------
    >>> from neurodiff.diffusion.paths import cosine
    >>> [int(level.t) for level in bridge_2024(cosine(100), 8)]
    [87, 74, 62, 49, 36, 24, 11, -1]
    """
    line = torch.linspace(-1, path.steps, points + 1, dtype=torch.float64, device="cpu")[:-1]
    return explicit(path, [int(t) for t in line.flip(0)])


@dataclass(frozen=True)
class BridgeCondition:
    """What a bridge is conditioned on: tokens of trials, (trials, tokens, dim).

    ``hide_fmri`` and ``hide_image`` put the learned nulls in place of all tokens and of the noisy
    embedding; ``candidates`` rows belong to each trial.
    """

    tokens: Tensor
    candidates: int = 1
    hide_fmri: bool = False
    hide_image: bool = False


@dataclass(frozen=True)
class BridgeDenoiser:
    """A feature bridge as a denoiser of the diffusion core (it predicts x_0)."""

    net: FeatureBridge

    def prepare(self, cond: BridgeCondition) -> tuple[BridgeState, bool]:
        """Keys and values of the condition, once."""
        tokens = cond.tokens
        hidden = torch.full((len(tokens),), cond.hide_fmri, device=tokens.device)
        return self.net.prepare(tokens, hidden).repeat(cond.candidates), cond.hide_image

    def __call__(
        self, x: Float[Tensor, "rows dim"], level: Level, state: tuple[BridgeState, bool]
    ) -> Float[Tensor, "rows dim"]:
        """Mean of x_0."""
        prepared, hide_image = state
        hidden = torch.full((len(x),), True, device=x.device) if hide_image else None
        return self.net.step(x, int(level.t), prepared, hidden)


@dataclass(frozen=True)
class BridgeSamples:
    """Candidates of each trial.

    ``embeddings`` (trials, candidates, dim): about unit length, not normalised;
    ``cosines`` (trials, candidates): with the mean fMRI token of the trial.
    """

    embeddings: Float[Tensor, "trials candidates dim"]
    cosines: Float[Tensor, "trials candidates"]

    @property
    def best(self) -> Int[Tensor, " trials"]:
        """Index of the candidate nearest to the mean fMRI token, as published."""
        return self.cosines.argmax(1)

    @property
    def chosen(self) -> Float[Tensor, "trials dim"]:
        """The embeddings of :attr:`best`."""
        best = self.best[:, None, None].expand(-1, 1, self.embeddings.shape[2])
        return self.embeddings.gather(1, best)[:, 0]


@torch.no_grad()
def sample_bridge_2024(
    net: FeatureBridge,
    path: VariancePreserving,
    fmri_tokens: Float[Tensor, "trials tokens dim"],
    *,
    generators: Sequence[torch.Generator] | None = None,
    candidates: int = 1,
    points: int = 64,
    eta: float = 1.0,
    cond_scale: float = 1.0,
    start: Float[Tensor, "rows dim"] | None = None,
    noise: Noise | None = None,
) -> BridgeSamples:
    """Draw image embeddings for fMRI tokens.

    Parameters
    ----------
    net : in ``eval`` mode, built with protocol "mind3d-2024".
    path : ``cosine(100).rounded()`` is the published one.
    fmri_tokens : tokens of trials as the aggregation gives them.
    generators : one for each row (trial, candidate), trial-major; it makes the row's start and
        fresh noise, so a row does not depend on the others.
    candidates : samples of each trial.  The condition is computed once for all of them.
    points : points of the grid, one more than network calls.
    eta : 0 deterministic from the start, 1 ancestral (published).
    cond_scale : classifier-free weight; 1 is off (published).
    start, noise : instead of generators: the rows' start, unit normal, and the fresh noise as a
        function of (call, state).

    Raises
    ------
    ValueError : neither generators nor a start; another number of them than rows; a path of
        another length than the network's.
    """
    rows, dim = len(fmri_tokens) * candidates, net.size.dim
    if path.steps != net.size.timesteps:
        raise ValueError(
            f"the path has {path.steps} steps; this bridge was built for {net.size.timesteps}"
        )
    if generators is not None and start is None:
        noise = item_noise(generators)
        start = noise(-1, fmri_tokens.new_zeros(rows, dim))
    elif start is None or generators is not None:
        raise ValueError("give either generators (one a row) or start")
    if len(start) != rows:
        raise ValueError(f"start has {len(start)} rows, not {rows} (trials x candidates)")

    denoiser = ClassifierFree(
        BridgeDenoiser(net),
        cond_scale,
        lambda cond: replace(cond, hide_fmri=True, hide_image=True),
    )
    state = denoiser.prepare(BridgeCondition(fmri_tokens, candidates))
    grid, solver = bridge_2024(path, points), BridgeDDIM2024(path, eta)
    x = sample(denoiser, start, grid, solver, state=state, noise=noise)
    embeddings = (x / math.sqrt(dim)).unflatten(0, (-1, candidates))
    centre = fmri_tokens.mean(1, keepdim=True)
    return BridgeSamples(embeddings, F.cosine_similarity(embeddings, centre, dim=-1))


def bridge_loss_2024(
    net: FeatureBridge,
    path: VariancePreserving,
    fmri_tokens: Float[Tensor, "rows tokens dim"],
    image: Float[Tensor, "rows dim"],
    *,
    t: Int[Tensor, " rows"],
    eps: Float[Tensor, "rows dim"],
    drop_fmri: Bool[Tensor, " rows"] | None = None,
    drop_image: Bool[Tensor, " rows"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows dim"]]:
    """Mean squared error of the predicted x_0, and the prediction in units of length 1.

    Parameters
    ----------
    fmri_tokens, image : condition and target of the same rows, of any length; both are normalised.
    t, eps : steps (``path.sample_t``) and unit normal noise.
    drop_fmri, drop_image : rows whose condition or noisy embedding is hidden, drawn independently;
        published rate 0.2 each.

    Returns
    -------
    loss : in units of the diffusion (a target has mean square 1).
    prediction : x_0 / sqrt(dim), what sampling gives.  The published stage 2 feeds its decoder
        sqrt(dim) times this in training, and this in use.
    """
    scale = math.sqrt(net.size.dim)
    x0 = F.normalize(image, dim=-1) * scale
    x_t = add_noise(x0, eps, path.levels(t, like=x0))
    tokens = F.normalize(fmri_tokens, dim=-1)
    predicted = net(x_t, t, tokens, drop_fmri=drop_fmri, drop_image=drop_image)
    return F.mse_loss(predicted, x0), predicted / scale
