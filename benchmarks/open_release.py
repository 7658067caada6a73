"""Opening, and going once through, a release of 1,300 trials in the hub's layout.

    python benchmarks/open_release.py                   opening: seconds, memory, bytes read
    python benchmarks/open_release.py --train FOLDER    also one epoch at small size, and its scores

Opening is measured in fresh processes on releases whose files are whole but sparse (a header, then
a hole), so that they take no disk; beside it stands reading every file whole, of a tenth of the
trials.  With --train a simulated release of 1,300 + 104 trials (3.7 GB) is written to FOLDER, and
`mind3d_small` is trained on it for one epoch a stage, decoded and scored.  Everything is simulated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TRIALS = {"train": 1300, "test": 104}
SYNSETS = ("02691156", "02828884", "02933112", "02958343", "03001627", "03211117", "03636649",
           "03691459", "04090263", "04256520", "04379243", "04401088", "04530566")  # fmt: skip
OPEN = """
import json, resource, sys, time
began = time.perf_counter()
from neurodiff.datasets.opening import open_dataset
imported, started = time.perf_counter() - began, time.process_time()
def read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
before, began = read(), time.perf_counter()
recording, stimuli = open_dataset(sys.argv[1], root=sys.argv[2], subject=1)
wall = time.perf_counter() - began
print(json.dumps({"trials": recording.n_trials, "import s": imported, "open s": wall,
    "open CPU s": time.process_time() - started, "read MB": (read() - before) / 1e6,
    "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""
WHOLE = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
paths = sorted(Path(sys.argv[2]).glob("sub-0001/npy_data/**/*.npy"))[::10]
began, started = time.perf_counter(), time.process_time()
data = np.stack([np.load(path) for path in paths])
print(json.dumps({"trials": len(paths), "import s": float("nan"),
    "open s": time.perf_counter() - began, "open CPU s": time.process_time() - started,
    "read MB": data.nbytes / 1e6,
    "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", metavar="FOLDER", type=Path)
    parser.add_argument("--recipe", default="mind3d_small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        opening(Path(folder), options.repeats)
    if options.train is not None:
        one_epoch(options.train, options.recipe, options.seed)


def opening(folder: Path, repeats: int) -> None:
    """Print what opening costs, the median of ``repeats`` processes each."""
    import pandas as pd

    shape, objaverse = folder / "shape", folder / "objaverse"
    for split, count in TRIALS.items():
        names = [f"{SYNSETS[k % 13]}/{split}{k:05d}" for k in range(count)]
        lists = shape / "annotations" / f"core_{split}_list.txt"
        sparse_trials(shape, lists, names, [f"{name}\n" for name in names], frames=10)
    for split, count in {"train": 2985, "test": 157}.items():
        names = [f"{split}{k:027x}" for k in range(count)]
        lines = [f"kind{k % 117}  000-107/{name}.glb\n" for k, name in enumerate(names)]
        sparse_trials(objaverse, objaverse / f"{split}_list.txt", names, lines, frames=8)
    cases = {
        "fMRI-Shape": (OPEN, "fmri_shape", shape),
        "fMRI-Objaverse": (OPEN, "fmri_objaverse", objaverse),
        "numpy.load, a tenth of fMRI-Shape": (WHOLE, "", shape),
    }
    rows = {}
    for name, (code, data, root) in cases.items():
        command = [sys.executable, "-c", code, data, str(root)]
        found = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(repeats)
        ]
        rows[name] = pd.DataFrame(found).median()
    print(f"opening in a fresh process, median of {repeats}; sparse files, in the file cache")
    print(pd.DataFrame(rows).T.astype({"trials": int}).to_string(float_format="%.2f"))


def sparse_trials(
    root: Path, lists: Path, names: list[str], lines: list[str], *, frames: int
) -> None:
    """A list, and for each name a file with a whole header and a hole for its values."""
    import numpy as np

    lists.parent.mkdir(parents=True, exist_ok=True)
    lists.write_text("".join(lines))
    header = {"descr": "<f4", "fortran_order": False, "shape": (frames, 256, 256)}
    for name in names:
        path = root / "sub-0001" / "npy_data" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 4 * math.prod(header["shape"]))


def one_epoch(folder: Path, recipe: str, seed: int) -> None:
    """Write the release, then fit, reconstruct and evaluate; print sizes, times and scores."""
    import resource
    import time

    from neurodiff.analysis import verbs
    from neurodiff.core.config import load
    from neurodiff.core.progress import Progress
    from neurodiff.datasets.simulated.release import write_fmri_shape
    from neurodiff.datasets.simulated.study import StudySettings, make_study
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe

    progress, took = Progress.to_stdout(every=30), {}
    root = folder / "fMRI-Shape"
    if not (root / "SIMULATED.txt").is_file():
        began = time.perf_counter()
        per_category = StudySettings(
            train_per_category=math.ceil(TRIALS["train"] / 12),
            test_per_category=math.ceil(TRIALS["test"] / 12),
            unseen_per_category=1,
        )
        study = make_study(per_category, seed=seed, workers=2, progress=progress)
        write_fmri_shape(study, root, **TRIALS, progress=progress)
        took["write"] = time.perf_counter() - began
        del study
    settings = load(recipe, MinD3DRecipe, [])
    stages = {
        "tokenizer.training": settings.tokenizer.training,
        "decoder.training": settings.decoder.training,
        "decoder.adapters": settings.decoder.adapters,
        "bridge.training": settings.bridge.training,
    }
    epoch = {k: math.ceil(TRIALS["train"] / stage.batch_size) for k, stage in stages.items()}
    changed = [f"{name}.steps={steps}" for name, steps in epoch.items()]
    began = time.perf_counter()
    run = verbs.fit(recipe, changed, folder / "runs", "fmri_shape", root, 1, seed, False)
    took["fit"] = time.perf_counter() - began
    began = time.perf_counter()
    print(verbs.reconstruct_run(Path(run), None, None, None, None))
    took["reconstruct"] = time.perf_counter() - began
    began = time.perf_counter()
    text = verbs.evaluate_run(Path(run), False)
    took["evaluate"] = time.perf_counter() - began
    print(f"\nsimulated; recipe {recipe}, seed {seed}, one epoch: {', '.join(changed)}")
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()), end=", ")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    print(text)


if __name__ == "__main__":
    main()
