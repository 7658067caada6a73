"""One ``evaluate`` for whatever was decoded: meshes or pictures, told by the results' type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from neurodiff.analysis.evaluation import Evaluation
    from neurodiff.analysis.image_scores import ImageEvaluation
    from neurodiff.core.stimuli import Stimuli


def evaluate(
    results: Sequence[Any],
    truth: Stimuli,
    protocol: str = "neurodiff-1",
    *,
    full: bool = False,
    seed: int = 0,
    weights: str | Path | None = None,
    progress: Progress = SILENT,
) -> Evaluation | ImageEvaluation:
    """Score what ``predict`` returned against the stimuli, one row an item.

    Parameters
    ----------
    results : meshes of ``MinD3D.predict`` or pictures of ``BrainDiffuser.predict``.
    truth : stimuli of these ids; those without a mesh or picture are listed and not scored.
    protocol : ``"neurodiff-1"``, or as released: ``"mind3d-2024"`` of meshes,
        ``"brain-diffuser-2023"`` and ``"mindeye-2023"`` of pictures.
    full : of meshes: also what takes seconds an item or needs pretrained networks.
    seed : of every draw.
    weights : folder of the networks' weights; None takes that of ``NEURODIFF_WEIGHTS``.

    Returns
    -------
    A table with ``summary()``; see `evaluation` and `image_evaluation` for the columns.

    Raises
    ------
    UsageError : nothing to score, an unknown protocol, meshes and pictures together, or a stimulus
        that ``truth`` does not list.
    DataError : a mesh, picture or weight file that is there and broken.
    MissingDataError : the folder of weights that was named is not there.
    """
    from neurodiff.analysis import evaluation
    from neurodiff.pipelines.pictures import Picture

    pictures = [isinstance(item, Picture) for item in results]
    if not any(pictures):
        return evaluation.evaluate(
            results, truth, protocol, full=full, seed=seed, weights=weights, progress=progress
        )
    if not all(pictures):
        raise UsageError("the results are pictures and something else; score them apart")
    if full:
        raise UsageError("full is for meshes; every metric of pictures is always computed")
    from neurodiff.analysis.image_evaluation import evaluate_images
    from neurodiff.analysis.image_networks import find_image_networks

    networks = find_image_networks(weights, protocol)
    return evaluate_images(
        results, truth, protocol, networks=networks, seed=seed, progress=progress
    )
