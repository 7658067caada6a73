"""Scores of decoded pictures against what was shown: a table with one row an item.

PixCorr and SSIM (by both published definitions) of every picture, and for each network: 2-way
identification in both directions, 2-way within clusters, and the correlation distance. One answer
a stimulus is scored at a time, within (subject, repeat, sample), so that no candidate is there
twice. What the columns are by each protocol is told in `image_protocols`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neurodiff.analysis.image_scorer import PERMUTATIONS, ImageScorer, as_uint8, features
from neurodiff.analysis.image_scores import ImageEvaluation
from neurodiff.core.errors import UsageError
from neurodiff.core.progress import SILENT, Progress

if TYPE_CHECKING:
    import PIL.Image

    from neurodiff.analysis.image_networks import ImageNetworks
    from neurodiff.core.stimuli import Stimuli
    from neurodiff.features.image_networks import FeatureExtractor
    from neurodiff.pipelines.pictures import Picture

__all__ = ["ImageEvaluation", "ImageScorer", "as_uint8", "evaluate_images", "features"]


def evaluate_images(
    pictures: Sequence[Picture],
    truth: Stimuli,
    protocol: str = "neurodiff-1",
    *,
    networks: ImageNetworks | Sequence[FeatureExtractor] | None = None,
    train: Sequence[PIL.Image.Image] | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    progress: Progress = SILENT,
) -> ImageEvaluation:
    """Score decoded pictures against the pictures that were shown.

    Parameters
    ----------
    pictures : any number of subjects, repeats and samples of each stimulus.
    truth : stimuli of these ids; those without a picture are listed and not scored.
    protocol : "neurodiff-1", or "brain-diffuser-2023" or "mindeye-2023" as released.
    networks : feature extractors; None looks into the folder of ``NEURODIFF_WEIGHTS``, and what
        is missing there leaves its columns out and a note.
    train : the training pictures; give the likeness of each truth to the nearest of them, and
        clusters by k-means where the stimuli have no categories.
    seed : of permutations and clusters.
    permutations : of the pairing of pictures and reconstructions.

    Raises
    ------
    UsageError : nothing to score, an unknown protocol, a stimulus that ``truth`` does not list, or
        one answer that is there twice.
    DataError : a picture that is there and broken, or features that are not finite.
    """
    if len(pictures) == 0:
        raise UsageError("there is no picture to score; give what predict returned")
    scorer = ImageScorer(
        truth,
        [one.stimulus for one in pictures],
        protocol,
        networks=networks,
        train=train,
        seed=seed,
        permutations=permutations,
        progress=progress,
    )
    return scorer.score(pictures)
