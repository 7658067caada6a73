"""Seconds of attributing 30 regions by three methods on 300 trials of MinD-3D.

    python benchmarks/attribution_speed.py [--model DIR] [--regions 30] [--trials 300] [--threads 2]
                                           [--meshes 24] [--gradients]

The pipeline is that of `mind3d_demo`, hardly trained, because speed does not ask what was learned
(or `--model`, a folder of `save_pretrained`); its trials are those of the demo's simulated subject.
Leave-one-out and region-alone ask both stages (the anchor is linear, the bridge is not), Shapley
values the anchor. "asked anew" is the baseline of the linear stage: the same conditions by
predicting from changed responses, without parts that are added up.
With `--meshes N`, leave-one-out through the whole pipeline for N trials too; with `--gradients`,
integrated gradients of the bridge. The machine's load is printed, because wall time is of that too.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch

from neurodiff.analysis.attribution import make_problem, run_method
from neurodiff.analysis.attribution_conditions import Conditions
from neurodiff.datasets.simulated.study import StudySettings, make_study
from neurodiff.pipelines.mind3d import MinD3D

PARTS = ("tokenizer", "decoder", "bridge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--recipe", default="mind3d_demo")
    parser.add_argument("--steps", type=int, default=4, help="of training; speed is that of any")
    parser.add_argument("--regions", type=int, default=30)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--meshes", type=int, default=0)
    parser.add_argument("--matched", type=int, default=20)
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--anchor-only", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    study = make_study(StudySettings(), seed=0)
    train = study.record("train")
    if asked.model:
        pipe = MinD3D.from_pretrained(asked.model)
    else:
        bank = study.bank.select(study.ids("train"))
        short = [f"{part}.training.steps={asked.steps}" for part in PARTS]
        pipe = MinD3D.from_recipe(asked.recipe, short).fit(train, study.stimuli, bank=bank)
    shown = len(study.ids("test"))
    test = study.record("test", repeats=-(-asked.trials // shown))
    test = test.select(np.arange(min(asked.trials, test.n_trials)))
    areas = list(test.rois)[: asked.regions]
    began = time.monotonic()
    problem = make_problem(pipe, test, study.stimuli, areas, train=train)
    print(
        f"{test.n_trials} trials of {test.trials.stimulus.nunique()} objects, {len(areas)} "
        f"regions, {asked.threads} threads; anchor: {asked.matched} matched sets a region"
    )
    print(f"{'':34}{'wall s':>8}{'CPU s':>8}")
    told("truth of the stimuli", began, time.process_time())
    total = time.monotonic()
    anchor, bridge = ("anchor",), ("bridge",)
    for method, options in (
        ("leave_one_out", {"matched": asked.matched, "stages": anchor}),
        ("roi_only", {"matched": asked.matched, "stages": anchor}),
        ("shapley", {"stages": anchor}),
        ("leave_one_out", {"matched": 0, "stages": bridge}),
        ("roi_only", {"matched": 0, "stages": bridge}),
    ):
        if options["stages"] == bridge and asked.anchor_only:
            continue
        began, cpu = time.monotonic(), time.process_time()
        run_method(problem, method, **options)
        told(f"{method}, {'/'.join(options.get('stages', ('anchor',)))}", began, cpu)
    print(f"{'all three methods':34}{time.monotonic() - total:8.1f}")
    conditions = Conditions(problem, ("anchor",))
    mask = np.asarray(problem.rois[areas[0]])
    for name, ask in (
        ("one condition, added up", lambda: conditions.without("anchor", mask, "mean", "x")),
        ("one condition, asked anew", lambda: anew(problem, conditions, mask)),
    ):
        began, cpu = time.monotonic(), time.process_time()
        for _ in range(5):
            ask()
        told(name, began, cpu, repeats=5)
    if asked.meshes:
        began, cpu = time.monotonic(), time.process_time()
        run_method(problem, "reconstruction", trials=asked.meshes)
        told(f"leave one out, {asked.meshes} meshes", began, cpu)
        print(f"{'all, with meshes':34}{time.monotonic() - total:8.1f}")
    if asked.gradients:
        began, cpu = time.monotonic(), time.process_time()
        run_method(problem, "integrated_gradients", stages=("bridge",))
        told("integrated gradients, bridge", began, cpu)


def anew(problem, conditions: Conditions, mask: np.ndarray) -> np.ndarray:
    data = conditions.data.copy()
    data[..., mask] = conditions.mean[..., mask]
    recording = problem.decoder._recording(data, problem.test.trials)
    return problem.decoder.pipe.ridge.predict(problem.decoder.pipe.brain.betas(recording))


def told(name: str, began: float, cpu: float, repeats: int = 1) -> None:
    wall, used = time.monotonic() - began, time.process_time() - cpu
    load = os.getloadavg()[0]
    print(f"{name:34}{wall / repeats:8.2f}{used / repeats:8.2f}   load {load:.1f}", flush=True)


if __name__ == "__main__":
    main()
