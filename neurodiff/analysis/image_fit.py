"""The verb ``fit`` for pictures: a Brain-Diffuser on the training trials of a data set.

Everything that is wrong with the data is said before the first network is trained or read.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.fit_steps import folder_of_fit, is_fitted, recording_inputs, require_named
from neurodiff.analysis.leakage_run import (
    LENIENT,
    Strictness,
    audit_before_fit,
    remember_audit,
    stated_statistics,
)
from neurodiff.analysis.sources import Source, trials_of
from neurodiff.analysis.splits import categories_of, remember
from neurodiff.core.config import dump, load
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.progress import Progress
from neurodiff.core.recording import Recording
from neurodiff.core.run import MODEL, Run
from neurodiff.core.safe_io import sha256_of
from neurodiff.core.stimuli import Stimuli

if TYPE_CHECKING:
    from neurodiff.pipelines.brain_diffuser_settings import BrainDiffuserRecipe

NSD = ("nsd",)  # readers whose sessions are those of the published tables
CLIP_SHAPES = {"text": (77, 768), "vision": (257, 768)}


def fit_images(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    data: str | None,
    root: Path | None,
    subject: int | str | None,
    seed: int,
    dry_run: bool,
    *,
    leaks: Strictness = LENIENT,
) -> Path | str:
    """Fit a recipe to the training trials of a data set; returns the run's folder.

    What training shares with the other trials is said before the fit, see `leakage`.

    As ``verbs.fit``: the same command finds its run again and goes on, and the fitted pipeline is
    in the run's folder ``model``.

    Raises
    ------
    UsageError : recipe, data set or one of their settings is not known.
    DataError : data missing or broken; several subjects, frames, NaN, voxels that never vary, a
        stimulus without picture or caption; disk full; a leak, where strict.
    """
    from neurodiff.pipelines.brain_diffuser import BetaInput, BrainDiffuser
    from neurodiff.pipelines.brain_diffuser_files import INDEX, is_model
    from neurodiff.pipelines.brain_diffuser_settings import BrainDiffuserRecipe

    progress = Progress.to_stdout()
    settings = load(recipe, BrainDiffuserRecipe, list(overrides))
    if not dry_run:
        require_networks(settings)
    source = Source.of(data, root, subject)
    recording, stimuli = source.open(progress)
    train = trials_of(recording, "train")
    shown = list(dict.fromkeys(train.trials["stimulus"]))
    _require_one_subject(train)
    _require_pictures(stimuli, shown)
    if dry_run:
        return plan_text(settings, source, recording)
    inputs = recording_inputs(source, subject, recording, train, stimuli=_hash_of(stimuli, shown))
    networks = network_identities(settings)
    if networks:
        inputs["networks"] = networks
    plain = dump(settings)
    folder = folder_of_fit(out, settings.name, source.name, plain, inputs, seed)
    open_model = BrainDiffuser.from_pretrained
    if is_fitted(folder, progress, index=INDEX, is_model=is_model, open_model=open_model):
        return folder
    progress.say(
        f"betas: {train.n_trials} trials of {len(shown)} images, {train.n_features} voxels"
    )
    report = audit_before_fit(
        recording,
        stimuli,
        leaks,
        preprocessing=stated_statistics(settings.decoder.standardise),
        progress=progress,
    )
    means = train.mean_repeats()
    means = replace(means, data=means.array())  # once: a release is read for minutes
    BetaInput.fit(means)
    run = Run.create(folder, plain, inputs, command=sys.argv, seed=seed)
    run.info["data"] = source.plain()  # where to find it again; no part of the run's identity
    remember(run, train.trials["subject"].unique(), categories_of(stimuli, shown))
    remember_audit(run, report)
    run.info["trained on"] |= {
        "stimuli": shown,
        "sessions": _sessions(source, recording),
    }
    run.touch()
    progress.say(f"run folder: {folder}")
    pipe = BrainDiffuser(settings).fit(means, stimuli, seed=seed, run=run, progress=progress)
    pipe.save_pretrained(folder / MODEL)
    run.touch()
    return folder


def require_networks(settings: BrainDiffuserRecipe) -> None:
    """Complain of networks before the data are read, which takes minutes for a release.

    Raises
    ------
    UsageError : published networks that the recipe does not name, or devices that this machine
        does not have; lists them all.
    MissingDataError : one that is named and is not there.
    """
    import torch

    from neurodiff.pipelines.brain_diffuser_settings import (
        named_networks,
        network_devices,
        unnamed_networks,
    )

    require_named(settings.name, named_networks(settings), unnamed_networks(settings))
    absent = [
        key
        for key, device in network_devices(settings).items()
        if device.startswith("cuda") and not torch.cuda.is_available()
    ]
    if absent:
        options = " ".join(f"-s {key}=cpu" for key in absent)
        raise UsageError(
            f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} cuda, and torch finds "
            f"no such device here: give {options} (and -s generator.dtype=float32), or another "
            "machine"
        )


def network_identities(settings: BrainDiffuserRecipe) -> dict[str, str]:
    """Key -> what tells the published network that it names from another one at the same path:
    the SHA-256 of a file, and that of the names and sizes in a folder."""
    from neurodiff.pipelines.brain_diffuser_settings import named_networks

    found = {}
    for key, named in named_networks(settings).items():
        path = Path(named).expanduser()
        if path.is_file():
            found[key] = sha256_of(path)
            continue
        files = sorted(one for one in path.rglob("*") if one.is_file())
        listed = [(str(one.relative_to(path)), one.stat().st_size) for one in files]
        found[key] = hashlib.sha256(repr(listed).encode()).hexdigest()
    return found


def plan_text(settings: BrainDiffuserRecipe, source: Source, recording: Recording) -> str:
    """What a fit would do: trials, images, parameters, bytes; nothing is written."""
    train = trials_of(recording, "train")
    n = train.trials["stimulus"].nunique()
    rest = recording.trials[recording.trials["split"] != "train"]
    tested = rest.groupby("split", sort=False)["stimulus"].nunique()
    p = train.n_features
    shapes = head_shapes(settings)
    targets = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    all_targets = sum(targets.values())
    stored = np.dtype(settings.decoder.stored)
    model = 8 * n * p + 8 * n * n + 8 * 5 * all_targets
    memory = 2 * 8 * n * p + 3 * 8 * n * n + 2 * 4 * n * min(4096, all_targets)
    splits = recording.trials["split"].value_counts(sort=False)
    label = ", simulated" if recording.simulated else ""
    size = 4 * int(np.prod(train.data.shape))
    of_test = ", ".join(f"{m} images ({name})" for name, m in tested.items()) or "none"
    decoded = max([0, *map(int, tested)]) * all_targets * 4
    return "\n".join(
        [
            f"recipe {settings.name}, data {source.name}{label}, protocol {settings.protocol}",
            f"trials: {', '.join(f'{k} {name}' for name, k in splits.items())}",
            f"a trial: {p} voxels; repeats of an image are averaged",
            f"training images: {n}",
            f"to reconstruct: {of_test}",
            f"training data: {_size(size)} as float32",
            f"decoders: {n} images x {p} voxels, one factorisation for all heads",
            *(
                f"  {name:<8} {count:>9,} targets ({' x '.join(map(str, shapes[name]))}), "
                f"{_size(n * count * stored.itemsize)} as {stored.name}, "
                f"{len(getattr(settings.decoder, name).alphas)} penalties"
                for name, count in targets.items()
            ),
            f"  all      {all_targets:>9,} targets, {_size(n * all_targets * stored.itemsize)}",
            f"memory of the decoders, estimated: {_size(memory)} (targets are read in blocks)",
            f"disk, estimated: {_size(n * all_targets * stored.itemsize)} of targets, "
            f"{_size(model)} of brain data and factor",
            f"decoded features of the test images: {_size(decoded)} as float32",
            "networks:",
            *(f"  {line}" for line in network_lines(settings)),
            "nothing was written (--dry-run)",
        ]
    )


def head_shapes(settings: BrainDiffuserRecipe) -> dict[str, tuple[int, ...]]:
    """Shape of one item's targets of each head, without any network."""
    from neurodiff.pipelines.brain_diffuser_settings import SENTENCE_WIDTH

    low, tokens = settings.low_level, settings.tokens
    flat = sum(int(np.prod(shape)) for shape in low.size.latent_shapes(low.latents))
    if tokens.kind == "clip":
        return {"vdvae": (flat,), **CLIP_SHAPES}
    width = SENTENCE_WIDTH if tokens.kind == "packaged" else tokens.width
    return {
        "vdvae": (flat,),
        "text": (tokens.text_tokens, width),
        "vision": (1 + tokens.grid**2, tokens.width),
    }


