"""What of the test people's scans training has seen: the leakage audit of a cohort.

    same-person      error    one person (id) is in training and in another part; a warning where
                              two ids differ by case, "sub-", leading zeros or signs alone
    same-scan        error    two scans, one file or the same numbers
    similar-scan     warning  two ids of people, one head: the same scan saved again, in other
                              units, under another site, or another visit of the same person
    test-statistics  error    intensities normalised with the help of test scans, by what is stated
                              and by the numbers
    same-site        info     sites of test scans from which training has scans

Scans are compared as means over 24 x 24 x 24 blocks of their field of view, brought to mean 0 and
standard deviation 1, less the mean of the training scans. On simulated brains (40 people, 160
scans, 40 x 48 x 40 voxels) visits of one person then correlate by .80 to 1, other people by at most
.71, and a scan saved with 8 bits in other units by 1.00. Heads that were moved or stripped in
between are not found.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from neurodiff.analysis.leakage import (
    EXAMPLES,
    Check,
    LeakageReport,
    Thresholds,
    merged,
    not_checked,
    passed,
)
from neurodiff.analysis.leakage_strictness import LENIENT, SCAN_KINDS, Strictness
from neurodiff.analysis.leakage_trials import statistics_checks
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import NeurodiffError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.recording import Recording
from neurodiff.core.safe_io import sha256_of
from neurodiff.core.volume import Volume

BLOCKS = 24
SIMILAR = 0.8
"""Correlation from which two scans count as of one head."""
OF_EACH = {"intensities": "trial"}
"""What `prepare_scan` takes its statistics from: each scan by itself."""
_DROP = "leave one of them out, or put both into one part"


def audit_scans(
    parts: Mapping[str, Cohort],
    *,
    scans: bool = False,
    preprocessing: Mapping[str, str] | None = None,
    similar: float = SIMILAR,
    thresholds: Thresholds | None = None,
    progress: Progress = SILENT,
) -> LeakageReport:
    """Hold the scans of the part "train" against those of all other parts.

    Parameters
    ----------
    parts : name -> scans; one is "train".
    scans : also read and compare the scans themselves; without it tables and files alone.
    preprocessing : step -> what its statistics were taken from, as in `leakage.audit`; None for
        each scan by itself, as the pipeline does.
    similar : correlation from which two scans are of one head, -1 to 1.

    Returns
    -------
    One check for each of `SCAN_KINDS`.

    Raises
    ------
    UsageError : no part "train", or no other; ``similar`` out of range.
    """
    others = [part for name, part in parts.items() if name != "train"]
    if "train" not in parts or not others:
        there = ", ".join(parts) or "none"
        raise UsageError(f"parts are {there}; give 'train' and at least one to test on")
    if not -1 <= similar <= 1:
        raise UsageError(f"a correlation of {similar} was given; expected -1 to 1")
    train = parts["train"]
    test = pd.concat([part.scans for part in others], ignore_index=True)
    stated = OF_EACH if preprocessing is None else preprocessing
    found = [_people(train.scans, test), _files(train.scans, test), _sites(train.scans, test)]
    if scans:
        a = _described([train], progress)
        b = _described(others, progress)
        found += _contents(train.scans, test, a, b, similar, stated, thresholds or Thresholds())
    else:
        found.append(not_checked("similar-scan", "the scans were not read (scans)"))
        found += [_said(step, source, len(test)) for step, source in stated.items()]
    return LeakageReport(tuple(merged(found, SCAN_KINDS)))


def audit_scans_before_fit(
    parts: Mapping[str, Cohort], strictness: Strictness = LENIENT, *, progress: Progress = SILENT
) -> LeakageReport | None:
    """As `leakage_run.audit_before_fit`, for a cohort; under ``strict`` scans are read, too.

    Raises
    ------
    DataError : under ``strict``, a finding that is not allowed (exit code 3).
    """
    if not set(parts) - {"train"}:
        progress.say("leakage: not checked: the cohort has no other scans than those of a fit")
        return None
    report = audit_scans(parts, scans=strictness.strict, progress=progress)
    for line in report.lines():
        progress.say(line)
    report.raise_if_strict(strictness.strict, strictness.allow)
    return report


# ----------------------------------------------------------------------------------------- tables


def _people(train: pd.DataFrame, test: pd.DataFrame) -> Check:
    kind, threshold = "same-person", "equal ids; then ids without case, sub-, zeros and signs"
    people = list(dict.fromkeys(test["subject"]))
    of_train = set(train["subject"])
    shared = [name for name in people if name in of_train]
    if shared:
        return Check(
            kind=kind,
            severity="error",
            count=len(shared),
            of=len(people),
            examples=tuple(shared[:EXAMPLES]),
            threshold=threshold,
            advice="put all scans of a person into one part",
        )
    bare = {_bare(name): name for name in train["subject"]}
    alike = [(name, bare[_bare(name)]) for name in people if _bare(name) in bare]
    if not alike:
        return passed(kind, len(people), threshold)
    return Check(
        kind=kind,
        severity="warning",
        count=len(alike),
        of=len(people),
        examples=tuple(f"{a} = {b}?" for a, b in alike[:EXAMPLES]),
        threshold=threshold,
        advice="see whether these ids are of one person; if so, give one id",
    )


def _files(train: pd.DataFrame, test: pd.DataFrame) -> Check:
    """Scans of one file, by path and by content; files of another size are not read."""
    kind, threshold = "same-scan", "equal files"
    places = [_sizes(table) for table in (train, test)]
    if not places[0] or not places[1]:
        return not_checked(kind, "the scans are no files, and were not read (scans)")
    common = set(places[0].values()) & set(places[1].values())
    hashes: dict[str, str] = {}
    for of_side, size in ((scan, size) for side in places for scan, size in side.items()):
        if size in common:
            hashes[of_side] = ""
    paths = {**_paths(train), **_paths(test)}
    hashes = {scan: sha256_of(paths[scan]) for scan in hashes}
    return _equal(kind, threshold, train, test, hashes, [])


def _sites(train: pd.DataFrame, test: pd.DataFrame) -> Check:
    kind, threshold = "same-site", "equal sites in the table"
    known = test["site"].dropna()
    of_train = set(train["site"].dropna())
    if not len(known) or not of_train:
        return not_checked(kind, "the table names no sites")
    inside = [name for name in known if name in of_train]
    if not inside:
        return passed(kind, len(known), threshold)
    return Check(
        kind=kind,
        severity="info",
        count=len(inside),
        of=len(known),
        examples=tuple(dict.fromkeys(inside))[:EXAMPLES],
        threshold=threshold,
        advice="scores are of known scanners; hold out whole sites to know those of others",
    )


def _said(step: str, source: str, of: int) -> Check:
    kind = "test-statistics"
    if source == "unknown":
        return not_checked(kind, f"over which scans {step} were normalised is not known")
    if source in ("train", "trial"):
        return passed(kind, of, "as stated")
    if source not in ("all", "test"):
        raise UsageError(
            f"preprocessing {step!r} is said to be over {source!r}; give train, all, test, trial "
            "(each scan by itself) or unknown"
        )
    return Check(
        kind=kind,
        severity="error",
        count=of,
        of=of,
        examples=(f"{step}: over {source} scans",),
        threshold="as stated",
        advice="take means, standard deviations and templates from training scans alone",
    )


# ----------------------------------------------------------------------------------------- scans


def _described(parts: list[Cohort], progress: Progress) -> dict[str, tuple[str, np.ndarray]]:
    """Scan -> hash of its numbers, and its block means; scans that cannot be read are left out."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    for part in parts:
        for name in progress.over(part.ids, "scans compared"):
            try:
                volume = part[name].reoriented("RAS")
            except NeurodiffError:
                continue  # the fit says so of each; here it is only not compared
            data = np.ascontiguousarray(volume.data[0])
            content = hashlib.sha256(repr(data.shape).encode() + data.tobytes()).hexdigest()
            found[name] = content, _blocks(volume)
    return found


