"""What is missing or broken among trials published as flat maps; reads every file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from neurodiff.core.errors import DataError, MissingDataError
from neurodiff.datasets.findings import Finding
from neurodiff.datasets.flat_trials import read_flat_maps
from neurodiff.datasets.surface import load_visual_cortex


def check_trials(folder: Path, listed: Mapping[Path, str]) -> list[Finding]:
    """Findings about the trials of one subject.

    Parameters
    ----------
    folder : where the files lie.
    listed : file -> split, as the lists name them.
    """
    findings: list[Finding] = []
    lengths: Counter[int] = Counter()
    means: list[float] = []
    outside = 0
    mask = load_visual_cortex().mask
    for path, split in listed.items():
        try:
            images = read_flat_maps(path)
        except MissingDataError:
            findings.append(
                Finding.missing("trial", path, f"named in the {split} list", "download this file")
            )
        except DataError as error:
            findings.append(Finding.broken("trial", path, str(error), "download this file again"))
        else:
            lengths[len(images)] += 1
            outside += bool(images[:, ~mask].any())
            means.append(float(images[:, mask].mean()))
            if not images[:, mask].any():
                findings.append(
                    Finding.broken("trial", path, "all cortex is 0", "download this file again")
                )
    text = ", ".join(f"{count} of {length} frames" for length, count in sorted(lengths.items()))
    findings.append(Finding.fine("trials", folder, f"{sum(lengths.values())} readable ({text})"))
    if len(lengths) > 1:
        findings.append(
            Finding.note("trials", folder, f"{text}; shorter trials repeat their last frame")
        )
    if means and max(np.abs(means)) > 0.5:
        text = (
            f"means of trials lie between {min(means):.1f} and {max(means):.1f}, not near 0, as "
            "published; restandardise='trial' evens them out"
        )
        findings.append(Finding.note("trials", folder, text))
    if outside:
        findings.append(
            Finding.note("trials", folder, f"{outside} have values outside the visual cortex")
        )
    unlisted = {p.relative_to(folder).as_posix() for p in folder.rglob("*.npy")}
    unlisted -= {path.relative_to(folder).as_posix() for path in listed}
    if unlisted:
        findings.append(
            Finding.note(
                "trials", folder, f"{len(unlisted)} files are in no list, first {min(unlisted)}"
            )
        )
    return findings


def count_table(where: Path, categories: Iterable[str], splits: Iterable[str]) -> Finding:
    """How many objects each category has, most first: one line a category."""
    by_split: dict[str, Counter[str]] = {}
    for category, split in zip(categories, splits, strict=True):
        by_split.setdefault(split, Counter())[category] += 1
    total: Counter[str] = Counter()
    for counts in by_split.values():
        total.update(counts)
    single = sum(count == 1 for count in total.values())
    lines = [
        f"{len(total)} categories of {sum(total.values())} objects; {single} have a single one"
    ]
    width = max(map(len, total), default=0)
    for category, count in sorted(total.items(), key=lambda pair: (-pair[1], pair[0])):
        parts = ", ".join(f"{by_split[s][category]} {s}" for s in by_split if by_split[s][category])
        lines.append(f"{category:<{width}} {count:>5}  ({parts})")
    return Finding.fine("categories", where, "\n".join(lines))
