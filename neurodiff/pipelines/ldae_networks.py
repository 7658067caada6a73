"""Networks of an LDAE: new ones of a recipe, and the recipe of those that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from neurodiff.core.errors import UsageError
from neurodiff.core.seeds import item_seed
from neurodiff.models.ldae_autoencoder import (
    autoencoder,
    autoencoder_size_of,
    with_ends,
)
from neurodiff.models.ldae_sizes import LDAESize
from neurodiff.models.ldae_slice_encoder import SliceEncoder
from neurodiff.models.ldae_unet import ShiftUNet
from neurodiff.pipelines.brain_preprocessing import BrainPreprocessing
from neurodiff.pipelines.ldae_files import LDAENetworks, shapes_of
from neurodiff.pipelines.ldae_settings import AutoencoderStage, LDAERecipe


def untrained(recipe: LDAERecipe, seed: int = 0) -> LDAENetworks:
    """New networks of the recipe's sizes, seeded; latents are not scaled."""
    size = recipe.size
    return LDAENetworks(
        seeded(lambda: autoencoder(size.autoencoder), seed, "autoencoder"),
        seeded(lambda: ShiftUNet(size.unet), seed, "decoder"),
        seeded(lambda: SliceEncoder(size.encoder), seed, "encoder"),
        1.0,
        recipe.protocol,
    )


def seeded(make: Callable[[], Any], seed: int, name: str) -> Any:
    """A network whose first weights follow from seed and name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            item_seed(seed, subject="", stimulus=name, stage="ldae weights")
        )
        return make()


def recipe_of(
    networks: LDAENetworks,
    *,
    grid: tuple[int, int, int],
    preparation: BrainPreprocessing | None,
    name: str,
) -> LDAERecipe:
    """What a recipe would say of networks, see `LDAE.from_networks`."""
    decoder, encoder = networks.decoder, networks.encoder
    if not isinstance(decoder, ShiftUNet) or encoder is None or networks.latent_scale is None:
        raise UsageError(
            "an LDAE has an autoencoder, a U-Net with shift, a semantic encoder and the scale "
            "of its latents; one of them is missing here"
        )
    shapes = shapes_of(networks.autoencoder.state_dict())
    norm = networks.autoencoder.decoder.blocks[-2]
    size = LDAESize(
        grid=grid,
        autoencoder=with_ends(
            autoencoder_size_of(shapes, groups=norm.num_groups, eps=norm.eps), networks.autoencoder
        ),
        unet=decoder.size,
        encoder=encoder.size,
    )
    old = networks.protocol == "ldae-2025"
    if preparation is None:
        preparation = BrainPreprocessing(shape=grid, orientation=None if old else "RAS")
    return LDAERecipe(
        name=name,
        protocol="ldae-2025" if old else "neurodiff-1",
        size=size,
        preparation=preparation,
        autoencoder=AutoencoderStage(),
    )
