"""Leave-one-run-out decoding of Haxby 2001: our default beside the published figure's recipe.

    python benchmarks/haxby.py [FOLDER]

FOLDER holds ``subj1/bold.nii.gz``, ``labels.txt`` and ``mask4_vt.nii.gz`` in nilearn's layout;
without it, the environment variable NEURODIFF_SHARED_DATA names the parent of
``haxby2001_slice``. Linear detrend and z-score over all volumes of a run, 96 block means.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest


def main() -> None:
    from sklearn.linear_model import RidgeClassifier

    from neurodiff.datasets.haxby import Haxby2001, block_means, leave_one_run_out

    if len(sys.argv) > 1:
        root = Path(sys.argv[1])
    elif "NEURODIFF_SHARED_DATA" in os.environ:
        root = Path(os.environ["NEURODIFF_SHARED_DATA"]) / "haxby2001_slice"
    else:
        sys.exit("give the folder of Haxby 2001, or set NEURODIFF_SHARED_DATA")
    recording, _ = Haxby2001.open(root)
    blocks = block_means(recording)
    rows = []
    for name, make in (
        ("RidgeClassifier(alpha=1000)", lambda: RidgeClassifier(alpha=1000)),
        ("default: alpha chosen inside the training runs", None),
    ):
        decoded = leave_one_run_out(blocks, make)
        n = len(decoded.table)
        low, high = binomtest(decoded.correct, n).proportion_ci()
        rows.append(
            {
                "classifier": name,
                "correct": f"{decoded.correct} of {n}",
                "accuracy": round(decoded.accuracy, 3),
                "95 %": f"{low:.2f} to {high:.2f}",
                "chance": decoded.chance,
            }
        )
    print("real data, one slice of one subject: a check of the software, not a finding")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
