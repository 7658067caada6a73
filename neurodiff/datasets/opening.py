"""Data sets by name: one way to open them, and one to check them before any work is done.

A name is that of a reader below, of a card in ``datasets/``, or the path of a card of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from neurodiff.core.cohort import Cohort
from neurodiff.core.config import find_shared, load
from neurodiff.core.errors import UsageError, suggest
from neurodiff.core.recording import Recording
from neurodiff.core.stimuli import Stimuli
from neurodiff.datasets.algonauts2023 import Algonauts2023
from neurodiff.datasets.brain_diffuser_check import check_prepared_npy
from neurodiff.datasets.brain_diffuser_files import open_prepared_npy
from neurodiff.datasets.brain_mri import check_brain_mri, open_brain_mri
from neurodiff.datasets.ct import check_ct, open_ct
from neurodiff.datasets.findings import Finding, as_table
from neurodiff.datasets.fmri_objaverse import FMRIObjaverse
from neurodiff.datasets.fmri_shape import FMRIShape
from neurodiff.datasets.fmri_shape_check import check_fmri_shape
from neurodiff.datasets.fmri_shape_glmsingle import GLMsingleShape
from neurodiff.datasets.god import GOD
from neurodiff.datasets.haxby import Haxby2001
from neurodiff.datasets.manifest import check_manifest, open_manifest
from neurodiff.datasets.nsd import NSD
from neurodiff.datasets.nsd_imagery import NSDImagery
from neurodiff.datasets.nsd_synthetic import NSDSynthetic
from neurodiff.datasets.prepared import check_prepared, open_prepared
from neurodiff.datasets.simulated.brain_opening import (
    check_simulated_brains,
    open_simulated_brains,
)
from neurodiff.datasets.simulated.opening import check_simulated, open_simulated
from neurodiff.datasets.simulated.scene_opening import (
    check_simulated_scenes,
    open_simulated_scenes,
)

if TYPE_CHECKING:
    import pandas as pd

OPENERS: dict[str, Callable[..., tuple[Recording, Stimuli] | Cohort]] = {
    "fmri_shape": FMRIShape.open,
    "fmri_shape_glmsingle": GLMsingleShape.open,
    "fmri_objaverse": FMRIObjaverse.open,
    "haxby2001": Haxby2001.open,
    "nsd": NSD.open,
    "nsd_imagery": NSDImagery.open,
    "nsd_synthetic": NSDSynthetic.open,
    "brain_diffuser_npy": open_prepared_npy,
    "algonauts2023": Algonauts2023.open,
    "god": GOD.open,
    "csv": open_manifest,
    "prepared": open_prepared,
    "simulated_objects": open_simulated,
    "simulated_scenes": open_simulated_scenes,
    "brain_mri": open_brain_mri,
    "ct": open_ct,
    "simulated_brains": open_simulated_brains,
}
CHECKERS: dict[str, Callable[..., list[Finding]]] = {
    "fmri_shape": check_fmri_shape,
    "fmri_shape_glmsingle": GLMsingleShape.check,
    "fmri_objaverse": FMRIObjaverse.check,
    "haxby2001": Haxby2001.check,
    "nsd": NSD.check,
    "nsd_imagery": NSDImagery.check,
    "nsd_synthetic": NSDSynthetic.check,
    "brain_diffuser_npy": check_prepared_npy,
    "algonauts2023": Algonauts2023.check,
    "god": GOD.check,
    "csv": check_manifest,
    "prepared": check_prepared,
    "simulated_objects": check_simulated,
    "simulated_scenes": check_simulated_scenes,
    "brain_mri": check_brain_mri,
    "ct": check_ct,
    "simulated_brains": check_simulated_brains,
}
MADE_FROM_A_SEED = ("simulated_objects", "simulated_scenes", "simulated_brains")  # need no folder
NOT_CARDS = ("template", "ct_kernels")
VOLUMES = ("brain_mri", "ct", "simulated_brains")  # readers whose data set is a Cohort


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card in ``datasets/`` says of a data set.

    ``reader`` is a name in `OPENERS`, or None where there is nothing to open; ``options`` are
    handed to it.
    """

    name: str
    what: str
    reader: str | None
    get: str
    layout: str
    units: str
    splits: str
    licence: str
    citation: str
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@overload
def open_dataset(
    name: Literal["brain_mri", "ct", "simulated_brains"],
    root: str | Path | None = None,
    subject: int | str | None = None,
    **options: Any,
) -> Cohort: ...
@overload
def open_dataset(
    name: str,
    root: str | Path | None = None,
    subject: int | str | None = None,
    **options: Any,
) -> Any: ...
def open_dataset(
    name: str,
    root: str | Path | None = None,
    subject: int | str | None = None,
    **options: Any,
) -> Any:
    """Recording and stimuli of a data set, or the cohort where it is one of volumes.

    Parameters
    ----------
    name : ``"fmri_shape"``, ``"fmri_shape_glmsingle"``, ``"fmri_objaverse"``, ``"haxby2001"``,
        ``"nsd"``, ``"nsd_imagery"``, ``"nsd_synthetic"``, ``"brain_diffuser_npy"``,
        ``"algonauts2023"``, ``"god"``, ``"csv"``, ``"prepared"``, ``"simulated_objects"``,
        ``"simulated_scenes"``, ``"brain_mri"``, ``"ct"``, ``"simulated_brains"``, a card's name or
        path.
    root : folder of the data; may be left out where the card states one, or nothing is on disk.
    subject : which subject; None is subject 1, and with ``"csv"``, ``"prepared"`` and cohorts every
        subject.
    options : of the reader: see `FMRIShape.open`, `GLMsingleShape.open`, `FMRIObjaverse.open`,
        `Haxby2001.open`, `NSD.open`, `NSDImagery.open`, `NSDSynthetic.open`,
        `open_prepared_npy`, `Algonauts2023.open`, `GOD.open`, `open_manifest`, `open_prepared`,
        `open_simulated`, `open_simulated_scenes`, `open_brain_mri`, `open_ct` and
        `open_simulated_brains`.

    Returns
    -------
    ``(Recording, Stimuli)``, or a `Cohort` from the readers in `VOLUMES`.

    Raises
    ------
    UsageError : unknown name or option, or no root.
    DataError : data missing or broken.
    """
    reader, folder, settings = resolve(name, root, options)
    if subject is not None:
        settings["subject"] = subject
    _check_options(name, OPENERS[reader], settings)
    return OPENERS[reader](folder, **settings)


