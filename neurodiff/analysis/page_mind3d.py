"""The page of the MinD-3D demo: what was measured, against which bars, and what it looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neurodiff.analysis.demo import (
    CEILING,
    HARD,
    NEAREST,
    OURS,
    RANDOM,
    RIDGE,
    ROLES,
    SAME,
    TOKENIZER,
)
from neurodiff.analysis.page import page_provenance
from neurodiff.analysis.report import Pair, Report, ReportData
from neurodiff.core.progress import Progress
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.datasets.simulated.noise import (
    MEASURED_COMMON_SHARE,
    MEASURED_FWHM_MM,
    MEASURED_LAG1,
)
from neurodiff.datasets.simulated.subject import DEFAULT_CEILING, HARD_CEILING
from neurodiff.metrics.statistics import Interval, bootstrap_interval, way_to_ceiling

if TYPE_CHECKING:
    from PIL import Image
    from trimesh import Trimesh

    from neurodiff.analysis.demo import Outcome

N_DRAWN = 20  # fixed random draw of held-out objects; best, median and worst come on top


def write_page(outcome: Outcome, progress: Progress) -> list[str]:
    """Write ``report.html`` and ``report.json``; returns the headline findings."""
    metrics = _metrics(outcome)
    gates, findings = _gates(outcome)
    data = ReportData(
        title="MinD-3D: from fMRI to a 3D mesh",
        simulated=True,
        subtitle="A simulated subject with a planted truth: every score has a known answer",
        headline=findings,
        provenance=_provenance(outcome),
        gates=gates,
        conditions=_conditions(outcome, metrics),
        metrics=metrics,
        factor_table=_factor_table(outcome),
        pairs=_pairs(outcome),
        tables=_tables(outcome),
        notes=_notes(outcome),
    )
    progress.say("report: writing the page")
    report = Report(data)
    outcome.run.write_report_html(report.html())
    outcome.run.write_report_json(report.to_json())
    return findings


def _metrics(outcome: Outcome) -> list[dict]:
    ways = next(c for c in outcome.scores[OURS].columns if c.endswith("-way") and c != "2-way")
    n = int(ways.split("-")[0])
    rows = [
        ("CD", "1e-2 side²", False, None, "two-sided squared Chamfer distance, 2,048 points"),
        ("F@2%", "", True, None, "F-score of surface points at 2 % of the longest side"),
        ("IoU", "", True, None, "of the volumes, at 32³ points"),
        ("2-way", "", True, 0.5, "classifier of rendered views, trained apart from the target"),
        (ways, "", True, 1 / n, "the same classifier, all categories"),
        ("within", "", True, 0.5, "2-way inside the category, by rendered views"),
    ]
    keys = ("name", "unit", "higher_is_better", "chance", "description")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _conditions(outcome: Outcome, metrics: list[dict]) -> pd.DataFrame:
    rows = {}
    for name, role in ROLES.items():
        row: dict = {"role": role}
        for metric in metrics:
            row[metric["name"]] = _summary(outcome.scores[name], metric["name"])
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _summary(table: pd.DataFrame, metric: str) -> dict:
    values = table[metric].dropna().to_numpy(float) if metric in table else np.array([])
    if len(values) == 0:
        return dict.fromkeys(("mean", "median", "low", "high"), float("nan")) | {"n": 0}
    interval = bootstrap_interval(values)
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "low": interval.low,
        "high": interval.high,
        "n": len(values),
    }


def _way(outcome: Outcome, name: str, floor: str, statistic=np.mean) -> Interval:
    """Way from a floor to the ceiling in CD; NaN where the ceiling is no better than the floor."""
    cd = {k: outcome.scores[k].CD.to_numpy(float) for k in (name, floor, CEILING)}
    way = way_to_ceiling(cd[name], cd[floor], cd[CEILING], statistic=statistic)
    if statistic(cd[CEILING]) < statistic(cd[floor]):
        return way
    nan = float("nan")
    return replace(
        way, value=nan, low=nan, high=nan, note="the ceiling is no better than the floor"
    )


def _gates(outcome: Outcome) -> tuple[list[dict], list[str]]:
    """Stage by stage, so that a failing chain shows where; with the bars of the project."""
    gates: list[dict] = []

    def gate(stage, measure, value, reference=None, unit="", passed=None, note=""):
        row = (stage, measure, value, reference, unit, passed, note)
        keys = ("stage", "measure", "value", "reference", "unit", "passed", "note")
        gates.append(dict(zip(keys, row, strict=True)))

    fitted = {g["stage"]: g for g in outcome.gates}
    iou = float(outcome.scores[TOKENIZER].IoU.median())
    codes = fitted["tokenizer"]["codes in use"]
    gate("tokenizer", "median IoU, held-out objects", iou, 0.75, "", iou >= 0.75)
    gate("tokenizer", "codes in use", codes, outcome.pipe.recipe.tokenizer.size.vocab)
    guess = float(np.log(outcome.pipe.recipe.decoder.size.vocab))
    for stage in ("shape-decoder", "shape-decoder, held out", "adapters", "adapters-hard"):
        for measure, value in fitted.get(stage, {}).items():
            if measure != "stage":
                entropy = measure.startswith("cross-entropy")
                gate(stage, measure, value, note=f"a guess: {guess:.2f} nats" if entropy else "")
    accuracy = outcome.classifier_accuracy
    gate("classifier", "accuracy, held-out true objects", accuracy, note="the judge of n-way")
    two_way = float(outcome.scores[CEILING]["2-way"].mean())
    gate("ceiling", "2-way of the true features, decoded", two_way, 0.95, "", two_way >= 0.95)
    mean = float(outcome.cosines["mean of the training embeddings"].mean())
    for name, values in outcome.cosines.items():
        if name.startswith((OURS, RIDGE)):
            note = f"mean of the training embeddings: {mean:.3f}"
            gate("bridge", f"cosine to the true embedding, {name}", float(values.mean()), note=note)
    findings = []
    for suffix, noise in (("", DEFAULT_CEILING), (f", {HARD}", HARD_CEILING)):
        ours, ridge = f"{OURS}{suffix}", f"{RIDGE}{suffix}"
        ways = {}
        for floor, bar in ((RANDOM, 0.90), (SAME, 0.50)):
            for statistic, label in ((np.mean, "mean"), (np.median, "median")):
                way = _way(outcome, ours, floor, statistic)
                other = _way(outcome, ridge, floor, statistic)
                judged = not suffix and label == "mean"
                gate(
                    "whole chain",
                    f"way from {floor} to the ceiling, {label} CD, ceiling {noise}",
                    way.value,
                    bar if judged else None,
                    "",
                    bool(way.value >= bar) if judged else None,
                    f"95 % interval {way.low:.2f} to {way.high:.2f}; ridge bridge "
                    f"{other.value:.2f}",
                )
                if label == "mean":
                    ways[floor] = way
        ours_cd, ridge_cd = (outcome.scores[k].CD.to_numpy(float) for k in (ours, ridge))
        gap = bootstrap_interval((ours_cd, ridge_cd), lambda a, b: float(np.mean(b - a)))
        gate(
            "whole chain",
            f"CD of the ridge bridge minus the network's, ceiling {noise}",
            gap.value,
            0.0,
            "1e-2 side²",
            bool(gap.high >= 0) if not suffix else None,
            f"95 % interval {gap.low:.3f} to {gap.high:.3f}; above 0 the network is closer",
        )
        within = outcome.scores[ours]["within"].mean()
        findings.append(
            f"Noise ceiling {noise} a trial{' (hard case)' if suffix else ''}: in CD the decoder "
            f"goes {_percent(ways[RANDOM])} of the way from a random object to the ceiling, and "
            f"{_percent(ways[SAME])} of the way from a random object of the right category; inside "
            f"the category it tells {within:.0%} of pairs apart (chance 50 %)."
        )
    wins = [g for g in gates if g["passed"] is not None]
    met = sum(bool(g["passed"]) for g in wins)
    findings.append(f"{met} of {len(wins)} bars are met; the table of gates shows each.")
    return gates, findings


def _percent(way: Interval) -> str:
    if np.isnan(way.value) or np.isnan(way.low):
        return f"an unknown share ({way.note})"
    return f"{way.value:.0%} ({way.low:.0%} to {way.high:.0%})"


def _factor_table(outcome: Outcome) -> pd.DataFrame:
    """Mean over categories is first; then each planted factor."""
    columns = {}
    for name in (OURS, f"{OURS}, {HARD}", RIDGE, NEAREST, SAME, CEILING, TOKENIZER):
        table = outcome.factors[name]
        label = {CEILING: "ceiling", TOKENIZER: "tokenizer alone"}.get(name, name)
        columns[label] = table.set_index(table.category + ": " + table.factor)["r"]
    table = pd.DataFrame(columns)
    return pd.concat([table.mean().to_frame("mean over all factors").T, table])


def _pairs(outcome: Outcome) -> list[Pair]:
    """A fixed random draw of held-out objects, then best, median and worst by CD."""
    scores = outcome.scores[OURS].set_index("stimulus")
    test = outcome.study.ids("test")
    key = item_seed(outcome.run.seed, subject="", stimulus="", stage="pairs on the page")
    drawn = numpy_generator(key).permutation(test)[:N_DRAWN].tolist()
    order = scores.CD.sort_values().index.tolist()
    why = dict.fromkeys(drawn, "fixed random draw")
    extremes = [(order[0], "best"), (order[len(order) // 2], "median"), (order[-1], "worst")]
    pairs = []
    for name, reason in [*why.items(), *extremes]:
        stimulus = outcome.study.stimuli[name]
        truth = stimulus.mesh()
        meshes = {k: outcome.meshes[k][name] for k in (OURS, RIDGE)}
        stills = {k: still(m) if len(m.faces) else None for k, m in meshes.items()}
        row = scores.loc[name]
        pairs.append(
            Pair(
                stimulus=name,
                category=stimulus.category,
                caption=stimulus.caption,
                why=reason,
                truth=truth,
                reconstruction=meshes[OURS],
                extra={RIDGE: meshes[RIDGE]},
                truth_still=still(truth),
                reconstruction_still=stills[OURS],
                extra_stills={k: v for k, v in stills.items() if k == RIDGE and v is not None},
                scores={m: float(row[m]) for m in ("CD", "IoU", "2-way", "within")},
            )
        )
    return pairs


def still(mesh: Trimesh) -> Image.Image:
    """One picture of an object, from the side at which the viewer opens."""
    from PIL import Image

    from neurodiff.geometry.views import render_views

    picture = render_views(mesh, size=240, azimuths=(35.0,), elevations=(25.0,), distance=1.7)
    return Image.fromarray(picture[0])


def _tables(outcome: Outcome) -> list[tuple[str, pd.DataFrame, str]]:
    planted = pd.Series(
        {
            "lag-1 autocorrelation at TR 0.8 s": MEASURED_LAG1,
            "smoothness, FWHM in mm on the cortex": MEASURED_FWHM_MM,
            "share common to all vertices": MEASURED_COMMON_SHARE,
            **outcome.split_half,
        }
    )
    hard, strange = [], []
    for name in (OURS, f"{OURS}, {HARD}", RIDGE, f"{RIDGE}, {HARD}"):
        hard.append(_row(outcome, name))
    for name in (
        f"{OURS}, held-out subject",
        f"{OURS}, held-out categories",
        "ceiling, held-out categories",
        f"{RANDOM}, held-out categories",
    ):
        strange.append(_row(outcome, name))
    seconds = pd.DataFrame(
        {"part": outcome.seconds.keys(), "seconds": [round(s, 1) for s in outcome.seconds.values()]}
    )
    return [
        (
            "Default and hard case",
            pd.DataFrame(hard),
            f"Median single-trial noise ceiling {DEFAULT_CEILING} and {HARD_CEILING}. "
            "Means, medians in brackets.",
        ),
        (
            "Out of distribution",
            pd.DataFrame(strange),
            "Subject 2 decoded by subject 1's model: half of the tuning is individual. Three "
            "categories that no stage has seen; their 2-way is not defined, since the classifier "
            "does not know them.",
        ),
        (
            "The noise and its ceiling",
            planted.rename("value").rename_axis("measure").reset_index(),
            "Noise statistics were fitted to residuals of real recordings "
            "(benchmarks/fit_noise.py); repeats were recorded only to check the planted ceiling.",
        ),
        ("What each area carries", outcome.areas, "The planted truth of subject 1."),
        ("Seconds of this call", seconds, "Stages that were done before count only their loading."),
    ]


def _row(outcome: Outcome, name: str) -> dict:
    table = outcome.scores[name]
    row: dict = {"condition": name, "objects": len(table)}
    for metric in ("CD", "IoU", "2-way", "within"):
        if metric in table:
            values = table[metric].dropna()
            row[metric] = f"{values.mean():.3f} ({values.median():.3f})" if len(values) else "–"
        else:
            row[metric] = "–"
    return row


def _notes(outcome: Outcome) -> list[str]:
    return [
        "All of this is simulated. The responses are linear in stated features, so a linear "
        "decoder has a fair chance here that real cortex may not give it.",
        "The target embedding is a principal-component code of rendered views and takes the place "
        "of CLIP, whose weights cannot be shipped; no score here compares to published tables.",
        "One training seed. benchmarks/seeds.py splits the variance into seeds, subjects and "
        "stimuli, and benchmarks/noise_curve.py shows the scores over noise levels.",
        "The bridge adds to a ridge prediction (its anchor); the row of the ridge bridge shows "
        "what that anchor alone does in the same chain.",
        "Shape factors are read off the voxels by a linear reader; its own limit is the row "
        "'tokenizer alone'. Ten held-out objects a category make single factors noisy.",
        "Perceptual (LPIPS), Fréchet point-cloud and earth mover's distances are not part of the "
        "demo.",
    ]


def _provenance(outcome: Outcome) -> dict:
    return {
        **page_provenance(
            outcome.run,
            {
                "protocol": outcome.pipe.recipe.protocol,
                "wall time of this call": f"{sum(outcome.seconds.values()):.0f} s",
            },
        ),
        "objects": f"{len(outcome.study.ids('train'))} training, "
        f"{len(outcome.study.ids('test'))} held out, "
        f"{len(outcome.study.ids('unseen'))} of held-out categories",
    }
