"""neurodiff: neural decoding and scientific imaging.

The public names below are loaded when they are first used, so that ``import neurodiff`` costs
nothing: torch, monai, diffusers and open3d are imported by the module that needs them.

>>> import neurodiff as nd
>>> "Recording" in dir(nd)
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurodiff.analysis.report import Report
    from neurodiff.analysis.scores import evaluate
    from neurodiff.bridges.factored_ridge import FactoredRidge
    from neurodiff.bridges.ridge import MultiTargetRidge
    from neurodiff.core.cohort import Cohort
    from neurodiff.core.errors import NeurodiffError
    from neurodiff.core.recording import Recording
    from neurodiff.core.run import Run
    from neurodiff.core.stimuli import Stimuli
    from neurodiff.core.volume import Volume
    from neurodiff.datasets.opening import open_dataset
    from neurodiff.metrics.radiomics import radiomics
    from neurodiff.pipelines.brain_diffuser import BrainDiffuser
    from neurodiff.pipelines.ct_standardizer import CTStandardizer
    from neurodiff.pipelines.ldae import LDAE
    from neurodiff.pipelines.mind3d import MinD3D

    __version__: str

# Public name -> module that defines it. A new name goes here, into TYPE_CHECKING above and
# into __all__ below; tests/test_lazy_names.py holds the three together.
_PLACES = {
    "BrainDiffuser": "neurodiff.pipelines.brain_diffuser",
    "CTStandardizer": "neurodiff.pipelines.ct_standardizer",
    "Cohort": "neurodiff.core.cohort",
    "FactoredRidge": "neurodiff.bridges.factored_ridge",
    "LDAE": "neurodiff.pipelines.ldae",
    "MinD3D": "neurodiff.pipelines.mind3d",
    "MultiTargetRidge": "neurodiff.bridges.ridge",
    "NeurodiffError": "neurodiff.core.errors",
    "Recording": "neurodiff.core.recording",
    "Report": "neurodiff.analysis.report",
    "Run": "neurodiff.core.run",
    "Stimuli": "neurodiff.core.stimuli",
    "Volume": "neurodiff.core.volume",
    "evaluate": "neurodiff.analysis.scores",
    "open_dataset": "neurodiff.datasets.opening",
    "radiomics": "neurodiff.metrics.radiomics",
}

__all__ = [
    "LDAE",
    "BrainDiffuser",
    "CTStandardizer",
    "Cohort",
    "FactoredRidge",
    "MinD3D",
    "MultiTargetRidge",
    "NeurodiffError",
    "Recording",
    "Report",
    "Run",
    "Stimuli",
    "Volume",
    "__version__",
    "evaluate",
    "open_dataset",
    "radiomics",
]


def __getattr__(name: str) -> Any:
    """Import the module behind a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("neurodiff")
    elif name in _PLACES:
        from importlib import import_module

        value = getattr(import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module 'neurodiff' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