def open_recording(
    name: str,
    root: str | Path | None = None,
    subject: int | str | None = None,
    **options: Any,
) -> tuple[Recording, Stimuli]:
    """`open_dataset` where a recording is needed; a cohort of volumes is refused in a sentence."""
    if resolve(name, root, options)[0] in VOLUMES:
        raise UsageError(
            f"{name} is a cohort of volumes, and responses to stimuli are needed here; open it "
            "with open_dataset"
        )
    return open_dataset(name, root=root, subject=subject, **options)


def check_dataset(
    name: str,
    root: str | Path | None = None,
    subject: int | str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Table of what is there, missing or broken; it never stops at the first problem.

    Returns
    -------
    Columns status (``"ok"``, ``"missing"``, ``"broken"``), what, where, found, what_to_do.

    Raises
    ------
    UsageError : unknown name, or no root.
    """
    reader, folder, settings = resolve(name, root, options)
    if reader not in (
        "csv",
        "brain_mri",
        "ct",
    ):  # other readers' options do not change what is needed
        settings = {}
    return as_table(CHECKERS[reader](folder, subject=subject, **settings))


def read_card(name: str | Path) -> Card:
    """The card of this name or path.

    Raises
    ------
    UsageError : no such card, or a key that is missing, unknown or of the wrong type.
    """
    return load(name, Card, kind="datasets")


def resolve(
    name: str, root: str | Path | None = None, options: dict[str, Any] | None = None
) -> tuple[str, Path, dict[str, Any]]:
    """Reader, folder and options behind a name, with those of its card filled in.

    Raises
    ------
    UsageError : unknown name, a card that opens nothing, or no root.
    """
    options = options or {}
    reader: str | None = name if name in OPENERS else None
    settings = dict(options)
    if reader is None:
        card = _card_or_complaint(name)
        if card.reader is None:
            raise UsageError(f"{card.name} is not opened from files. {card.get.strip()}")
        if card.reader not in OPENERS:
            raise UsageError(
                f"the card {name} names the reader {card.reader!r}; there are "
                f"{', '.join(OPENERS)}.{suggest(card.reader, OPENERS)}"
            )
        reader, settings = card.reader, {**card.options, **options}
        root = card.root if root is None else root
    if reader in MADE_FROM_A_SEED:
        return reader, Path(), settings
    if root is None:
        raise UsageError(f"{name} needs root, the folder of the data")
    return reader, Path(root).expanduser(), settings


def _card_or_complaint(name: str) -> Card:
    try:
        find_shared("datasets", name)
    except UsageError:
        cards = find_cards()
        known = sorted({*OPENERS, *cards})
        raise UsageError(
            f"there is no data set {str(name)!r}; there are {', '.join(known)}, and the path of a "
            f"card of your own.{suggest(name, known)}"
        ) from None
    return read_card(name)


def find_cards() -> list[str]:
    """Names of the cards that come with the package."""
    try:
        folder = find_shared("datasets", "fmri_shape").parent
    except UsageError:
        return []
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in NOT_CARDS)


def _check_options(name: str, opener: Callable[..., Any], settings: dict[str, Any]) -> None:
    from inspect import Parameter, signature

    parameters = signature(opener).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [key for key in parameters if key != "root"]
    for key in settings:
        if key not in known:
            raise UsageError(
                f"{name} has no option {key!r}; its options are {', '.join(known)}."
                f"{suggest(key, known)}"
            )
