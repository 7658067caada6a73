"""The audit of a cohort finds each leak that is planted, and nothing in a clean split."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.analysis.leakage_scans import audit_scans, audit_scans_before_fit
from neurodiff.analysis.leakage_strictness import SCAN_KINDS, Strictness
from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.volume import Volume

SHAPE = (24, 26, 22)
RNG = np.random.default_rng(0)
HEAD = RNG.standard_normal(SHAPE) * 3  # what all heads share
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


def head(seed, visit=0):
    """A head: shared, of its own, and a little of the visit."""
    own = np.random.default_rng(seed).standard_normal(SHAPE)
    now = np.random.default_rng([seed, visit + 1]).standard_normal(SHAPE)
    return 100 + 20 * (HEAD + own + 0.2 * now)


def part(people, pictures=None, sites=None, prefix=""):
    scans = [f"{prefix}{name}_M000" for name in people]
    table = pd.DataFrame({"scan": scans, "subject": list(people), "session": 0})
    table["site"] = sites or ["A"] * len(scans)
    given = dict(zip(scans, pictures or [head(int(n[-2:])) for n in people], strict=True))

    def opened(row):
        return Volume(np.asarray(given[row["scan"]], np.float32)[None], AFFINE, "a.u.", row["scan"])

    return Cohort(table, opener=opened)


def parts(test=None, **options):
    train = part([f"p{k:02d}" for k in range(12)])
    return {"train": train, "test": test or part(["p20", "p21", "p22"], **options)}


def found(report, kind):
    [check] = [one for one in report.checks if one.kind == kind]
    return check


def test_a_clean_split_passes_and_every_check_has_a_row():
    report = audit_scans(parts(), scans=True)
    assert [one.kind for one in report.checks] == list(SCAN_KINDS)
    assert not report.errors
    assert not report.warnings
    assert found(report, "similar-scan").severity == "passed"
    site = found(report, "same-site")
    assert (site.severity, site.count, site.of) == ("info", 3, 3)
    assert found(audit_scans(parts(sites=["B", "B", "B"])), "same-site").severity == "passed"
    unread = audit_scans(parts())
    assert found(unread, "similar-scan").severity == "not checked"
    assert found(unread, "test-statistics").severity == "passed"  # each scan by itself, as stated


def test_one_person_in_two_parts():
    report = audit_scans(parts(part(["p20", "p03"], prefix="again_")))
    check = found(report, "same-person")
    assert (check.severity, check.count, check.of, check.examples) == ("error", 1, 2, ("p03",))
    other = found(audit_scans(parts(part(["sub-P3_", "p20"], [head(30), head(20)]))), "same-person")
    assert (other.severity, other.examples) == ("warning", ("sub-P3_ = p03?",))


def test_one_scan_under_two_people_and_sites():
    test = part(["p20", "p21"], [head(4), head(21)], sites=["B", "B"])
    check = found(audit_scans(parts(test), scans=True), "same-scan")
    assert (check.severity, check.count, check.of) == ("error", 1, 2)
    assert check.examples == ("p20_M000 [B] = p04_M000 [A]",)


@pytest.mark.parametrize("change", ["other units, 8 bits", "another visit"])
def test_one_head_under_two_ids(change):
    again = head(4, visit=1) if change == "another visit" else np.round(head(4)) * 3.7 + 12
    test = part(["p20", "p21"], [again, head(21)], sites=["B", "B"])
    report = audit_scans(parts(test), scans=True)
    assert found(report, "same-scan").severity == "passed"
    check = found(report, "similar-scan")
    assert (check.severity, check.count, check.of) == ("warning", 1, 2)
    assert check.examples[0].startswith("p20_M000 [B] ~ p04_M000 [A] (")


def test_equal_files_are_found_without_reading_scans(tmp_path):
    rows = []
    for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 3)):
        volume = Volume(np.asarray(head(seed), np.float32)[None], AFFINE)
        volume.save(tmp_path / f"{name}.nii")
        rows.append({"scan": name, "subject": f"s{name}", "path": str(tmp_path / f"{name}.nii")})
    cohort = Cohort(pd.DataFrame(rows))
    both = {"train": cohort.select(["a", "b"]), "test": cohort.select(["c", "d"])}
    check = found(audit_scans(both), "same-scan")
    assert (check.severity, check.examples) == ("error", ("c = a",))
    assert found(audit_scans(both, scans=True), "same-scan").count == 1


def test_intensities_normalised_over_both_parts():
    pictures = np.stack([head(k) for k in (*range(12), 20, 21, 22)])
    by_both = (pictures - pictures.mean(axis=0)) / pictures.std(axis=0)
    by_train = (pictures - pictures[:12].mean(axis=0)) / pictures[:12].std(axis=0)
    for values, severity in ((by_both, "error"), (by_train, "passed")):
        train = part([f"p{k:02d}" for k in range(12)], list(values[:12]))
        test = part(["p20", "p21", "p22"], list(values[12:]))
        report = audit_scans({"train": train, "test": test}, scans=True)
        assert found(report, "test-statistics").severity == severity
    said = audit_scans(parts(), preprocessing={"histogram matching": "all"})
    assert found(said, "test-statistics").examples == ("histogram matching: over all scans",)


def test_strict_ends_and_what_is_allowed_passes():
    leaking = parts(part(["p20", "p21"], [head(4), head(21)]))
    with pytest.raises(DataError, match="same-scan, 1 of 2"):
        audit_scans_before_fit(leaking, Strictness(strict=True))
    assert not audit_scans_before_fit(leaking).errors  # tables alone
    allowed = Strictness(strict=True, allow=("same-scan",))
    assert audit_scans_before_fit(leaking, allowed).errors
    assert audit_scans_before_fit({"train": leaking["train"]}) is None
    with pytest.raises(UsageError, match="at least one to test on"):
        audit_scans({"train": leaking["train"]})
    with pytest.raises(UsageError, match="correlation of 2"):
        audit_scans(leaking, similar=2.0)
    with pytest.raises(UsageError, match="said to be over 'some'"):
        audit_scans(leaking, preprocessing={"z": "some"})
