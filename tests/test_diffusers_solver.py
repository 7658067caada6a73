"""Schedulers of diffusers through the adapter, and where libraries step past what they evaluate."""

import math
from itertools import pairwise

import pytest
import torch

from neurodiff.diffusion.diffusers_solver import DiffusersSolver
from neurodiff.diffusion.grids import by_strength, explicit, leading
from neurodiff.diffusion.heads import EPS
from neurodiff.diffusion.paths import Level, add_noise, linear, scaled_linear
from neurodiff.diffusion.sampling import sample
from neurodiff.diffusion.solvers import DDIM, Ancestral, DPMSolver2M, EDMStep

# the library hands tensors to numpy in an old way
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

S = 0.5  # data N(0.3, S²)
VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = VP | {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}


def exact(x, level, state=None):
    v = level.alpha**2 * S**2 + level.sigma**2
    return 0.3 + level.alpha * S**2 / v * (x - level.alpha * 0.3)


def scheduler(name, **settings):
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name)(**settings)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(name, ours, steps, **settings):
    """The end of the library's own step and of ours, on the levels of the library."""
    solver = DiffusersSolver(scheduler(name, **settings))
    grid = solver.grid(steps)
    x = grid[0].sigma * normal(3, 4)
    return sample(exact, x, grid, solver), sample(exact, x, grid, ours)


# --- parity at identical levels ------------------------------------------------------------------


@pytest.mark.parametrize(
    "prediction", ["epsilon", "sample", "v_prediction"], ids=["eps", "x0", "v"]
)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(spacing, prediction):
    settings = PLAIN | {"timestep_spacing": spacing, "prediction_type": prediction}
    theirs, ours = both("DDIMScheduler", DDIM(), 20, **settings)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)


def test_leading_grid_is_theirs():
    solver = DiffusersSolver(scheduler("DDIMScheduler", **PLAIN))
    theirs, ours = solver.grid(50), leading(scaled_linear(1000), 50)
    assert [n.t for n in theirs] == [n.t for n in ours]
    for a, b in zip(theirs[:-1], ours[:-1], strict=True):
        assert (a.alpha, a.sigma) == pytest.approx((b.alpha, b.sigma), abs=1e-6)


def test_dpm_solver():
    for more in ({}, {"use_karras_sigmas": True}, {"use_lu_lambdas": True}):
        theirs, ours = both("DPMSolverMultistepScheduler", DPMSolver2M(), 12, **VP, **more)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)


def test_dpm_solver_on_flow_levels():
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    theirs, ours = both("DPMSolverMultistepScheduler", DPMSolver2M(), 12, **settings)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_and_heun_scale_their_input(prediction):
    settings = VP | {"timestep_spacing": "trailing", "prediction_type": prediction}
    theirs, ours = both("EulerDiscreteScheduler", EDMStep(order=1), 12, **settings)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)
    solver = DiffusersSolver(scheduler("HeunDiscreteScheduler", **settings))
    grid = solver.grid(12)  # two levels a step but for the last
    assert len(grid) == 24
    x = grid[0].sigma * normal(3, 4)
    ours = sample(exact, x, [grid[0], *grid[1::2]], EDMStep())
    torch.testing.assert_close(sample(exact, x, grid, solver), ours, rtol=0, atol=5e-6)


def test_edm_schedulers():
    """x of size 80 at the start, float32: 5e-6 of that."""
    theirs, ours = both("EDMEulerScheduler", EDMStep(order=1), 18)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)
    theirs, ours = both("EDMDPMSolverMultistepScheduler", DPMSolver2M(), 18)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)


