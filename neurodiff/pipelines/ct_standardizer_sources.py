"""Standard, rule and filter of a standardizer that no pairs were fitted for: phantoms, library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neurodiff.bridges.ct_filter import RadialFilter
from neurodiff.bridges.ct_phantom import (
    NoiseSpectrum,
    Transfer,
    filter_from_noise,
    filter_from_transfer,
)
from neurodiff.core.errors import UsageError, suggest
from neurodiff.datasets.simulated.scanners import kernel_library
from neurodiff.pipelines.ct_mapping import Rule, Standard
from neurodiff.pipelines.ct_pairs import filter_name
from neurodiff.pipelines.ct_support import StandardizerSettings


def of_phantom(
    source: Transfer | NoiseSpectrum,
    target: Transfer | NoiseSpectrum,
    *,
    rule: Mapping[str, Any],
    standard: Mapping[str, Any],
    settings: StandardizerSettings,
) -> tuple[Standard, Rule, RadialFilter]:
    """See `CTStandardizer.from_phantom`."""
    if isinstance(source, Transfer) and isinstance(target, Transfer):
        found = filter_from_transfer(source, target, lock=0.0)
    elif isinstance(source, NoiseSpectrum) and isinstance(target, NoiseSpectrum):
        found = filter_from_noise(source, target, lock=0.0)
    else:
        raise UsageError(
            f"a {type(source).__name__} and a {type(target).__name__} give no ratio; measure "
            "both kernels in the same way"
        )
    wanted = Standard(**standard)
    name = filter_name(str(rule.get("kernel", "")), wanted.kernel)
    return wanted, Rule(**{"filter": name, **rule}), found.locked(settings.lock, settings.hold)


def of_library(
    name: str, *, reverse: bool, settings: StandardizerSettings
) -> tuple[Standard, Rule, RadialFilter]:
    """See `CTStandardizer.from_library`."""
    library = kernel_library()
    if name not in library:
        raise UsageError(
            f"the library has no {name!r}; it has {', '.join(library)}.{suggest(name, library)}"
        )
    change = library[name]
    unknown = np.full(len(change.frequency), np.nan)
    found = RadialFilter(
        frequency=change.frequency,
        gain=1 / change.gain if reverse else change.gain,
        coherence=unknown if change.coherence is None else change.coherence,
        error=unknown,
        source=f"library entry {name}{' reversed' if reverse else ''}: {change.source}",
    )
    kernels = [change.source_kernel, change.target_kernel]
    source, target = kernels[::-1] if reverse else kernels
    iterative = change.iterative or None  # of the measured target's side alone
    standard = Standard(
        vendor=change.vendor,
        model=change.model,
        kernel=target,
        iterative=None if reverse else iterative,
    )
    rule = Rule(
        vendor=change.vendor,
        model=change.model,
        kernel=source,
        filter=filter_name(source, target),
        iterative=iterative if reverse else None,
    )
    return standard, rule, found.locked(settings.lock, settings.hold)