def _contents(
    train: pd.DataFrame,
    test: pd.DataFrame,
    a: dict[str, tuple[str, np.ndarray]],
    b: dict[str, tuple[str, np.ndarray]],
    similar: float,
    stated: Mapping[str, str],
    limits: Thresholds,
) -> list[Check]:
    if len(a) < 2 or not b:
        why = "too few scans could be read"
        return [not_checked(kind, why) for kind in ("same-scan", "similar-scan", "test-statistics")]
    hashes = {name: one[0] for name, one in {**a, **b}.items()}
    equal = _equal("same-scan", "equal numbers", train, test, hashes, sorted({*a, *b}))
    rows = [np.stack([_standard(one[1]) for one in side.values()]) for side in (a, b)]
    centre = rows[0].mean(axis=0)
    first, second = (_lengths(x - centre) for x in rows)
    alike = second @ first.T
    who = {str(r.scan): str(r.subject) for r in pd.concat([train, test]).itertuples()}
    where = {str(r.scan): r.site for r in pd.concat([train, test]).itertuples()}
    names, pairs = (list(a), list(b)), []
    for j, i in zip(*np.nonzero(alike >= similar), strict=True):
        one, other = names[0][i], names[1][j]
        if hashes[one] != hashes[other] and who[one] != who[other]:
            pairs.append((other, one, float(alike[j, i])))
    pairs.sort(key=lambda pair: -pair[2])
    threshold = f"correlation {similar:g} of {BLOCKS}^3 blocks after centring"
    count = len({other for other, *_ in pairs})
    near = passed("similar-scan", len(b), threshold)
    if pairs:
        near = Check(
            kind="similar-scan",
            severity="warning",
            count=count,
            of=len(b),
            examples=tuple(
                f"{x}{_at(where[x])} ~ {y}{_at(where[y])} ({r:.3f})" for x, y, r in pairs[:EXAMPLES]
            ),
            threshold=threshold,
            advice="look at these pairs: one person under two ids, or one scan twice",
        )
    return [equal, near, *_statistics(a, b, stated, limits)]