def test_flow_matching():
    theirs, ours = both("FlowMatchEulerDiscreteScheduler", DDIM(), 15, shift=3.0)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "settings", "off"),
    [
        ("DDPMScheduler", VP | {"clip_sample": False, "variance_type": "fixed_small"}, 5e-6),
        ("UnCLIPScheduler", {"prediction_type": "sample", "clip_sample": False}, 1e-3),
    ],
)
def test_ancestral_with_the_noise_of_each_item(name, settings, off):
    """UnCLIP's own guess of the next step is t - 1; the adapter tells it the real one.  Its first
    step takes 1 - beta in float32, where 8.2e-8 becomes 1.2e-7: 6e-5 of x, the rest follows."""

    def generators(items):
        return [torch.Generator().manual_seed(i) for i in items]

    def run(items):
        theirs = DiffusersSolver(scheduler(name, **settings), generators(items))
        grid, x = theirs.grid(10), normal(3, 4).float()[items]
        ours = generators(items)

        def noise(step, like):
            rows = [torch.randn(1, 4, generator=g) for g in ours]
            return torch.cat(rows)

        own = sample(exact, x, grid, Ancestral(), noise=noise)
        return sample(exact, x, grid, theirs), own

    theirs, ours = run([0, 1, 2])
    torch.testing.assert_close(theirs, ours, rtol=0, atol=off)
    torch.testing.assert_close(run([2])[0], theirs[2:], rtol=0, atol=1e-6)


def test_the_last_level_is_the_scheduler_s():
    """Stable Diffusion's DDIM ends at its cleanest step, and so do grids that end at sigma_min."""
    settings = PLAIN | {"set_alpha_to_one": False}
    for name, ours, more in (
        ("DDIMScheduler", DDIM(), settings),
        ("DPMSolverMultistepScheduler", DPMSolver2M(), VP | {"final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", EDMStep(order=1), VP | {"final_sigmas_type": "sigma_min"}),
    ):
        solver = DiffusersSolver(scheduler(name, **more))
        assert solver.grid(20)[-1].sigma == pytest.approx(0.0291548, rel=1e-3)
        theirs, own = both(name, ours, 20, **more)
        torch.testing.assert_close(theirs, own, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("name", "settings", "ours"),
    [
        ("DDIMScheduler", PLAIN, DDIM()),
        ("DPMSolverMultistepScheduler", VP, DPMSolver2M()),
        ("EulerDiscreteScheduler", VP, EDMStep(order=1)),
    ],
)
def test_a_start_inside_the_grid(name, settings, ours):
    solver = DiffusersSolver(scheduler(name, **settings))
    grid = by_strength(solver.grid(20), 0.5)
    x = add_noise(normal(3, 4), normal(3, 4, seed=1), grid[0])
    theirs = sample(exact, x, grid, solver)
    torch.testing.assert_close(theirs, sample(exact, x, grid, ours), rtol=0, atol=5e-6)
    with pytest.raises(ValueError, match=r"sample on solver\.grid"):
        sample(exact, x, [Level(3.0, 0.1, 0.9), *grid[1:]], solver)


def test_noise_without_generators_is_refused():
    solver = DiffusersSolver(scheduler("DDPMScheduler", **VP, clip_sample=False))
    with pytest.raises(ValueError, match="this scheduler adds noise"):
        sample(exact, normal(3, 4), solver.grid(5), solver)


def test_brain_diffuser_loop_of_37_calls():
    """Noised at 741, denoised from 721 down to the cleanest step, as published."""
    path = scaled_linear(1000)
    solver = DiffusersSolver(scheduler("DDIMScheduler", **PLAIN | {"set_alpha_to_one": False}))
    theirs, grid = solver.grid(50)[13:], leading(path, 50, last=0)[13:]
    assert [n.t for n in grid[:-1]] == [n.t for n in theirs[:-1]] == [*range(721, 0, -20)]
    x = add_noise(normal(3, 4), normal(3, 4, seed=1), path.level(741))
    ours = sample(exact, x, grid, DDIM())
    torch.testing.assert_close(sample(exact, x, theirs, solver), ours, rtol=0, atol=1e-5)


# --- any scheduler -------------------------------------------------------------------------------


FLOW_LEVELS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}
DETERMINISTIC = [
    ("DDIMScheduler", PLAIN),
    ("DDIMParallelScheduler", PLAIN),
    ("DEISMultistepScheduler", VP),
    ("DPMSolverMultistepScheduler", VP),
    ("DPMSolverSinglestepScheduler", VP),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("EDMEulerScheduler", {}),
    ("EulerDiscreteScheduler", VP),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", VP),
    ("KDPM2DiscreteScheduler", VP),
    ("LMSDiscreteScheduler", VP),
    ("PNDMScheduler", VP | {"skip_prk_steps": True}),
    ("UniPCMultistepScheduler", VP),
]


