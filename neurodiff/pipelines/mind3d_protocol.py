"""Where the released MinD-3D contradicts itself: three switches, gathered under one name.

Training and use of the published code disagree in three places (reference mind3d.md, section 4).
Released weights are decoded as their code decodes them (``mind3d-2024``); ``neurodiff-1`` has each
mismatch removed, so that what is used is what was trained.

    tokens         training gives the prior fMRI tokens of length 1, sampling tokens of any length
    condition      training gives the shape decoder embeddings of length sqrt(512), use length 1
    bridge_norms   layer-norm eps 1e-3 in every number type but float32, softmax in float32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from neurodiff.core.errors import UsageError, suggest


@dataclass(frozen=True, kw_only=True)
class MinD3DProtocol:
    """Three switches and their name.

    tokens : "unit-in-training" as published; "unit" in both; "raw" in both.
    condition : "long-in-training" as published; "long" in both, length sqrt(dim); "unit" in both.
    bridge_norms : "by-dtype" as published; "plain": eps 1e-5 and the weights' number type.
    """

    name: str
    tokens: Literal["unit-in-training", "unit", "raw"]
    condition: Literal["long-in-training", "long", "unit"]
    bridge_norms: Literal["by-dtype", "plain"]

    @property
    def bridge(self) -> str:
        """The protocol that a `FeatureBridge` is built with."""
        return "mind3d-2024" if self.bridge_norms == "by-dtype" else "neurodiff-1"

    def tokens_for(self, tokens: Tensor, *, training: bool) -> Tensor:
        """Condition tokens as the prior gets them."""
        unit = self.tokens == "unit" or (training and self.tokens == "unit-in-training")
        return F.normalize(tokens, dim=-1) if unit else tokens

    def condition_for(self, embedding: Tensor, *, training: bool) -> Tensor:
        """An embedding of about length 1 as the shape decoder gets it."""
        long = self.condition == "long" or (training and self.condition == "long-in-training")
        return embedding * embedding.shape[-1] ** 0.5 if long else embedding

    def with_switches(self, switches: Sequence[str]) -> MinD3DProtocol:
        """This protocol with some switches set, each "name=value".

        Raises
        ------
        UsageError : a switch or value that there is not.
        """
        hints = get_type_hints(type(self))
        known = {one.name: get_args(hints[one.name]) for one in fields(self) if one.name != "name"}
        changed: dict[str, str] = {}
        for text in switches:
            name, _, value = text.partition("=")
            if name not in known:
                raise UsageError(
                    f"switch {text!r}: there is no {name!r}; the switches are {', '.join(known)}."
                    f"{suggest(name, known)}"
                )
            if value not in known[name]:
                raise UsageError(f"switch {name} is {value!r}; it can be {', '.join(known[name])}")
            changed[name] = value
        ours = replace(self, **changed)  # type: ignore[arg-type]
        return (
            ours if ours == self else replace(ours, name=f"{self.name} with {', '.join(switches)}")
        )


MIND3D_2024 = MinD3DProtocol(
    name="mind3d-2024",
    tokens="unit-in-training",
    condition="long-in-training",
    bridge_norms="by-dtype",
)
NEURODIFF_1 = MinD3DProtocol(
    name="neurodiff-1", tokens="unit", condition="long", bridge_norms="plain"
)
PROTOCOLS = {one.name: one for one in (MIND3D_2024, NEURODIFF_1)}


def protocol_named(name: str) -> MinD3DProtocol:
    """By name.

    Raises
    ------
    UsageError : no such protocol.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def as_dtype(name: str) -> torch.dtype:
    """ "float32", "bf16" or "fp16" as torch's type.

    Raises
    ------
    UsageError : another name.
    """
    known = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in known:
        raise UsageError(f"number type {name!r}; there are {', '.join(known)}")
    return known[name]