def _statistics(
    a: dict[str, tuple[str, np.ndarray]],
    b: dict[str, tuple[str, np.ndarray]],
    stated: Mapping[str, str],
    limits: Thresholds,
) -> list[Check]:
    """As `leakage_trials.statistics_checks`, of block means."""
    sides = []
    for run, side in enumerate((a, b)):
        values = np.stack([one[1] for one in side.values()]).astype(np.float32)
        table = pd.DataFrame({"stimulus": list(side), "run": run})
        sides.append(Recording.from_arrays(values, table))
    return statistics_checks(*sides, stated, limits)


def _equal(
    kind: str,
    threshold: str,
    train: pd.DataFrame,
    test: pd.DataFrame,
    keys: Mapping[str, str],
    known: list[str],
) -> Check:
    of_train: dict[str, str] = {}
    for name in train["scan"]:
        if name in keys:
            of_train.setdefault(keys[name], name)
    pairs = [(n, of_train[keys[n]]) for n in test["scan"] if keys.get(n) in of_train]
    of = len([n for n in test["scan"] if n in known]) if known else len(test)
    if not pairs:
        return passed(kind, of, threshold)
    site = {str(r.scan): r.site for r in pd.concat([train, test]).itertuples()}
    return Check(
        kind=kind,
        severity="error",
        count=len(pairs),
        of=of,
        examples=tuple(f"{x}{_at(site[x])} = {y}{_at(site[y])}" for x, y in pairs[:EXAMPLES]),
        threshold=threshold,
        advice=_DROP,
    )


def _blocks(volume: Volume) -> np.ndarray:
    """Means over 24 x 24 x 24 equal blocks of the field of view, flat."""
    data = volume.data[0].astype(np.float64)
    for axis in range(3):
        length = data.shape[axis]
        edges = np.linspace(0, length, BLOCKS + 1)
        cells = np.arange(length)
        share = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        share = np.maximum(share, 0)
        share /= share.sum(axis=1, keepdims=True)
        data = np.moveaxis(np.tensordot(share, data, (1, axis)), 0, axis)
    return data.ravel()


def _standard(x: np.ndarray) -> np.ndarray:
    x = x - x.mean()
    return x / max(float(x.std()), 1e-12)


def _lengths(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 1e-9)


def _bare(name: str) -> str:
    text = re.sub(r"[^a-z0-9]", "", str(name).lower().removeprefix("sub-"))
    return re.sub(r"0*(\d+)", r"\1", text)


def _paths(table: pd.DataFrame) -> dict[str, Path]:
    pairs = zip(table["scan"], table["path"], strict=True)
    return {scan: Path(path) for scan, path in pairs if path and Path(path).is_file()}


def _sizes(table: pd.DataFrame) -> dict[str, int]:
    return {scan: path.stat().st_size for scan, path in _paths(table).items()}


def _at(site: object) -> str:
    return f" [{site}]" if isinstance(site, str) and site else ""
