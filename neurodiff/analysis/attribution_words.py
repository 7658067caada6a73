"""What each method of attribution asks and cannot say, and what it means where two disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

LEVEL = 0.05

UNIQUE, ALONE, SHARED, WEIGHTS, OTHER = "unique", "alone", "shared", "weights", "other"


@dataclass(frozen=True)
class Kind:
    """A method in words: ``asks`` a question, ``silent`` is what it cannot answer."""

    name: str
    kind: str
    asks: str
    silent: str


_ABLATION = (
    "What does the decoder lose when the region's responses are replaced by {with_what}, and all "
    "others stay?"
)
_REDUNDANT = (
    "It misses what other regions carry, too: the decoder then reads the same from them. A region "
    "near zero is not needed, which is less than saying that it carries nothing."
)
KINDS = {
    "leave_one_out:mean": Kind(
        "Leave one region out, mean",
        UNIQUE,
        _ABLATION.format(with_what="their mean over the training trials"),
        _REDUNDANT,
    ),
    "leave_one_out:permuted": Kind(
        "Leave one region out, permuted",
        UNIQUE,
        _ABLATION.format(with_what="those of other trials"),
        _REDUNDANT + " Responses of other trials also mislead, so losses are larger than with the "
        "mean.",
    ),
    "leave_one_out:noise": Kind(
        "Leave one region out, noise",
        UNIQUE,
        _ABLATION.format(with_what="noise of the same mean, size and smoothness"),
        _REDUNDANT,
    ),
    "leave_one_out:refit": Kind(
        "Refitted without the region",
        UNIQUE,
        "What does a decoder lose that was fitted without the region?",
        "What is left is information that no other region gives; what regions share is missed by "
        "design.",
    ),
    "reconstruction": Kind(
        "Leave one region out, reconstruction",
        UNIQUE,
        "How much worse are the final meshes or pictures when the region's responses are replaced?",
        _REDUNDANT + " Few trials are reconstructed, so intervals are wide.",
    ),
    "roi_only": Kind(
        "One region alone",
        ALONE,
        "How well does the decoder do when only this region's responses are left?",
        "It does not say that the region adds anything to the others. The decoder was fitted with "
        "all regions; a decoder of its own could read more.",
    ),
    "shapley": Kind(
        "Shapley values",
        SHARED,
        "What does the region add on average over all orders in which regions could come in?",
        "Regions that carry the same share its worth between them, so a share depends on which "
        "regions were listed.",
    ),
    "gradient_x_input": Kind(
        "Gradient x input",
        WEIGHTS,
        "How strongly does the output move with this region's responses, to first order?",
        "It describes the fitted weights: a region that only helps to cancel noise has weights, "
        "too (Haufe et al. 2014, NeuroImage 87).",
    ),
    "integrated_gradients": Kind(
        "Integrated gradients",
        WEIGHTS,
        "How does the output build up from the mean response to the measured one, by region?",
        "Like all gradients it describes the fitted decoder and not the brain; see the patterns.",
    ),
    "encoding": Kind(
        "Encoding map",
        ALONE,
        "Do the stimuli's features predict the region's responses to new stimuli?",
        "It does not ask the decoder: a region may be predicted and never used. Features that "
        "correlate with others are credited for them.",
    ),
    "patterns": Kind(
        "Activation patterns",
        ALONE,
        "Which responses go together with what the decoder reads out (Haufe patterns)?",
        "A pattern says where a decoded quantity is seen, not that the region is needed for it.",
    ),
    "variance_partition": Kind(
        "Variance partitioning",
        OTHER,
        "Which part of the explained variance does a family of features explain that others do "
        "not?",
        "The shared part belongs to no family, and noise can make a part negative.",
    ),
    "rsa": Kind(
        "Representational similarity",
        ALONE,
        "Are stimuli that the model finds alike also alike in the region's responses?",
        "It compares whole geometries and says nothing of single features.",
    ),
    "searchlight": Kind(
        "Searchlight",
        ALONE,
        "Where can a small neighbourhood alone tell the stimuli apart?",
        "Neighbourhoods overlap, so an effect looks wider than it is.",
    ),
    "frames": Kind(
        "Frames",
        OTHER,
        "Which volumes after onset does the decoder need?",
        "Neighbouring volumes carry the same noise and signal, so each alone is hardly missed.",
    ),
    "claims": Kind(
        "Claim",
        OTHER,
        "Does the decoder rely on the region, and do its responses go with the stimulus by "
        "themselves?",
        "It does not say that the region alone carries what it carries. Where one of the two is "
        "not shown, it may still be so.",
    ),
    "region_occlusion": Kind(
        "Region occlusion",
        UNIQUE,
        "How far does the answer move when a region of the scan is replaced by its usual look?",
        "A replaced region is a scan that the network never saw; part of the effect may be that.",
    ),
}


def kind_of(method: str) -> Kind:
    """A method in words; one that is not known keeps its name and says so."""
    if method in KINDS:
        return KINDS[method]
    base = method.split(":")[0]
    if base in KINDS:
        found = KINDS[base]
        return Kind(f"{found.name} ({method.split(':', 1)[1]})", *_rest(found))
    return Kind(method, OTHER, "See the notes of the method.", "")


def _rest(kind: Kind) -> tuple[str, str, str]:
    return kind.kind, kind.asks, kind.silent


def significant(rows: pd.DataFrame, level: float = LEVEL) -> list[str]:
    """Regions with q at or below the level, largest value first; p where there is no q."""
    q = rows["q"].astype(float)
    q = q.where(np.isfinite(q), rows["p"].astype(float))
    return rows[q <= level].sort_values("value", ascending=False)["roi"].astype(str).tolist()


def disagreements(results: Sequence[Any], level: float = LEVEL) -> list[str]:
    """Sentences on regions of which methods say different things, and what that means.

    A region that is informative alone and not missed when it is left out carries what others carry,
    too. A region that is missed and not informative alone helps otherwise, as by cancelling noise.
    """
    found = []
    pairs = [
        (unique, alone)
        for unique in results
        if kind_of(unique.method).kind == UNIQUE
        for alone in results
        if kind_of(alone.method).kind == ALONE
    ]
    for unique, alone in pairs:
        for (subject, stage), rows in unique.table.groupby(["subject", "stage"], sort=False):
            table = alone.table
            other = table[(table["subject"] == subject) & (table["stage"] == stage)]
            if other.empty:
                continue
            missed, told = set(significant(rows, level)), set(significant(other, level))
            both = set(rows["roi"]) & set(other["roi"])
            at = f"{subject}, {stage}" if stage else str(subject)
            names = (kind_of(alone.method).name, kind_of(unique.method).name)
            redundant = [roi for roi in other["roi"] if roi in (told - missed) & both]
            if redundant:
                found.append(
                    f"{at}: {listed(redundant)} {_be(redundant)} informative by {quoted(names[0])} "
                    f"and not missed by {quoted(names[1])}: what {_they(redundant)} "
                    f"{'carries' if len(redundant) == 1 else 'carry'}, the decoder also reads from "
                    "other regions (redundancy), or the loss is too small for these trials."
                )
            helping = [roi for roi in rows["roi"] if roi in (missed - told) & both]
            if helping:
                found.append(
                    f"{at}: {listed(helping)} {_be(helping)} missed by {quoted(names[1])} and not "
                    f"informative by {quoted(names[0])}: {_they(helping)} may serve to cancel "
                    "noise of other regions, or tell something only together with them."
                )
    return found


def shared_worth(results: Sequence[Any], level: float = LEVEL) -> list[str]:
    """Sentences on regions with a Shapley value and no loss of their own."""
    shapley = [one for one in results if kind_of(one.method).kind == SHARED]
    unique = [one for one in results if kind_of(one.method).kind == UNIQUE]
    found = []
    for one in shapley:
        for (subject, stage), rows in one.table.groupby(["subject", "stage"], sort=False):
            worth = significant(rows, level)
            missed: set[str] = set()
            asked = False
            for other in unique:
                table = other.table
                part = table[(table["subject"] == subject) & (table["stage"] == stage)]
                asked |= not part.empty
                missed |= set(significant(part, level))
            only = [roi for roi in worth if roi not in missed]
            if asked and only:
                at = f"{subject}, {stage}" if stage else str(subject)
                found.append(
                    f"{at}: {listed(only)} {'has' if len(only) == 1 else 'have'} a Shapley value "
                    "and no loss when left out: the worth is shared with other regions, and "
                    "Shapley divides it between them."
                )
    return found


def listed(names: Sequence[str], most: int = 8) -> str:
    """``"V1, V2 and V3"``; more than ``most`` are counted."""
    names = list(names)
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def quoted(name: str) -> str:
    return f"“{name}”"


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _they(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "they"
