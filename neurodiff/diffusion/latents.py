"""Latents of a frozen autoencoder, in the units of the diffusion: the only place of a scale."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """``encode`` = (encoder(x) - mean) / std, ``decode`` its inverse.

    ``mean`` and ``std`` are numbers or tensors that broadcast against a batch of latents; a
    published factor f (0.18215, 0.8730) is ``std = 1 / f``.  For a stochastic encoder, pass the
    function that gives what training should see: the mean, or a draw with the item's generator.
    """

    encoder: Callable[[Any], Tensor]
    decoder: Callable[[Tensor], Any]
    mean: Any = 0.0
    std: Any = 1.0

    @classmethod
    @torch.no_grad()
    def fit(cls, encoder, decoder, batches: Iterable[Any], *, per: str = "channel") -> "Latents":
        """Mean and SD over all items, positions and, ``per`` "all", channels too.

        ``per`` "channel" keeps axis 1, "dimension" every axis but the items' (whitening of codes).
        Raises ValueError: fewer than two values for each, or values that do not vary.
        """
        n, mean, power = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            z = encoder(batch).double()
            axes = {"all": range(z.ndim), "channel": (0, *range(2, z.ndim)), "dimension": (0,)}
            axes = tuple(axes[per])
            count = z.numel() // z.mean(axes).numel()
            far = z.mean(axes, keepdim=True) - mean
            power = power + ((z - z.mean(axes, keepdim=True)) ** 2).sum(axes, keepdim=True)
            power = power + far**2 * (n * count / (n + count))
            mean, n = mean + far * (count / (n + count)), n + count
        std = (power / max(n - 1, 1)).sqrt()
        if n < 2 or not (std > 0).all():
            raise ValueError(f"latents of {n} values do not vary in every {per}: no scale to fit")
        return cls(encoder, decoder, mean, std)

    def encode(self, x: Any) -> Tensor:
        z = self.encoder(x)
        return (z - torch.as_tensor(self.mean).to(z)) / torch.as_tensor(self.std).to(z)

    def decode(self, z: Tensor) -> Any:
        return self.decoder(z * torch.as_tensor(self.std).to(z) + torch.as_tensor(self.mean).to(z))
