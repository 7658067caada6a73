"""A folder of simulated scans and a model of the recipe ldae_tiny fitted on it, for tests."""

from pathlib import Path

import pandas as pd

from neurodiff.datasets.simulated.brain_opening import simulated_brains


def write_scans(folder: Path, people: int = 24) -> Path:
    """The simulated cohort as NIfTI with a table ``scans.csv``."""
    cohort = simulated_brains("tiny", 0).cohort()
    names = cohort.subjects[:people]
    cohort = cohort.select(cohort.scans["subject"].isin(names).to_numpy())
    folder.mkdir(parents=True, exist_ok=True)
    for scan in cohort.ids:
        cohort[scan].save(folder / f"{scan}.nii.gz")
    columns = ["subject", "session", "age", "sex", "diagnosis", "site"]
    table = cohort.scans[columns].assign(path=[f"{scan}.nii.gz" for scan in cohort.ids])
    pd.DataFrame(table).to_csv(folder / "scans.csv", index=False)
    return folder
