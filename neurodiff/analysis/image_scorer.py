"""Scores reconstructions against true pictures that are prepared once: see `image_evaluation`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neurodiff.analysis.evaluation import NO_TRUTH, answer_ranks
from neurodiff.analysis.image_networks import ImageNetworks, find_image_networks
from neurodiff.analysis.image_protocols import (
    BACK,
    CLUSTER_HIT,
    DISTANCE,
    NEAREST,
    SSIM_2D,
    SSIM_COLUMNS,
    TWO_WAY,
    WITHIN,
    column,
    image_protocol_of,
)
from neurodiff.analysis.image_scores import ImageEvaluation, Null
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.seeds import item_seed
from neurodiff.core.stimuli import Stimuli
from neurodiff.metrics.clusters import cluster_hits, cluster_only_rate, kmeans_clusters
from neurodiff.metrics.identification import pairing_rates, similarities
from neurodiff.metrics.images import SSIM_SIZE, Windows, both_ssim, grey, square
from neurodiff.metrics.statistics import pairing_null

if TYPE_CHECKING:
    import PIL.Image

    from neurodiff.features.image_networks import FeatureExtractor
    from neurodiff.pipelines.pictures import Picture

Known = dict[tuple, np.ndarray]  # (shape, hash) of a picture -> its row of features
FLAT = "one colour: PixCorr counts 0"
PERMUTATIONS = 1000
SHORT = 4096  # numbers in a row of features that is remembered
BLOCK = 64  # pictures handed to a network at a time
PIXELS = SSIM_SIZE  # on a side, of PixCorr and SSIM


class ImageScorer:
    """The true pictures, prepared once, to score any number of sets of reconstructions.

    Parameters are those of ``evaluate_images``; ``ids`` are the stimuli that will be scored.
    """

    def __init__(
        self,
        truth: Stimuli,
        ids: Sequence[str],
        protocol: str = "neurodiff-1",
        *,
        networks: ImageNetworks | Sequence[FeatureExtractor] | None = None,
        train: Sequence[PIL.Image.Image] | None = None,
        seed: int = 0,
        permutations: int = PERMUTATIONS,
        progress: Progress = SILENT,
    ) -> None:
        self.rules = image_protocol_of(protocol)
        if permutations < 2:
            raise UsageError(f"permutations is {permutations}; at least 2 are needed")
        if networks is None:
            networks = find_image_networks(protocol=protocol)
        known = networks if isinstance(networks, ImageNetworks) else ImageNetworks(tuple(networks))
        if known.protocol not in (None, protocol):
            raise UsageError(
                f"the networks take pictures as {known.protocol} does, and the protocol is "
                f"{protocol}; find them with protocol={protocol!r}"
            )
        names = [one.name for one in known.found]
        if len(set(names)) < len(names):
            raise UsageError(f"two networks have one name among {names}; name them apart")
        self.networks, self.notes = known.found, list(known.lines())
        self.seed, self.permutations, self.progress = seed, permutations, progress
        self.stimuli = {name: truth[name] for name in dict.fromkeys(ids)}
        shown = {}
        for name, stimulus in progress.over(self.stimuli.items(), "true pictures"):
            try:
                shown[name] = as_uint8(stimulus.image())
            except MissingDataError:
                continue
        self.place = {name: k for k, name in enumerate(shown)}
        self.pixels = [self._square(picture) for picture in shown.values()]
        for name, picture in zip(shown, self.pixels, strict=True):
            if np.ptp(picture) == 0:
                raise DataError(f"the picture of stimulus {name!r} is one colour; check its file")
        pictures = [self._stored(picture) for picture in shown.values()]
        self._known: dict[str, Known] = {one.name: {} for one in self.networks}
        self.features = {one.name: self.rows(one, pictures) for one in self.networks}
        self.train: dict[str, np.ndarray] = {}
        self.train_pictures = [] if train is None else list(train)
        if self.train_pictures and self.networks:
            # of one network: those of all would be gigabytes for a whole training set
            judge = next(one for one in self.networks if one.name == self.judge)
            arrays = [self._stored(as_uint8(image)) for image in self.train_pictures]
            self.train = {judge.name: self.rows(judge, arrays)}
        self.cluster = self._clusters()

    def score(self, pictures: Sequence[Picture]) -> ImageEvaluation:
        """One row a picture; see ``evaluate_images``."""
        if len(pictures) == 0:
            raise UsageError("there is no picture to score; give what predict returned")
        strange = [one.stimulus for one in pictures if one.stimulus not in self.stimuli]
        if strange:
            raise UsageError(f"stimulus {strange[0]!r} is not among those prepared for scoring")
        table = self._frame(pictures)
        scored = np.flatnonzero(table["stimulus"].isin(list(self.place)).to_numpy())
        nulls: dict[str, list[Null]] = {}
        if len(scored) == 0:
            return ImageEvaluation(table, self.rules.name, tuple(self.notes), nulls)
        kept = [pictures[k] for k in scored.tolist()]
        arrays = [as_uint8(one.image) for one in kept]
        groups = self._groups(table.iloc[scored])
        self._pixel_scores(table, scored, arrays, groups, nulls)
        arrays = [self._stored(picture) for picture in arrays]
        for network in self.networks:
            self._network_scores(table, scored, arrays, groups, nulls, network)
        table["note"] = table.pop("note")  # the last column
        notes = list(self.notes)
        flat = int((table["note"] == FLAT).sum())
        if flat:
            notes.append(f"{flat} reconstructions are of one colour; their PixCorr counts 0")
        return ImageEvaluation(table, self.rules.name, tuple(notes), nulls)

    def rows(self, network: FeatureExtractor, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Features of pictures; those that were asked for before are remembered."""
        return features(network, pictures, self.progress, known=self._known[network.name])

    def input_of(self, image: PIL.Image.Image) -> np.ndarray:
        """A picture as networks are handed it by the protocol, uint8."""
        return self._stored(as_uint8(image))

    @property
    def judge(self) -> str:
        """The network by which pictures are put into clusters and retrieved: CLIP if it is there,
        else the last."""
        return next((n for n in self.features if n.startswith("CLIP")), self.networks[-1].name)

    # ------------------------------------------------------------------------------- parts

    def _frame(self, pictures: Sequence[Picture]) -> pd.DataFrame:
        table = pd.DataFrame(
            {
                "subject": [one.subject for one in pictures],
                "stimulus": [one.stimulus for one in pictures],
                "category": [self.stimuli[one.stimulus].category for one in pictures],
                "repeat": [one.repeat for one in pictures],
                "sample": [one.sample for one in pictures],
            }
        )
        twice = table.duplicated(["subject", "stimulus", "repeat", "sample"])
        if twice.any():
            row = table[twice].iloc[0]
            raise UsageError(
                f"subject {row.subject}, stimulus {row.stimulus!r}, repeat {row['repeat']}, sample "
                f"{row['sample']} is there twice; an answer counts once"
            )
        if self.cluster:
            table["cluster"] = [self.cluster.get(name, "") for name in table["stimulus"]]
        lacking = ~table["stimulus"].isin(list(self.place))
        table["note"] = np.where(lacking, f"{NO_TRUTH}: the stimulus has no picture", "")
        return table

    def _groups(self, scored: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray, int]]:
        """Subject, positions among the scored in order of the stimuli, places of the truths, seed.

        The seed depends on the stimuli alone: answers to the same pictures are permuted together.
        """
        found = []
        at = {index: k for k, index in enumerate(scored.index)}
        ranked = scored.assign(answer=answer_ranks(scored))
        for (subject, *_), part in ranked.groupby(["subject", "answer", "sample"], sort=False):
            part = part.sort_values("stimulus")
            names = list(part["stimulus"])
            key = item_seed(self.seed, subject="", stimulus="\n".join(names), stage="pairing")
            rows = np.array([at[index] for index in part.index])
            found.append((str(subject), rows, np.array([self.place[n] for n in names]), key))
        return found

    def _pixel_scores(self, table, scored, arrays, groups, nulls) -> None:
        for name in ("PixCorr", SSIM_2D, SSIM_COLUMNS):
            table[name] = np.nan
        where = {name: table.columns.get_loc(name) for name in ("PixCorr", SSIM_2D, SSIM_COLUMNS)}
        note = table.columns.get_loc("note")
        made = [self._square(picture) for picture in arrays]
        flat = np.array([np.ptp(picture) == 0 for picture in made])
        table.iloc[scored[flat], note] = FLAT
        for subject, rows, truths, key in groups:
            n = len(rows)
            scores = np.zeros((n, n))
            seen = np.flatnonzero(~flat[rows])
            if len(seen):
                scores[seen] = similarities(
                    np.stack([made[rows[k]].ravel() for k in seen]),
                    np.stack([self.pixels[k].ravel() for k in truths]),
                )
            table.iloc[scored[rows], where["PixCorr"]] = np.diagonal(scores)
            self._null(nulls, "PixCorr", subject, scores, key)
            right, wrong = self._ssim([made[k] for k in rows], truths, key)
            for k, name in enumerate((SSIM_2D, SSIM_COLUMNS)):
                table.iloc[scored[rows], where[name]] = right[:, k]
                if n > 1:
                    one = Null(subject, n, wrong[:, k].mean(keepdims=True))
                    nulls.setdefault(name, []).append(one)

    def _ssim(self, made: list, truths: np.ndarray, key: int) -> tuple[np.ndarray, np.ndarray]:
        """Both SSIM of each item with its truth, and with another truth drawn at random.

        Items are taken in a random order, each compared with the truth before it as well: one
        round through all of them, so that none meets its own, and one truth is in memory.
        """
        order = np.random.default_rng(key).permutation(len(made))
        right, wrong = np.zeros((len(made), 2)), np.zeros((len(made), 2))
        last = Windows.of(grey(self.pixels[truths[order[-1]]]))
        for k in self.progress.over(order.tolist(), f"SSIM, {len(made)} pictures"):
            true = Windows.of(grey(self.pixels[truths[k]]))
            found = Windows.of(grey(made[k]))
            right[k], wrong[k] = both_ssim(found, true), both_ssim(found, last)
            last = true
        return right, wrong

    def _network_scores(self, table, scored, arrays, groups, nulls, network) -> None:
        name = network.name
        made, true = self.rows(network, arrays), self.features[name]
        inside = (WITHIN, CLUSTER_HIT) if self.cluster else ()
        labels = [column(metric, name) for metric in (TWO_WAY, BACK, *inside, DISTANCE)]
        for label in labels:
            table[label] = np.nan
        if name in self.train:
            near = column(NEAREST, name)
            table[near] = np.nan
            nearest = alike(true, self.train[name], name).max(axis=1)
            place = [self.place[s] for s in table["stimulus"].iloc[scored]]
            table.iloc[scored, table.columns.get_loc(near)] = nearest[place]
        among = alike(true, true, name) if self.cluster else None
        if self.cluster and "cluster only" not in table:
            table["cluster only"] = np.nan
        for subject, rows, truths, key in groups:
            scores = alike(made[rows], true[truths], name)
            values = {column(DISTANCE, name): 1 - scores}
            clusters = [self.cluster[list(self.place)[t]] for t in truths] if self.cluster else None
            if len(rows) > 1:
                ties = self.rules.ties
                values[column(TWO_WAY, name)] = pairing_rates(scores, ties=ties)
                values[column(BACK, name)] = pairing_rates(
                    scores, vary="reconstructions", ties=ties
                )
                if clusters is not None and among is not None:
                    here = among[np.ix_(truths, truths)]
                    values[column(CLUSTER_HIT, name)] = cluster_hits(scores, here, clusters)
                    values[column(WITHIN, name)] = pairing_rates(scores, groups=clusters, ties=ties)
                    only = table.columns.get_loc("cluster only")
                    table.iloc[scored[rows], only] = cluster_only_rate(clusters)
            for label, matrix in values.items():
                table.iloc[scored[rows], table.columns.get_loc(label)] = np.diagonal(matrix)
                groups_of = clusters if label == column(WITHIN, name) else None
                self._null(nulls, label, subject, matrix, key, groups_of)

    def _null(self, nulls, label, subject, matrix, key, groups=None) -> None:
        items = int((~np.isnan(np.diagonal(matrix))).sum())
        if items > 1:
            means = pairing_null(matrix, self.permutations, key, groups=groups)
            nulls.setdefault(label, []).append(Null(subject, items, means))

    def _clusters(self) -> dict[str, str]:
        """Categories where there are at least two; else k-means of training features."""
        names = list(self.place)
        categories = [self.stimuli[name].category for name in names]
        if len(set(categories)) > 1 and all(categories):
            self.notes.append(f"clusters are the {len(set(categories))} categories of the stimuli")
            return dict(zip(names, categories, strict=True))
        if not self.train or not names:
            self.notes.append(
                "no scores within clusters: the stimuli have no categories; give the training "
                "pictures (train) for clusters by k-means"
            )
            return {}
        judge = self.judge
        train = self.train[judge]
        count = min(self.rules.clusters, max(1, len(train) // 10))
        found = kmeans_clusters(
            train,
            self.features[judge],
            count,
            seed=item_seed(self.seed, subject="", stimulus="", stage="clusters") % 2**32,
        )
        self.notes.append(f"clusters are {count} of k-means, by {judge} of the training pictures")
        return {name: str(k) for name, k in zip(names, found, strict=True)}

    def _square(self, picture: np.ndarray) -> np.ndarray:
        if self.rules.stored is not None:
            picture = square(picture, self.rules.stored, rule=self.rules.pixels)
        return square(picture, PIXELS, rule=self.rules.pixels)

    def _stored(self, picture: np.ndarray) -> np.ndarray:
        """What networks are handed: uint8, at the size in which a protocol holds pictures."""
        stored = self.rules.stored
        return picture if stored is None else square(picture, stored, rule="bilinear")


def as_uint8(image: Any) -> np.ndarray:
    """A picture as uint8 (h, w, 3)."""
    return np.asarray(image.convert("RGB"))


def features(
    network: FeatureExtractor,
    pictures: Sequence[np.ndarray],
    progress: Progress = SILENT,
    *,
    known: Known | None = None,
) -> np.ndarray:
    """Rows of a network for pictures of any sizes; pictures of one size go in together.

    A picture that is there twice is computed once, so that equal pictures have equal rows.

    Parameters
    ----------
    known : rows of pictures that were computed before; new ones are added, unless they are long.

    Raises
    ------
    DataError : the network returns other than one finite row a picture.
    """
    known = {} if known is None else known
    keys = [(p.shape, hashlib.sha256(p.tobytes()).digest()) for p in pictures]
    rows = {key: known[key] for key in keys if key in known}
    by_size: dict[tuple[int, ...], dict] = {}
    for key, picture in zip(keys, pictures, strict=True):
        if key not in rows:
            by_size.setdefault(picture.shape, {})[key] = picture
    blocks = [
        list(fresh.items())[start : start + BLOCK]
        for fresh in by_size.values()
        for start in range(0, len(fresh), BLOCK)
    ]
    new = sum(len(block) for block in blocks)
    for block in progress.over(blocks, f"{network.name}, {new} pictures"):
        found = np.asarray(network(np.stack([picture for _, picture in block])))
        if found.ndim != 2 or len(found) != len(block) or not np.isfinite(found).all():
            raise DataError(
                f"{network.name} returned {found.shape} for {len(block)} pictures, or values that "
                "are not finite; expected one finite row a picture"
            )
        for (key, _), row in zip(block, found, strict=True):
            rows[key] = row
            if len(row) <= SHORT:
                known[key] = row
    return np.stack([rows[key] for key in keys]) if keys else np.zeros((0, 1), np.float32)


def alike(made: np.ndarray, true: np.ndarray, name: str) -> np.ndarray:
    """Correlations of rows of a network.

    Raises
    ------
    DataError : a row has none; names the network.
    """
    try:
        return similarities(made, true)
    except ValueError as error:
        raise DataError(
            f"features of {name}: {error}; check the pictures and the weights"
        ) from None
