"""Opening and averaging the in-mask trials of one NSD subject: seconds and peak memory.

    python benchmarks/open_nsd.py                              subject 1's volume, 37 sessions
    python benchmarks/open_nsd.py --sessions 4 --voxels 2000   smaller
    python benchmarks/open_nsd.py --kind hdf5

The files are synthetic, of the published shape and type: int16 noise inside the mask, zeros
outside it, a design of 10,000 pictures three times each.  Each row is a fresh process; beside
ours, every session is read as float64 through `get_fdata` and kept, as the released preparation
script does, for a few sessions (memory would not hold them all).  Peak memory includes the
interpreter and its libraries.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPE, VOXELS, TRIALS = (81, 104, 83), 15724, 750
OURS = """
import json, resource, sys, time
from neurodiff.datasets.opening import open_dataset
began, started = time.perf_counter(), time.process_time()
recording, _ = open_dataset("nsd", root=sys.argv[1], subject=1, sessions=int(sys.argv[2]),
                            averaged=True)
print(json.dumps({"pictures": recording.n_trials, "sum": float(recording.data.sum(dtype=float)),
    "wall s": time.perf_counter() - began, "CPU s": time.process_time() - started,
    "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""
PLAIN = """
import json, resource, sys, time
from pathlib import Path
import nibabel, numpy as np, scipy.io
root, sessions = Path(sys.argv[1]), int(sys.argv[2])
began, started = time.perf_counter(), time.process_time()
design = scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
mask = nibabel.load(roi).get_fdata() > 0
fmri = np.zeros((sessions * 750, mask.sum()))
folder = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
for k in range(sessions):
    betas = nibabel.load(folder / f"betas_session{k + 1:02d}.nii.gz").get_fdata()
    fmri[k * 750 : (k + 1) * 750] = betas[mask].T
order, shown = design["masterordering"][0], {}
for trial in range(len(fmri)):
    shown.setdefault(int(order[trial]), []).append(trial)
means = np.stack([fmri[rows].mean(axis=0) / 300 for rows in shown.values()])
print(json.dumps({"pictures": len(means), "sum": float(means.sum()),
    "wall s": time.perf_counter() - began, "CPU s": time.process_time() - started,
    "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=37)
    parser.add_argument("--voxels", type=int, default=VOXELS, help="inside the mask")
    parser.add_argument("--kind", choices=("nifti", "hdf5"), default="nifti")
    parser.add_argument("--plain-sessions", type=int, default=2, help="read the plain way, or 0")
    parser.add_argument("--folder", type=Path, help="where the files go, and stay")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        plain = min(options.plain_sessions, options.sessions) if options.kind == "nifti" else 0
        write(root, options.sessions, options.voxels, options.kind, options.seed)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e9
        print(
            f"synthetic {options.kind}, {options.sessions} sessions of {TRIALS} trials, "
            f"{options.voxels} of {' x '.join(map(str, SHAPE))} voxels, seed {options.seed}, "
            f"{size:.2f} GB on disk"
        )
        rows = {f"ours, {options.sessions} sessions": run(OURS, root, options.sessions)}
        if plain:
            rows[f"ours, {plain} sessions"] = run(OURS, root, plain)
            rows[f"get_fdata, {plain} sessions"] = run(PLAIN, root, plain)
    import pandas as pd

    print(pd.DataFrame(rows).T.astype({"pictures": int}).to_string(float_format="%.2f"))


def run(code: str, root: Path, sessions: int) -> dict[str, float]:
    """What a fresh process printed."""
    command = [sys.executable, "-c", code, str(root), str(sessions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def write(root: Path, sessions: int, voxels: int, kind: str, seed: int) -> None:
    """Design, mask and betas in the published layout; NIfTI packed lightly, HDF5 by voxel."""
    import h5py
    import nibabel
    import numpy as np
    import scipy.io

    rng = np.random.default_rng(seed)
    design = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    design.parent.mkdir(parents=True, exist_ok=True)
    order = rng.permutation(np.repeat(np.arange(1, 10001), 3)).astype(np.uint16)
    pictures = np.stack([rng.permutation(73000)[:10000] + 1 for _ in range(8)])
    scipy.io.savemat(design, {"masterordering": order[None], "subjectim": pictures})
    mask = np.zeros(SHAPE, np.int16)
    back = np.argwhere(np.ones(SHAPE, bool))  # the voxels nearest to a point at the back
    near = np.argsort(((back - np.array([40, 15, 35])) ** 2).sum(axis=1))[:voxels]
    mask[tuple(back[near].T)] = 1
    roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    roi.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    nibabel.save(nibabel.Nifti1Image(mask, affine), roi)
    folder = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    folder.mkdir(parents=True, exist_ok=True)
    places = np.nonzero(mask)
    flat = np.ravel_multi_index(places, SHAPE, order="F")
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1, 1), np.int16), affine).header
    header.set_data_shape((*SHAPE, TRIALS))
    header.set_slope_inter(1, 0)
    for session in range(1, sessions + 1):
        values = rng.normal(0, 400, size=(TRIALS, voxels)).astype(np.int16)
        path = folder / f"betas_session{session:02d}"
        if kind == "nifti":
            header["vox_offset"], header["magic"] = 352, b"n+1"
            with gzip.open(f"{path}.nii.gz", "wb", compresslevel=1) as file:
                file.write(header.binaryblock + bytes(4))
                for row in values:
                    volume = np.zeros(mask.size, np.int16)
                    volume[flat] = row
                    file.write(volume.tobytes())
        else:
            with h5py.File(f"{path}.hdf5", "w") as file:
                betas = file.create_dataset(
                    "betas", (TRIALS, *SHAPE[::-1]), np.int16, chunks=(TRIALS, 1, 1, 1)
                )
                for column, (i, j, k) in enumerate(zip(*places, strict=True)):
                    betas[:, k, j, i] = values[:, column]


if __name__ == "__main__":
    main()
