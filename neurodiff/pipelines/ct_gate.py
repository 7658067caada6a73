"""Gate of the latent diffusion: does the autoencoder carry the target kernel's texture at all?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurodiff.pipelines.ct_diffusion_settings import GateSettings

FAMILIES = ("stat", "ih", "cm", "rlm", "szm", "ngt", "ngl")


def texture_features(
    hu: np.ndarray, places: Sequence[tuple[int, int, int]], size: int, spacing: tuple[float, float]
) -> Any:
    """Table of features, as pyradiomics names them, of squares in tissue: bins of 25 HU, in plane.

    ``places`` are (slice, row, column) of the squares' corners.
    """
    import pandas as pd

    from neurodiff.metrics.radiomics import RadiomicsSettings, as_pyradiomics, radiomics

    settings = RadiomicsSettings(
        bin_width=25.0, bin_origin="multiple", aggregation=("2_5D_avg",), families=FAMILIES
    )
    everywhere = np.ones((1, size, size), bool)
    rows = []
    for k, r, c in places:
        square = hu[k : k + 1, r : r + size, c : c + size].astype(np.float64)
        found = as_pyradiomics(radiomics(square, everywhere, (1.0, *spacing), settings))
        rows.append({name.removeprefix("original_"): value for name, value in found.items()})
    return pd.DataFrame(rows)


def tissue_squares(hu: np.ndarray, size: int, padding: Any = None) -> list[tuple[int, int, int]]:
    """Corners of the squares without overlap of which half lies above -300 HU."""
    found = []
    for k, r, c in np.ndindex(len(hu), hu.shape[1] // size, hu.shape[2] // size):
        square = np.s_[k, r * size : (r + 1) * size, c * size : (c + 1) * size]
        if (hu[square] > -300).mean() >= 0.5 and (padding is None or not padding[square].any()):
            found.append((k, r * size, c * size))
    return found


def round_trip_agreement(
    trips: Sequence[tuple[np.ndarray, np.ndarray, tuple[float, float]]], settings: GateSettings
) -> dict[str, Any]:
    """Mean CCC of (target, round trip, spacing) over features, and whether it passes.

    Fewer than three squares in tissue measure nothing; the gate is then not passed.
    """
    import pandas as pd

    from neurodiff.metrics.agreement import ccc

    before, after = [], []
    for hu, back, spacing in trips:
        places = tissue_squares(hu, settings.region)
        places = places[:: max(1, -(-len(places) * len(trips) // settings.regions))]
        if places:
            before.append(texture_features(hu, places, settings.region, spacing))
            after.append(texture_features(back, places, settings.region, spacing))
    count = sum(len(table) for table in before)
    found = None
    if count >= 3:
        a, b = pd.concat(before), pd.concat(after)
        values = [float(ccc(a[n].to_numpy(), b[n].to_numpy())) for n in a if a[n].nunique() > 1]
        values = [value for value in values if np.isfinite(value)]
        found = float(np.mean(values)) if values else None
    return {
        "ccc": found,
        "regions": count,
        "least": settings.least,
        "passed": bool(found is not None and found >= settings.least),
    }