@pytest.mark.parametrize(("name", "settings"), DETERMINISTIC, ids=[n for n, _ in DETERMINISTIC])
def test_deterministic_schedulers_follow_the_exact_flow(name, settings):
    solver = DiffusersSolver(scheduler(name, **settings))
    grid = solver.grid(100)
    start = grid[0]
    x = start.alpha * 0.3 + math.sqrt(start.alpha**2 * S**2 + start.sigma**2) * normal(3, 4)
    v = start.alpha**2 * S**2 + start.sigma**2
    flowed = 0.3 + S / math.sqrt(v) * (x - start.alpha * 0.3)
    off = (sample(exact, x, grid, solver) - flowed).abs().max() / S
    assert off < 0.07  # the first order solvers have 0.06; the level of the step before fails
    asked = []
    sample(exact, x, grid, solver, callback=lambda call, level, x, mean: asked.append(level))
    assert asked == grid[:-1]


STOCHASTIC = [
    ("DDPMScheduler", VP | {"clip_sample": False}),
    ("DPMSolverMultistepScheduler", VP | {"algorithm_type": "sde-dpmsolver++"}),
    ("EulerAncestralDiscreteScheduler", VP),
    ("SASolverScheduler", VP),
    ("UnCLIPScheduler", {"prediction_type": "sample", "clip_sample": False}),
]


@pytest.mark.parametrize(("name", "settings"), STOCHASTIC, ids=[n for n, _ in STOCHASTIC])
def test_schedulers_that_add_noise_end_in_the_data(name, settings):
    """2000 numbers in one item: mean and spread within five standard errors and 5 % of bias."""
    n = 2000
    solver = DiffusersSolver(scheduler(name, **settings), [torch.Generator().manual_seed(1)])
    grid = solver.grid(100)
    before = torch.random.get_rng_state()
    start = grid[0]
    spread = math.sqrt(start.alpha**2 * S**2 + start.sigma**2)
    out = sample(exact, start.alpha * 0.3 + spread * normal(1, n), grid, solver)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's noise was taken
    assert out.mean().item() == pytest.approx(0.3, abs=5 * S / math.sqrt(n) + 0.01)
    assert out.std().item() == pytest.approx(S, rel=5 / math.sqrt(2 * n) + 0.05)


def test_dry_run_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    DiffusersSolver(scheduler("DDPMScheduler", **VP)).grid(10)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"timestep_spacing": "linspace"}, 10), ({"timestep_spacing": "trailing"}, 15)],
)
def test_a_stride_that_misses_its_own_timesteps_is_refused(settings, steps):
    solver = DiffusersSolver(scheduler("DDIMScheduler", **PLAIN, **settings))
    with pytest.raises(ValueError, match="would not arrive where it evaluates next"):
        solver.grid(steps)


def test_a_scheduler_without_levels_is_refused():
    with pytest.raises(ValueError, match="IPNDMScheduler tells no noise levels"):
        DiffusersSolver(scheduler("IPNDMScheduler")).grid(10)


# --- what the refusals are about: steps to another level than the next evaluated -----------------
# Data at one point c with noise eps: the state after an exact step from t shows the level reached.


def reached(path, x, c, eps):
    """The step of ``path`` whose alpha c + sigma eps is ``x``."""
    off = [float((add_noise(c, eps, path.level(t)) - x).abs().max()) for t in range(path.steps)]
    assert min(off) < 1e-5
    return off.index(min(off))


C, NOISE = torch.full((1, 3), 0.8), torch.tensor([[1.0, -0.5, 0.3]])


