"""What of the published Brain-Diffuser files is there, missing or broken."""

from __future__ import annotations

from pathlib import Path

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets import brain_diffuser_files as files
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.nsd_files import subject_name


def check_prepared_npy(root: str | Path, subject: int | str | None = None) -> list[Finding]:
    """What of the published files is there, of one subject or of all; reads the betas."""
    root = Path(root)
    if not root.is_dir():
        return [Finding.missing("folder", root, "there is no such folder", "give --root the data")]
    folders = sorted((root / "processed_data").glob("subj0[1-8]"))
    names = [path.name for path in folders] if subject is None else [subject_name(subject)]
    if not names:
        text = "there is no processed_data/subj01 or so"
        return [Finding.missing("subject", root, text, "prepare a subject, or give another root")]
    findings = []
    for name in names:
        where = root / "processed_data" / name
        try:
            recording, _ = files.open_prepared_npy(root, name)
            for start in range(0, recording.n_trials, 256):
                recording.data[start : start + 256]
        except MissingDataError as error:
            findings.append(Finding.missing(name, where, str(error), "prepare it again"))
            continue
        except DataError as error:
            findings.append(Finding.broken(name, where, str(error), "prepare it again"))
            continue
        sizes = recording.trials["split"].value_counts()
        text = f"{sizes['train']} + {sizes['test']} pictures, {recording.n_features} voxels"
        findings.append(Finding.fine(name, where, text))
        for kind, what in (("stim", "pictures"), ("cap", "captions")):
            for split in files.SPLITS:
                path = files.prepared_path(root, name, split, kind)
                if not path.is_file():
                    findings.append(
                        Finding.missing(f"{name} {what}", path, "not there", f"go without {what}")
                    )
        findings += _check_products(root, name)
    return findings


def _check_products(root: Path, subject: str) -> list[Finding]:
    """Features and predictions, where they are there."""
    findings = []
    for head in files.HEADS:
        for what, path in (
            ("features", files.features_path(root, subject, head, "test")),
            ("predictions", files.predictions_path(root, subject, head)),
        ):
            if not path.is_file():
                continue
            name = f"{subject} {head} {what}"
            try:
                if what == "features":
                    found = files.read_features(root, subject, head, "test")
                else:
                    found = files.read_predictions(root, subject, head)
                findings.append(Finding.fine(name, path, f"of {len(found)} test pictures"))
            except DataError as error:
                findings.append(Finding.broken(name, path, str(error), "make it again"))
    return findings
