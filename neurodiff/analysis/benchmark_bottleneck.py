"""How few numbers of the brain a run's features need: the curve of BrainBits in feature space.

Each head of a Brain-Diffuser is a ridge; through its best bottleneck of r numbers
(`bridges.reduced_rank`) the features of test stimuli are predicted again, for every r, and scored
against the true ones. Where few numbers do as well as all, what looks rich in a picture is the
generator's prior.

References
----------
Mayo et al. 2024, NeurIPS (BrainBits).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_statistics import Resampling, Scorer, checked_metric
from neurodiff.analysis.benchmark_data import NOT_AVAILABLE, Opened
from neurodiff.analysis.kinds import IMAGES, pipeline_of_run
from neurodiff.analysis.sources import trials_of
from neurodiff.bridges.reduced_rank import RANKS, bottleneck_predictions
from neurodiff.core.errors import NeurodiffError
from neurodiff.core.run import Run
from neurodiff.core.seeds import item_seed, numpy_generator

COLUMNS = ("head", "numbers", "metric", "value", "low", "high", "stimuli", "share of all numbers")
MOST = 48  # test stimuli whose true features are computed
LEAST = 10
DRAWS = 1000


def bottleneck_of(run: Run, opened: Opened | str, seed: int = 0) -> tuple[pd.DataFrame, str]:
    """The curve of a run with the columns `COLUMNS`, and a sentence.

    Empty where there is none: another pipeline (the sentence is empty, too), or data, model or
    networks that are not there (the sentence says so).
    """
    nothing = pd.DataFrame(columns=list(COLUMNS))
    if pipeline_of_run(run.folder) != IMAGES:
        return nothing, ""
    if isinstance(opened, str):
        return nothing, f"{NOT_AVAILABLE}: {opened}"
    try:
        return _curve(run, opened, seed)
    except NeurodiffError as error:
        return nothing, f"{NOT_AVAILABLE}: {error}"


def bottleneck_facts(curves: Mapping[str, tuple[pd.DataFrame, str]]) -> list[dict[str, Any]]:
    """Fields of the report's section from run -> `bottleneck_of`; none where no run can have it."""
    told = {name: curve for name, curve in curves.items() if curve[1]}
    if not told:
        return []
    return [
        {
            "id": "bottleneck",
            "link": "Bottleneck",
            "title": "How few numbers of the brain would do",
            "scores": True,
            "lead": "Decoded features where each head reads the brain through a few numbers only "
            "(after BrainBits, Mayo et al. 2024). Where few do as well as all, the rest of a "
            "picture comes from the generator.",
            "tables": [(name, table, f"{said}.", False) for name, (table, said) in told.items()
                       if len(table)],
            "notes": [f"{name}: {said}" for name, (table, said) in told.items() if not len(table)],
        }
    ]  # fmt: skip


def bottleneck_table(
    heads: Mapping[str, Any],
    X: np.ndarray,
    truth: Mapping[str, np.ndarray],
    trials: pd.DataFrame,
    *,
    ranks: Sequence[int | None] = RANKS,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of each head through each bottleneck.

    Parameters
    ----------
    heads : name -> fitted `FactoredRidge` with one penalty.
    X : (n, p) rows as the heads were fitted on, one subject's.
    truth : head -> (n, ...) of the stimuli that were shown.
    trials : (n) rows with the stimulus.
    ranks : sizes; None is no bottleneck, which is told as "all". Larger ones than there are
        directions are the same as none and are left out.

    Returns
    -------
    ``value``: mean over stimuli of the correlation of predicted and true features (for fewer than
    8 features, ``feature_r``), ``low`` and ``high`` its 95 % interval over stimuli.
    """
    rows = []
    subject = str(trials["subject"].iloc[0]) if "subject" in trials else ""
    for name, bridge in heads.items():
        wide = np.asarray(truth[name], np.float64).reshape(len(X), -1)
        metric = checked_metric("auto", wide.shape[1])
        scorer = Scorer(wide, trials, metric)
        most = min(bridge.factor_.trials - 1, *X.shape[1:], wide.shape[1])
        chosen = [r for r in ranks if r is None or r < most]
        found: dict[int | None, list[np.ndarray]] = {r: [] for r in chosen}
        for _, block in bottleneck_predictions(bridge, X, chosen):
            for rank in chosen:
                found[rank].append(block[rank])
        draws = Resampling(len(scorer.ids), subject, draws=DRAWS, seed=seed, confidence=0.95)
        lines = []
        for rank in chosen:
            each = np.diagonal(scorer.matrix(np.concatenate(found[rank], axis=1)))
            low, high = (float(v) for v in draws.interval(each))
            numbers = "all" if rank is None else str(rank)
            lines.append((name, numbers, metric, float(each.mean()), low, high, len(each)))
        whole = [line[3] for line in lines if line[1] == "all"]
        rows += [
            (*line, line[3] / whole[0] if whole and whole[0] > 0 else np.nan) for line in lines
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _curve(run: Run, opened: Opened, seed: int) -> tuple[pd.DataFrame, str]:
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser, averaged

    recording, stimuli = opened
    pipe = BrainDiffuser.from_pretrained(run.folder / "model")
    test = averaged(trials_of(recording, "test"))
    ids = sorted(set(test.trials["stimulus"].astype(str)))
    if len(ids) < LEAST:
        return (
            pd.DataFrame(columns=list(COLUMNS)),
            f"{NOT_AVAILABLE}: {len(ids)} test stimuli, and {LEAST} are needed",
        )
    generator = numpy_generator(item_seed(seed, subject="", stimulus="", stage="bottleneck"))
    few = {ids[k] for k in generator.permutation(len(ids))[:MOST]}
    part = test.select(test.trials["stimulus"].astype(str).isin(few).to_numpy())
    shown = list(part.trials["stimulus"].astype(str))
    found = pipe.true_features(stimuli, list(dict.fromkeys(shown)))
    where = [list(dict.fromkeys(shown)).index(name) for name in shown]
    truth = {name: np.asarray(getattr(found, name))[where] for name in pipe.heads}
    X = pipe.input(part)
    table = bottleneck_table(pipe.heads, X, truth, part.trials.reset_index(drop=True), seed=seed)
    return table, (
        f"each head through its own best bottleneck (reduced-rank regression), in feature space; "
        f"{len(few)} of {len(ids)} test stimuli, drawn by the seed, repeats averaged"
    )
