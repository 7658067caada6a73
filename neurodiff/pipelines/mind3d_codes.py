"""Shape codes of MinD-3D: of known shapes by the tokenizer, of embeddings by the shape decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from neurodiff.geometry.bank import ShapeBank
from neurodiff.models.shape_decoder import ShapeDecoder
from neurodiff.models.triplane_vq import TriplaneVQ
from neurodiff.pipelines.mind3d_fitting import as_tensor
from neurodiff.pipelines.mind3d_settings import ShapeDecoderSettings


@torch.no_grad()
def codes_of_shapes(
    model: TriplaneVQ, bank: ShapeBank, n_points: int, *, batch: int = 64
) -> Int[np.ndarray, "n codes"]:
    """Codes of the first ``n_points`` surface points of each shape; the model's mode is kept."""
    was_training = model.training
    model.eval()
    parts = [
        model.quantise(model.encode_planes(as_tensor(bank.surface[k : k + batch, :n_points])))[0]
        for k in range(0, len(bank), batch)
    ]
    model.train(was_training)
    return torch.cat(parts).numpy()


@torch.no_grad()
def codes_of_embedding(
    decoder: ShapeDecoder,
    embedding: Float[np.ndarray, "n d"],
    settings: ShapeDecoderSettings,
    *,
    use_adapters: bool,
    generators: Sequence[torch.Generator] | None,
    batch: int = 128,
) -> Int[np.ndarray, "n codes"]:
    """The most likely codes, or with ``generators``, one an item, drawn at the temperature."""
    parts = []
    for start in range(0, len(embedding), batch):
        part = slice(start, start + batch)
        how: dict = {"greedy": True}
        if generators is not None and settings.temperature > 0:
            how = {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "generators": generators[part],
            }
        condition = torch.from_numpy(embedding[part])
        parts.append(decoder.generate(condition, use_adapters=use_adapters, **how))
    return torch.cat(parts).numpy()
