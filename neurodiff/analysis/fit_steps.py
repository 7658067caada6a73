"""Steps of a fit beside the training: what goes in, which folder it has, and what it would do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.sources import Source
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.provenance import package_version
from neurodiff.core.recording import Recording
from neurodiff.core.run import MODEL, Run, fingerprint
from neurodiff.core.safe_io import read_json
from neurodiff.core.stimuli import Stimuli

if TYPE_CHECKING:
    from neurodiff.pipelines.mind3d_settings import MinD3DRecipe


def require_meshes(stimuli: Stimuli, shown: list[str]) -> None:
    """Complain before any work; meshes are read later, one by one.

    Raises
    ------
    DataError : a stimulus that is not in the table (MissingDataError: none of them has a mesh).
    """
    for name in shown:
        if name not in stimuli:
            raise DataError(
                f"stimulus {name!r} of the recording is not among the {len(stimuli)} stimuli; add "
                "it to their table"
            )
    if stimuli.load_mesh is None:
        raise MissingDataError(
            f"stimulus {shown[0]!r} has no mesh, and none come with these stimuli: fitting shapes "
            "needs a mesh of every training stimulus, such as stimuli/<id>.glb"
        )


def stimuli_hash(stimuli: Stimuli, ids: list[str]) -> str:
    """SHA-256 of the ids and categories, in this order."""
    table = stimuli.select(ids).table[["id", "category"]]
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def recording_inputs(
    source: Source,
    subject: int | str | None,
    recording: Recording,
    train: Recording,
    *,
    stimuli: str,
) -> dict[str, Any]:
    """What identifies the data of a fit to one person's ``train`` trials of a recording.

    ``stimuli`` : hash of what was shown in them.
    """
    return {
        "data": source.name,
        "subject": subject,
        "recording": train.fingerprint(),
        "trials": train.n_trials,
        "features": train.n_features,
        "space": train.space.fingerprint(),
        "stimuli": stimuli,
        "simulated": bool(recording.simulated),
    }


def folder_of_fit(
    out: Path,
    name: str,
    data: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Any],
    seed: int,
) -> Path:
    """The run's folder: the same command finds its run again, another one makes another."""
    key = fingerprint({"recipe": recipe, "inputs": inputs, "seed": seed})
    return out / Run.folder_name(name, data, key)


def is_fitted(
    folder: Path,
    progress: Progress,
    *,
    index: str,
    is_model: Callable[[Path], bool],
    open_model: Callable[[Path], object],
) -> bool:
    """Whether an earlier call of this version fitted the run in ``folder``.

    Parameters
    ----------
    index : name of a model's index, which says by which version it was saved.
    is_model : whether a folder holds the index of such a model.
    open_model : reads a model and compares its files; DataError where one is not as it was.
    """
    model = folder / MODEL
    if not (folder / "run.json").is_file() or not is_model(model):
        return False
    try:
        if read_json(model / index).get("neurodiff") != package_version():
            return False
        open_model(model)
    except DataError as error:
        progress.say(f"the model that was there is fitted again: {error}")
        return False
    progress.say("fitted before; the model is whole")
    return True


def require_named(recipe: str, named: Mapping[str, str], lacking: Sequence[str]) -> None:
    """Complain of networks before any data are read.

    Parameters
    ----------
    named : setting -> path of a published network.
    lacking : settings that need one and name none.

    Raises
    ------
    UsageError, MissingDataError : one is not named; one that is named is not there.
    """
    if lacking:
        options = " ".join(f"-s {key}=PATH" for key in lacking)
        raise UsageError(
            f"recipe {recipe} reads published networks, and {' and '.join(lacking)} "
            f"{'names' if len(lacking) == 1 else 'name'} none: give {options}"
        )
    for key, path in named.items():
        if not Path(path).expanduser().exists():
            raise MissingDataError(f"{path} does not exist; {key} names it: check the path")


def plan_text(
    settings: MinD3DRecipe,
    source: Source,
    recording: Recording,
    train: Recording,
    shown: list[str],
) -> str:
    """What a fit would do: sizes, trials, bytes; nothing is written."""
    import torch

    from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
    from neurodiff.pipelines.brain_input import BrainInput

    encoder = settings.bridge.encoder
    first = train.select([0])  # the patches depend on the space, not on the values
    brain = BrainInput.fit(first, patch_size=encoder.patch_size, image_size=encoder.image_size)
    with torch.device("meta"):
        shapes = ShapeGenerator(settings.decoder.size, settings.tokenizer.size)
        networks = BrainNetworks(
            settings.bridge.encoder_for(brain.image_size),
            settings.bridge.network,
            patches=torch.from_numpy(brain.kept),
            aggregated_tokens=settings.bridge.aggregated_tokens,
        )
    parts: dict[str, Any] = {
        "vqvae_model (tokenizer)": shapes.vqvae_model,
        "transformer_model (shape decoder)": shapes.transformer_model,
        **dict(networks.named_children()),
    }
    counts = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in parts.items()
    }
    counts["ridge"] = (train.n_features + 1) * settings.embedding.dim
    steps = {
        "tokenizer": settings.tokenizer.training,
        "shape decoder": settings.decoder.training,
        "bridge": settings.bridge.training,
        "adapters": settings.decoder.adapters,
    }
    splits = recording.trials["split"].value_counts(sort=False)
    size = 4 * float(np.prod(train.data.shape))
    total = sum(counts.values())
    label = ", simulated" if recording.simulated else ""
    return "\n".join(
        [
            f"recipe {settings.name}, data {source.name}{label}",
            f"trials: {', '.join(f'{n} {name}' for name, n in splits.items())}",
            f"a trial: {' x '.join(map(str, train.data.shape[1:]))} values (frames x features)",
            f"training stimuli: {len(shown)}",
            f"training data: {size / 1e6:.1f} MB ({size:.0f} bytes) as float32",
            "parameters:",
            *(f"  {name:<34} {n:>13,}" for name, n in counts.items()),
            f"  {'all':<34} {total:>13,} ({4 * total} bytes as float32)",
            "steps x batch:",
            *(f"  {name:<34} {one.steps:>6} x {one.batch_size}" for name, one in steps.items()),
            "nothing was written (--dry-run)",
        ]
    )


def gate_words(gate: dict[str, Any]) -> list[str]:
    """What a stage reached, for the progress: numbers to three digits."""
    return [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in gate.items()
    ]
