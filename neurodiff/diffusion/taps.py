"""Features of a network while it denoises: what a layer knows at a level."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurodiff.diffusion.paths import Level, add_noise
from neurodiff.diffusion.sampling import item_noise


@contextmanager
def tapped(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of named modules, as they are made: ``with tapped(net, ["middle"]) as seen: net(x)``,
    then ``seen["middle"]``.  Of a tuple, the first.

    Raises
    ------
    ValueError : a layer that the network has not; it names those that there are.
    """
    modules, seen = dict(network.named_modules()), {}
    if missing := [name for name in layers if name not in modules]:
        raise ValueError(f"no layers {missing}; the network has {[n for n in modules if n]}")

    def keeper(name: str) -> Callable[..., None]:
        return lambda _, __, out: seen.update({name: out if isinstance(out, Tensor) else out[0]})

    hooks = [modules[name].register_forward_hook(keeper(name)) for name in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def features(
    denoiser: Callable[[Tensor, Level, Any], Tensor],
    network: nn.Module,
    x0: Tensor,
    layers: Sequence[str],
    levels: Sequence[Level],
    generators: Sequence[torch.Generator],
    *,
    state: Any = None,
) -> dict[tuple[str, Any], Tensor]:
    """For linear probes: by (layer, t), the mean over positions of a layer's output, (n, channels).

    x0 (n, ...) is noised to each level by its own generator, the same noise at all levels.
    Xiang et al. 2023, DDAE (probes over layers and levels).
    """
    eps = item_noise(generators)(0, x0)
    found = {}
    for level in levels:
        with tapped(network, layers) as seen:
            denoiser(add_noise(x0, eps, level), level, state)
        found |= {(name, level.t): seen[name][..., None].flatten(2).mean(2) for name in layers}
    return found