def network_lines(settings: BrainDiffuserRecipe) -> list[str]:
    """Parameters and training of each network that is trained, files of each that is not."""
    import torch

    from neurodiff.models.vdvae import VDVAE
    from neurodiff.models.versatile_diffusion import DualGuidedUNet
    from neurodiff.pipelines.brain_diffuser_training import small_autoencoder

    low, generator = settings.low_level, settings.generator
    rows = []
    with torch.device("meta"):
        rows.append(("VDVAE", _parameters(VDVAE(low.size)), low.training, low.weights))
        if generator.training is not None and generator.autoencoder is not None:
            vae = small_autoencoder(generator.autoencoder, generator.side)
            rows.append(("autoencoder", _parameters(vae), generator.autoencoder.training, None))
        unet = _parameters(DualGuidedUNet(generator.unet))
    rows.append(("generator", unet, generator.training, generator.folder))
    lines = []
    for name, count, training, place in rows:
        how = f"from {place}" if place else "file not named yet"
        if training is not None:
            how = f"trained, {training.steps} steps x {training.batch_size}"
        lines.append(f"{name:<12} {count:>13,} parameters, {how}")
    where = f", from {settings.tokens.folder}" if settings.tokens.folder else ""
    lines.append(f"{'tokens':<12} {settings.tokens.kind}{where}")
    return lines


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit} ({count} bytes)"
    return f"{count} bytes"


