"""Schedulers of the library diffusers as solvers of this core."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from neurodiff.diffusion.heads import Head
from neurodiff.diffusion.paths import CLEAN, Level

HEADS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass
class DiffusersSolver:
    """A scheduler, on the grid that it makes itself: ``sample(D, x, solver.grid(20), solver)``.

    The state keeps the scaling that the scheduler gives to a network: alpha² + sigma² = 1, or
    alpha = 1 - sigma for flow matching, or alpha = 1 for EDM.  ``generators``, one an item, feed
    those that draw noise.  Coefficients are the library's, float32.
    """

    scheduler: Any
    generators: Sequence[torch.Generator] | None = None

    def grid(self, steps: int, **settings: Any) -> list[Level]:
        """Set the scheduler's steps; the levels at which it asks for a mean (some twice a step).

        Raises
        ------
        ValueError : a scheduler of the DDIM family that would step to another level than it
            evaluates next (its stride is T // steps, whatever its timesteps are); one without
            ``sigmas`` and ``alphas_cumprod``.
        """
        scheduler, name = self.scheduler, type(self.scheduler).__name__
        scheduler.set_timesteps(steps, **settings)
        times = scheduler.timesteps.tolist()
        if "DDIM" in name:
            stride = scheduler.config.num_train_timesteps // steps
            if any(a - b != stride for a, b in pairwise(times)):
                raise ValueError(
                    f"{name} steps by {stride}, not along {times[:3]}: it would not arrive where "
                    "it evaluates next; use 'leading', or DDIM of this library"
                )
        if not hasattr(scheduler, "sigmas") and not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(f"{name} tells no noise levels (sigmas or alphas_cumprod)")
        levels, state = [], torch.zeros(1, 1)
        with torch.random.fork_rng(devices=[]):  # a dry run: only the scheduler knows its levels
            before = torch.random.get_rng_state()
            for step in range(len(times)):
                levels.append(self._level(step))
                state = self._scheduled(state, state, step, None)
            self._draws = not torch.equal(before, torch.random.get_rng_state())
        sigma = (1 / float(getattr(scheduler, "final_alpha_cumprod", 1.0)) - 1) ** 0.5
        sigma = float(scheduler.sigmas[-1]) if hasattr(scheduler, "sigmas") else sigma
        self._steps, self._settings, self._levels = steps, settings, levels
        return [*levels, self._at(0.0, sigma) if sigma else CLEAN]

    def step(self, x, a, b, denoise, fresh, memory) -> Tensor:
        if "step" not in memory:  # a run begins: forget the last one
            if a not in getattr(self, "_levels", []):
                raise ValueError("this level is not the scheduler's; sample on solver.grid(steps)")
            if self._draws and self.generators is None:
                raise ValueError(
                    "this scheduler adds noise: DiffusersSolver(scheduler, generators)"
                )
            self.scheduler.set_timesteps(self._steps, **self._settings)
            memory["step"] = self._levels.index(a)
            if memory["step"] and hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(memory["step"])
        step, memory["step"] = memory["step"], memory["step"] + 1
        to_network = self._scale(step) != 1 and self._head().kind != "edm"
        raw = self._head().raw(denoise(x, a), x, a)
        given = x / a.alpha if to_network else x
        moved = self._scheduled(raw, given, step, self.generators).to(x)
        return b.alpha * moved if to_network else moved

    def _scale(self, step: int) -> float:
        """What the scheduler multiplies a state by before a network sees it."""
        scaled = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
        return float(scaled(torch.ones(1), self.scheduler.timesteps[step]))

    def _head(self) -> Head:
        if hasattr(self.scheduler, "precondition_outputs"):
            return Head("edm", self.scheduler.config.sigma_data)
        return Head(HEADS[self.scheduler.config.get("prediction_type", "flow_prediction")])

    def _level(self, step: int) -> Level:
        scheduler, t = self.scheduler, self.scheduler.timesteps[step]
        self._scale(step)  # lets the scheduler find its place
        if not hasattr(scheduler, "sigmas"):
            power = float(scheduler.alphas_cumprod[int(t)].double())
            return Level(float(t), power**0.5, (1 - power) ** 0.5)
        sigma = float(scheduler.sigmas[scheduler.step_index or 0])
        if hasattr(scheduler, "sigmas_interpol"):  # evaluates between: the scale tells where
            known = torch.cat([scheduler.sigmas, scheduler.sigmas_interpol]).double()
            near = (known - (self._scale(step) ** -2 - 1) ** 0.5).abs().nan_to_num(torch.inf)
            sigma = float(known[near.argmin()])
        return self._at(float(t), sigma)

    def _at(self, t: float, sigma: float) -> Level:
        kind, root = self._head().kind, (1 + sigma**2) ** -0.5
        alpha = {"flow": 1 - sigma, "edm": 1.0}.get(kind, root)
        return Level(t, alpha, sigma if kind in ("flow", "edm") else sigma * root)

    def _scheduled(self, raw: Tensor, x: Tensor, step: int, generators: Any) -> Tensor:
        parameters = inspect.signature(self.scheduler.step).parameters
        extra: dict[str, Any] = {"return_dict": False}
        t, *rest = self.scheduler.timesteps[step:]
        if "generator" in parameters and generators is not None:
            extra["generator"] = list(generators)
        if "prev_timestep" in parameters and rest:
            extra["prev_timestep"] = rest[0]  # UnCLIP's own guess is t - 1
        return self.scheduler.step(raw, t, x, **extra)[0]