def test_diffusers_ddim_steps_by_its_stride_not_to_its_next_timestep():
    path = scaled_linear(1000)
    ddim = scheduler("DDIMScheduler", **PLAIN, timestep_spacing="linspace")
    ddim.set_timesteps(10)
    first, following = ddim.timesteps[:2].tolist()
    x = add_noise(C, NOISE, path.level(first)).float()
    x = ddim.step(NOISE, first, x).prev_sample
    assert (first, following) == (999, 888)
    assert reached(path, x, C, NOISE) == 999 - 1000 // 10


def test_monai_ddim_steps_by_its_stride_not_to_its_next_timestep():
    networks = pytest.importorskip("monai.networks.schedulers")
    path = linear(1000, 1e-4, 2e-2)
    ddim = networks.DDIMScheduler(1000, schedule="linear_beta", clip_sample=False)
    ddim.set_timesteps(10)
    first, following = ddim.timesteps[:2].tolist()
    x = add_noise(C, NOISE, path.level(first)).float()
    x, _ = ddim.step(NOISE, first, x)
    assert (first, following) == (999, 888)
    assert reached(path, x, C, NOISE) == 899


def test_monai_ddpm_steps_to_the_step_below_whatever_its_timesteps():
    """The mean of its posterior at t is that of t - 1, though it is asked at 888 next."""
    networks = pytest.importorskip("monai.networks.schedulers")
    path = linear(1000, 1e-4, 2e-2)
    ddpm = networks.DDPMScheduler(1000, schedule="linear_beta", clip_sample=False)
    ddpm.set_timesteps(10)
    first, following = ddpm.timesteps[:2].tolist()
    a, b = path.level(first), path.level(first - 1)
    x = add_noise(C, NOISE, a).float()
    state = torch.random.get_rng_state()
    moved, _ = ddpm.step(NOISE, first, x)
    torch.random.set_rng_state(state)
    fresh = torch.randn(NOISE.shape)
    ours = sample(lambda *_: C, x, [a, b], Ancestral(), noise=lambda *_: fresh)
    assert first - following > 50
    torch.testing.assert_close(moved, ours, rtol=0, atol=2e-4)  # its float32 betas


def test_unclip_steps_to_the_step_below_unless_told():
    unclip = scheduler("UnCLIPScheduler", prediction_type="sample", clip_sample=False)
    unclip.set_timesteps(10)
    first, following = unclip.timesteps[:2].tolist()
    steps = {}
    for told in (None, following):
        generator = torch.Generator().manual_seed(0)
        steps[told] = unclip.step(C, first, C, prev_timestep=told, generator=generator)[0]
    default = unclip.step(
        C, first, C, prev_timestep=first - 1, generator=torch.Generator().manual_seed(0)
    )[0]
    assert torch.equal(steps[None], default)
    assert not torch.allclose(steps[following], default)


def test_ddim_inverse_evaluates_the_network_where_it_goes():
    """Its step at timestep t starts from t - stride: the noise it is given belongs to t."""
    path = scaled_linear(1000)
    inverse = scheduler("DDIMInverseScheduler", **VP, clip_sample=False, timestep_spacing="leading")
    inverse.set_timesteps(10)
    t = int(inverse.timesteps[3])
    x = add_noise(C, NOISE, path.level(t - 100)).float()
    x = inverse.step(NOISE, t, x).prev_sample
    assert reached(path, x, C, NOISE) == t


def test_published_start_is_noised_at_another_level_than_it_is_denoised_from():
    """Brain-Diffuser: strength 0.75 of 50 steps noises at index 37 and starts at index 36."""
    times = [n.t for n in leading(scaled_linear(1000), 50)][:-1][::-1]
    assert (times[37], times[36]) == (741, 721)
    path, x0 = scaled_linear(1000), normal(2, 3)
    noised = add_noise(x0, normal(2, 3, seed=1), path.level(741))
    ours = EPS.raw(x0, noised, path.level(721))  # what looks like noise at 721 is 2 % too large
    ratio = (ours.norm() / normal(2, 3, seed=1).norm()).item()
    assert abs(ratio - 1) > 0.005
    grid = explicit(path, [741, 721])
    assert all(isinstance(a, Level) and a.ratio > b.ratio for a, b in pairwise(grid))