def _sessions(source: Source, recording: Recording) -> int | None:
    """Sessions of NSD of which trials are used, by which published rows are told apart."""
    return int(recording.trials["session"].nunique()) if source.reader in NSD else None


def _require_one_subject(train: Recording) -> None:
    people = list(dict.fromkeys(train.trials["subject"]))
    if len(people) != 1:
        raise DataError(
            f"the training trials are of {len(people)} subjects ({', '.join(people[:3])}); a "
            "decoder is fitted on one: name it with --subject"
        )
    if train.frames:
        raise DataError(
            f"this recording has {train.frames[0]} frames a trial; Brain-Diffuser reads one number "
            "a trial and voxel, such as the betas of a GLM"
        )


def _require_pictures(stimuli: Stimuli, shown: list[str]) -> None:
    """Complain before any work; pictures are read later, one by one."""
    for name in shown:
        if name not in stimuli:
            raise DataError(
                f"stimulus {name!r} of the recording is not among the {len(stimuli)} stimuli; add "
                "it to their table"
            )
        if not stimuli.captions(name):
            raise DataError(
                f"stimulus {name!r} has no caption, and the text head is trained on captions; give "
                "the data set's captions"
            )
    if stimuli.load_image is None:
        raise MissingDataError(
            f"stimulus {shown[0]!r} has no picture, and none come with these stimuli: the decoders "
            "are trained on the pictures that were shown"
        )
    stimuli[shown[0]].image()


def _hash_of(stimuli: Stimuli, ids: list[str]) -> str:
    digest = hashlib.sha256()
    for name in ids:
        digest.update(repr((name, stimuli.captions(name))).encode())
    return digest.hexdigest()
