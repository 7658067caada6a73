"""Two caches around a denoiser; both are denoisers, and both are hooks of diffusers' kind.

:class:`ContextCache` is exact: keys and values of cross-attention do not depend on x or the level,
so they are computed once a condition (causal bridges keep their own, by ``prepare`` and ``step``).
:class:`ModuleCache` is approximate: outputs of chosen modules are computed at some calls and
predicted at the others (DeepCache, Ma et al. 2024; Faster Diffusion, Li et al. 2024; TaylorSeer,
Liu et al. 2025).  What is kept lives in the prepared state, so guidance branches, items and runs do
not mix.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from neurodiff.diffusion.paths import Level
from neurodiff.diffusion.sampling import Denoiser

CROSS_ATTENTION = r"(.*\.)?attn2\.to_[kv]"  # of diffusers and MONAI


class _Hooked:
    """Modules of ``network`` whose full name matches ``select`` answer through ``_answer``."""

    def __init__(self, denoiser: Denoiser, network: nn.Module, select: str):
        from diffusers.hooks import HookRegistry, ModelHook

        class Hook(ModelHook):
            def __init__(self, name: str):
                super().__init__()
                self.name = name

            def new_forward(hook, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                original = hook.fn_ref.original_forward
                return self._answer(hook.name, lambda: original(*args, **kwargs))

        self.denoiser, self.network, self.active = denoiser, network, None
        self.modules = {n: m for n, m in network.named_modules() if re.fullmatch(select, n)}
        if not self.modules:
            names = [n for n, _ in network.named_modules() if n.count(".") <= 1 and n]
            raise ValueError(
                f"{select!r} matches no module: nothing would be cached. It has {names}"
            )
        for name in self.modules:
            if outer := [n for n in self.modules if name.startswith(f"{n}.")]:
                raise ValueError(f"{name!r} is inside {outer[0]!r}; select one of them")
        for name, module in self.modules.items():
            registry = HookRegistry.check_if_exists_or_initialize(module)
            registry.register_hook(Hook(name), f"neurodiff-{id(self)}")

    def remove(self) -> None:
        """Give the modules their own forward back."""
        for module in self.modules.values():
            module._diffusers_hook.remove_hook(f"neurodiff-{id(self)}", recurse=False)


class ContextCache(_Hooked):
    """Keys and values of cross-attention, once a context: exact.

    The condition is the context (items, tokens, dim) that the network attends to; x may hold a
    multiple of its rows, item-major (candidates of an item share what was prepared).
    """

    def __init__(self, denoiser: Denoiser, network: nn.Module, select: str = CROSS_ATTENTION):
        super().__init__(denoiser, network, select)

    def prepare(self, cond: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.active = None
        return cond, {name: module(cond) for name, module in self.modules.items()}

    def __call__(self, x: Tensor, level: Level, state: tuple[Tensor, dict]) -> Tensor:
        context, known = state
        times = len(x) // len(context)
        self.active = {name: kept.repeat_interleave(times, 0) for name, kept in known.items()}
        try:
            wide = context.repeat_interleave(times, 0)
            return self.denoiser(x, level, self.denoiser.prepare(wide))
        finally:
            self.active = None

    def _answer(self, name: str, compute: Callable[[], Any]) -> Any:
        return compute() if self.active is None else self.active[name]


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


@dataclass(frozen=True)
class Interval:
    """Compute every ``every``-th call, and the first ``warm_up``; 1 is no cache."""

    every: int
    warm_up: int = 1

    def computes(self, call: int, drift: float) -> bool:
        return call % self.every == 0 or call < self.warm_up


@dataclass(frozen=True)
class Schedule:
    """Compute at these calls, such as :func:`fit_schedule` finds."""

    calls: frozenset[int]

    def computes(self, call: int, drift: float) -> bool:
        return call in self.calls


@dataclass(frozen=True)
class Gate:
    """Compute when the error to expect is above ``tolerance``: the relative error of the prediction
    at the last computed call, a call since.  The batch decides as a whole, so an item's result
    depends on its batch; fix what it decided with ``Schedule``."""

    tolerance: float

    def computes(self, call: int, drift: float) -> bool:
        return drift > self.tolerance


@dataclass
class _Branch:
    """What one prepared state keeps: ``kept[name]`` holds (place, leaves of the output, tree)."""

    inner: Any
    call: int = -1
    level: Level | None = None
    kept: dict[str, list] = field(default_factory=dict)
    rates: dict[str, tuple[float, int]] = field(default_factory=dict)


class ModuleCache(_Hooked):
    """Compute chosen modules at some calls, predict their outputs at the others.

    Parameters
    ----------
    denoiser, network : the denoiser, and the module in it (MONAI or diffusers, 2D or 3D) whose
        parts are cached.
    select : regular expression of full module names, none inside another.  On MONAI's UNets
        ``"down_blocks[.][1-9]|middle_block|up_blocks[.][0-1]"`` leaves the outermost level live.
    policy : :class:`Interval`, :class:`Schedule` or :class:`Gate`.
    order : of the predictor; 0 reuses the last output, 1 is a line through the last two.
    place : coordinate of the prediction, a function of the level.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        network: nn.Module,
        select: str,
        *,
        policy: Interval | Schedule | Gate,
        order: int = 1,
        place: Callable[[Level], float] = lambda level: level.t,
    ):
        super().__init__(denoiser, network, select)
        self.policy, self.order, self.place = policy, order, place
        self.calls, self.share = 0, {}
        self.computed, self.predicted = (
            dict.fromkeys(self.modules, 0),
            dict.fromkeys(self.modules, 0),
        )

    def prepare(self, cond: Any) -> _Branch:
        return _Branch(self.denoiser.prepare(cond))

    def __call__(self, x: Tensor, level: Level, state: _Branch) -> Tensor:
        if state.level is None or level.log_snr < state.level.log_snr:  # a run begins
            state.call, state.kept, state.rates = -1, {}, {}
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

    def _answer(self, name: str, compute: Callable[[], Any]) -> Any:
        branch = self.active
        if branch is None:
            return compute()
        kept, at = branch.kept.setdefault(name, []), self.place(branch.level)
        rate, since = branch.rates.get(name, (math.inf, 0))
        if kept and not self.policy.computes(branch.call, rate * (since + 1)):
            self.predicted[name] += 1
            branch.rates[name] = rate, since + 1
            return pytree.tree_unflatten(self._predict(kept, at), kept[-1][2])
        out = compute()
        self.computed[name] += 1
        leaves, tree = pytree.tree_flatten(out)
        if kept and isinstance(self.policy, Gate):
            pairs = list(zip(self._predict(kept, at), leaves, strict=True))
            off = sum(float((guess - leaf).norm()) for guess, leaf in pairs)
            rate = off / sum(float(leaf.norm()) for leaf in leaves) / (since + 1)
        branch.rates[name] = rate, 0
        kept[:] = [*(one for one in kept if one[0] != at), (at, leaves, tree)][-self.order - 1 :]
        return out

    @staticmethod
    def _predict(kept: list, at: float) -> list[Tensor]:
        places = [place for place, _, _ in kept]
        return [newton(places, values, at) for values in zip(*(k[1] for k in kept), strict=True)]

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
        return {
            "attached": list(self.modules),
            "share": self.share,
            "computed": self.computed,
            "predicted": self.predicted,
            "calls": self.calls,
            "full_calls": self.calls - saved,
        }


def fit_schedule(
    run: Callable[[Schedule], Tensor], reference: Tensor, *, calls: int, computed: int
) -> Schedule:
    """Which ``computed`` of ``calls`` to compute so that the end of the run is near ``reference``.

    Starts from all calls and gives up, one by one, the one whose loss moves the result of ``run``
    least; about calls²/2 runs, on data apart from those that are then sampled.
    """
    left = frozenset(range(calls))
    while len(left) > computed:
        errors = {c: float((run(Schedule(left - {c})) - reference).norm()) for c in left - {0}}
        left -= {min(errors, key=errors.__getitem__)}
    return Schedule(left)
