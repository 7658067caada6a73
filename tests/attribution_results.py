"""Results of methods made by hand, of which every number is known."""

import numpy as np
import pandas as pd

from neurodiff.analysis.attribution_problem import COLUMNS, MethodResult


def made(method, values, rois, *, good=(), subjects=("sub-01",), stage="bridge", maps=None):
    """A result with the given value a region; ``good`` regions have q 0.01, the others 0.6."""
    rows = []
    for number, subject in enumerate(subjects):
        for roi, value in values.items():
            value = value + 0.01 * number
            q = 0.01 if roi in good else 0.6
            band = (value - 0.02, value + 0.02, 0.0, -0.03, 0.03)
            size = int(np.sum(rois[roi]))
            who = (method, subject, stage, roi, "correlation")
            rows.append((*who, value, *band, q / 3, q, 300, size, "loss of correlation"))
    return MethodResult(
        method=method,
        table=pd.DataFrame(rows, columns=list(COLUMNS)),
        maps=dict(maps or {}),
        notes=("q: Benjamini-Hochberg over the regions of a subject and stage.",),
    )
