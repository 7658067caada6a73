"""Directions in the space of codes of what a cohort tells: disease, age, sex."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.core.progress import SILENT, Progress
from neurodiff.pipelines.ldae_scans import PreparedScans

if TYPE_CHECKING:
    from neurodiff.pipelines.ldae import LDAE

_FEWEST = 4  # scans of each class, or with a number, that a direction is fitted from


def fit_directions(
    pipe: LDAE, scans: PreparedScans, *, progress: Progress = SILENT
) -> dict[str, Any]:
    """Directions "AD" (against CN), "age" (years) and "sex" (F against M), where there are any.

    Returns
    -------
    Name -> `Direction`, in units of the codes of ``pipe``.
    """
    if find_spec("neurodiff.pipelines.ldae_directions") is None:
        return {}
    from neurodiff.pipelines.ldae_directions import fit_direction

    table = scans.cohort.scans
    wanted = {}
    for name, column, yes, no in (("AD", "diagnosis", "AD", "CN"), ("sex", "sex", "F", "M")):
        values = table[column].to_numpy()
        rows = np.flatnonzero((values == yes) | (values == no))
        positive = values[rows] == yes
        if min(positive.sum(), (~positive).sum()) >= _FEWEST:
            wanted[name] = (rows, positive, {})
    ages = table["age"].to_numpy(float)
    rows = np.flatnonzero(np.isfinite(ages))
    if len(rows) >= _FEWEST and np.ptp(ages[rows]) > 0:
        wanted["age"] = (rows, ages[rows], {"unit": "years"})
    if not wanted:
        return {}
    progress.say("directions:")
    people = table["subject"].to_numpy()
    codes = np.concatenate([pipe.codes(scans.take([k])) for k in range(len(scans))])
    return {
        name: fit_direction(codes[rows], values, name, groups=people[rows], **more)
        for name, (rows, values, more) in wanted.items()
    }
