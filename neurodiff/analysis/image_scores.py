"""Scores of decoded pictures as a table, with intervals, chance and permutation p."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from neurodiff.analysis.evaluation import NO_TRUTH
from neurodiff.analysis.image_protocols import (
    TWO_WAY,
    image_protocol_of,
    image_quantity,
    is_image_metric,
    metric_of,
)
from neurodiff.core.errors import UsageError
from neurodiff.metrics.statistics import binomial_p_legacy, bootstrap_interval, permutation_p


@dataclass(frozen=True)
class Null:
    """Mean score of one group of items under permutations of the pairing."""

    subject: str
    items: int
    means: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class ImageEvaluation:
    """Scores of a list of pictures.

    Attributes
    ----------
    table : one row an item: subject, stimulus, category, repeat, sample, cluster, the metrics,
        note; with training pictures also the likeness of the truth to the nearest of them.
    protocol : by which the scores were made.
    notes : which networks were used, what is not available and how to get it, what was counted.
    nulls : column -> scores under permuted pairings, one entry a group of items.
    """

    table: pd.DataFrame
    protocol: str
    notes: tuple[str, ...] = ()
    nulls: dict[str, list[Null]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of the scored columns; a network that makes a column is in its name."""
        return [str(name) for name in self.table if is_image_metric(str(name))]

    @property
    def no_truth(self) -> list[str]:
        """Stimuli that could not be scored, because they have no picture."""
        without = self.table["note"].str.startswith(NO_TRUTH)
        return list(dict.fromkeys(self.table["stimulus"][without]))

    def summary(self, *, subject: str | None = None, seed: int = 0) -> pd.DataFrame:
        """Index metric; columns mean, median, low, high, n, chance, p, reference.

        Subjects, samples and repeats of a stimulus are averaged first: ``n`` counts true pictures,
        and they are what the bootstrap (95 %) resamples. ``chance`` is the mean under permuted
        pairings (of SSIM: under one), ``p`` the share of permutations at least as good, one-sided;
        NaN where a permutation would need every pair of pictures (SSIM). ``reference`` is, of
        2-way, what a decoder scores that knows only the cluster. By brain-diffuser-2023 there is
        also "p binomial (legacy)", which calls about half of all noise significant.

        Parameters
        ----------
        subject : only this one; None takes all.

        Raises
        ------
        UsageError : there is no such subject.
        """
        table = self.table
        if subject is not None:
            table = table[table["subject"] == subject]
            if len(table) == 0:
                known = ", ".join(dict.fromkeys(self.table["subject"]))
                raise UsageError(f"there is no subject {subject!r} among the scores; {known}")
        rows = {name: self._row(table, name, subject, seed) for name in self.metrics}
        found = pd.DataFrame.from_dict(rows, orient="index")
        return found.rename_axis("metric").astype({"n": int})

    def _row(
        self, table: pd.DataFrame, name: str, subject: str | None, seed: int
    ) -> dict[str, float]:
        values = table.dropna(subset=[name]).groupby("stimulus", sort=False)[name].mean().to_numpy()
        nan = float("nan")
        row = dict.fromkeys(("mean", "median", "low", "high"), nan)
        if len(values):
            row |= {"mean": float(values.mean()), "median": float(np.median(values))}
        if len(values) >= 2:
            interval = bootstrap_interval(values, seed=seed)
            row |= {"low": interval.low, "high": interval.high}
        row |= {"n": len(values), "chance": nan, "p": nan, "reference": nan}
        nulls = [one for one in self.nulls.get(name, []) if subject in (None, one.subject)]
        items = sum(one.items for one in nulls)
        if items:
            null = np.sum([one.items * one.means for one in nulls], axis=0) / items
            row["chance"] = float(null.mean())
            if len(null) > 1:
                up = image_quantity(name).higher_is_better
                row["p"] = permutation_p(float(table[name].mean()), null, higher_is_better=up)
        if metric_of(name) == TWO_WAY and "cluster only" in table:
            row["reference"] = float(table["cluster only"].mean())
        if image_protocol_of(self.protocol).binomial:
            two_way = metric_of(name) == TWO_WAY and len(values) >= 2
            row["p binomial (legacy)"] = (
                binomial_p_legacy(row["mean"], len(values)) if two_way else nan
            )
        return row

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        missing = f", {len(self.no_truth)} stimuli without truth" if self.no_truth else ""
        return f"<ImageEvaluation {len(self)} items, {self.protocol}{missing}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary().to_html(float_format='%.3f')}"
