"""Two caches around a denoiser; both are denoisers, and both are hooks of diffusers' kind.

:class:`ContextCache` is exact: keys and values of cross-attention do not depend on x or the level,
so they are computed once a condition (causal bridges keep their own, by ``prepare`` and ``step``).
:class:`ModuleCache` is approximate: outputs of chosen modules are computed at some calls and
predicted at the others (DeepCache, Ma et al. 2024; Faster Diffusion, Li et al. 2024; TaylorSeer,
Liu et al. 2025).  What is kept lives in the prepared state and for one ``sample``, so guidance
branches and runs do not mix; outside of ``sample`` a module cache computes everything.
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.sampling import RUN, Denoiser

CROSS_ATTENTION = r"(.*\.)?attn2\.to_[kv]"  # of diffusers and MONAI


class _Hooked:
    """Modules of ``network`` whose full name matches ``select`` answer through ``_answer``."""

    def __init__(self, denoiser: Denoiser, network: nn.Module, select: str = CROSS_ATTENTION):
        from diffusers.hooks import HookRegistry, ModelHook

        class Hook(ModelHook):
            def new_forward(hook, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                original = hook.fn_ref.original_forward
                return self._answer(hook.name, lambda: original(*args, **kwargs), args)

        self.denoiser, self.network, self.active = denoiser, network, None
        self.modules = {n: m for n, m in network.named_modules() if re.fullmatch(select, n)}
        if not self.modules:
            names = [n for n, _ in network.named_modules() if n.count(".") <= 1 and n]
            raise ValueError(f"{select!r} matches no module: nothing to cache among {names}")
        for name in self.modules:
            if outer := [n for n in self.modules if name.startswith(f"{n}.")]:
                raise ValueError(f"{name!r} is inside {outer[0]!r}; select one of them")
        for name, module in self.modules.items():
            hook, registry = Hook(), HookRegistry.check_if_exists_or_initialize(module)
            hook.name = name
            registry.register_hook(hook, f"neurodiff-{id(self)}")

    def remove(self) -> None:
        """Give the modules their own forward back."""
        for module in self.modules.values():
            module._diffusers_hook.remove_hook(f"neurodiff-{id(self)}", recurse=False)


class ContextCache(_Hooked):
    """Keys and values of cross-attention, once a context: exact.

    The condition is the context (items, tokens, dim) that the network attends to; x may hold a
    multiple of its rows, item-major (candidates of an item share what was prepared).
    """

    def prepare(self, cond: Tensor) -> dict[int, tuple[Any, dict[str, Tensor]]]:
        known = {name: module(cond) for name, module in self.modules.items()}
        return {len(cond): (cond, known)}

    def __call__(self, x: Tensor, level: Level, state: dict) -> Tensor:
        if len(x) not in state:  # rows for the candidates, once
            context, known = next(iter(state.values()))
            times, rest = divmod(len(x), len(context))
            if rest:
                raise ValueError(f"{len(x)} rows are no multiple of {len(context)} contexts")
            wide = {name: kept.repeat_interleave(times, 0) for name, kept in known.items()}
            state[len(x)] = context.repeat_interleave(times, 0), wide
        context, _ = self.active = state[len(x)]
        try:
            return self.denoiser(x, level, self.denoiser.prepare(context))
        finally:
            self.active = None

    def _answer(self, name: str, compute: Callable[[], Any], args: tuple) -> Any:
        if self.active is None:
            return compute()
        context, known = self.active
        if args[0].shape != context.shape or not torch.equal(args[0], context):
            raise ValueError(f"{name} sees a part or a projection of the context: not cacheable")
        return known[name]


def newton(places: Sequence[Any], values: Sequence[Tensor], at: Any) -> Tensor:
    """Newton's divided differences: exact where values are a polynomial of degree < len(places).

    Examples
    --------
    >>> float(newton([4, 7, 10], [torch.tensor(t * t - 3.0 * t) for t in (4, 7, 10)], 15))
    180.0
    """
    table = list(values)
    for order in range(1, len(places)):
        for i in range(len(places) - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (places[i] - places[i - order])
    out = table[-1]
    for i in range(len(places) - 2, -1, -1):
        out = table[i] + (at - places[i]) * out
    return out


Policy = Callable[[int, Callable[[], float]], bool]  # (call, drift) -> compute?


def interval(every: int, warm_up: int = 1) -> Policy:
    """Compute every ``every``-th call, and the first ``warm_up``; 1 is no cache."""
    return lambda call, drift: call % every == 0 or call < warm_up


def schedule(calls: Collection[int]) -> Policy:
    """Compute at these calls, such as :func:`fit_schedule` finds."""
    return lambda call, drift: call in calls


def gate(tolerance: float) -> Policy:
    """Compute when the error to expect is above ``tolerance``: the relative error that predicting
    the last computed output would have had, times the way since over the way before it.

    The batch decides as a whole, so an item's result depends on its batch.
    """
    return lambda call, drift: drift() > tolerance


@dataclass
class _Branch:
    """What one prepared state keeps: ``kept[name]`` holds (place, leaves, tree) of outputs."""

    inner: Any
    run: object = None
    call: int = -1
    level: Level | None = None
    kept: dict[str, list] = field(default_factory=dict)


class ModuleCache(_Hooked):
    """Compute chosen modules at some calls, predict their outputs at the others.

    Parameters
    ----------
    denoiser, network : the denoiser, and the module in it (MONAI or diffusers, 2D or 3D) whose
        parts are cached.
    select : regular expression of full module names, none inside another.  On MONAI's UNets
        ``"down_blocks[.][1-9]|middle_block|up_blocks[.][0-1]"`` leaves the outermost level live.
    policy : :func:`interval`, :func:`schedule` or :func:`gate`.
    order : of the predictor; 0 reuses the last output, 1 is a line through the last two.
    place : coordinate of the prediction, a function of the level.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        network: nn.Module,
        select: str,
        *,
        policy: Policy,
        order: int = 1,
        place: Callable[[Level], float] = lambda level: level.t,
    ):
        super().__init__(denoiser, network, select)
        self.policy, self.order, self.place = policy, order, place
        self.calls, self.share = 0, {}
        self.computed = dict.fromkeys(self.modules, 0)
        self.predicted = dict.fromkeys(self.modules, 0)

    def prepare(self, cond: Any) -> _Branch:
        return _Branch(self.denoiser.prepare(cond))

    def __call__(self, x: Tensor, level: Level, state: _Branch) -> Tensor:
        if RUN.get() is None or RUN.get() is not state.run:  # a run begins, or none is going on
            state.call, state.kept, state.run = -1, {}, RUN.get()
        state.call, state.level, self.active = state.call + 1, level, state
        self.calls += 1
        try:
            if self.share:
                return self.denoiser(x, level, state.inner)
            with FlopCounterMode(display=False) as counter:  # the first call computes everything
                mean = self.denoiser(x, level, state.inner)
            counts = {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}
            for name in self.modules:
                own = [count for place, count in counts.items() if place.endswith(f".{name}")]
                self.share[name] = max(own, default=0) / max(counts.get("Global", 0), 1)
            return mean
        finally:
            self.active = None

    def _answer(self, name: str, compute: Callable[[], Any], args: tuple) -> Any:
        branch = self.active
        if branch is None:
            return compute()
        kept, at = branch.kept.setdefault(name, []), self.place(branch.level)
        if kept and not self.policy(branch.call, lambda: self._drift(kept, at)):
            self.predicted[name] += 1
            return pytree.tree_unflatten(self._predict(kept, at), kept[-1][2])
        self.computed[name] += 1
        out = compute()
        kept[:] = [*(one for one in kept if one[0] != at), (at, *pytree.tree_flatten(out))]
        del kept[: -self.order - 2]  # one more than a prediction takes, to judge the last one by
        return out

    def _predict(self, kept: list, at: float) -> list[Any]:
        """Leaves at a place; differences of half precision are taken in single."""
        kept, guesses = kept[-self.order - 1 :], []
        for values in zip(*(leaves for _, leaves, _ in kept), strict=True):
            last = values[-1]
            if isinstance(last, Tensor) and last.is_floating_point() and len(kept) > 1:
                wide = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in values]
                last = newton([place for place, _, _ in kept], wide, at).to(last.dtype)
            guesses.append(last)
        return guesses

    def _drift(self, kept: list, at: float) -> float:
        if len(kept) < 2:
            return math.inf
        (before, _, _), (last, leaves, _) = kept[-2:]
        pairs = zip(self._predict(kept[:-1], last), leaves, strict=True)
        pairs = [(guess, leaf) for guess, leaf in pairs if isinstance(leaf, Tensor)]
        off = sum(float((guess - leaf).norm()) for guess, leaf in pairs)
        size = sum(float(leaf.norm()) for _, leaf in pairs)
        return off / max(size, 1e-30) * abs((at - last) / (last - before))

    def report(self) -> dict[str, Any]:
        """What was attached and what it saved.

        ``share`` of the FLOPs of a call by module; ``computed`` and ``predicted`` outputs by
        module; ``calls`` of the denoiser, and ``full_calls``, what they cost in uncached calls.

        Raises
        ------
        RuntimeError : the denoiser ran, and a module was never asked: the network has another path.
        """
        asked = {name: self.computed[name] + self.predicted[name] for name in self.modules}
        if self.calls and (idle := [name for name, count in asked.items() if not count]):
            raise RuntimeError(f"the network never called {idle}; they cannot be cached")
        saved = sum(self.share.get(name, 0) * count for name, count in self.predicted.items())
        told = {name: getattr(self, name) for name in ("share", "computed", "predicted", "calls")}
        return {"attached": list(self.modules), **told, "full_calls": self.calls - saved}


def fit_schedule(
    run: Callable[[Policy], Tensor], reference: Tensor, *, calls: int, computed: int
) -> frozenset[int]:
    """Which ``computed`` of ``calls`` to compute so that the end of the run is near ``reference``.

    Starts from all calls and gives up, one by one, the one whose loss moves the result of ``run``
    least; about calls²/2 runs, on data apart from those that are then sampled.
    """
    left = frozenset(range(calls))
    while len(left) > computed:
        errors = {c: float((run(schedule(left - {c})) - reference).norm()) for c in left - {0}}
        left -= {min(errors, key=errors.__getitem__)}
    return left
