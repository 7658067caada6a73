"""Cohort: its table, splits that cannot leak, and failures that are listed."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.cohort import Cohort
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.scan_table import scan_id
from neurodiff.core.volume import Volume


def table(subjects=40, visits=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(subjects):
        diagnosis = ["AD", "CN", "CN", "MCI"][number % 4]
        for visit in range(1 + number % visits):
            rows.append((f"s{number:02d}", 6.0 * visit, 60 + number + visit / 2, diagnosis))
    scans = pd.DataFrame(rows, columns=["subject", "session", "age", "diagnosis"])
    return scans.iloc[rng.permutation(len(scans))]


def opened(row):
    if row["subject"] == "s03":
        raise DataError("s03 is damaged; copy it again")
    return Volume(np.full((1, 2, 2, 2), row["session"], np.float32), np.eye(4))


def test_rows_open_as_volumes():
    cohort = Cohort(table(), opener=opened)
    assert cohort["s02_M012"].data.max() == 12
    assert cohort[cohort.ids.index("s02_M012")].data.max() == 12
    with pytest.raises(UsageError, match=r"no scan 's02_M13'.*Did you mean 's02_M"):
        cohort["s02_M13"]
    with pytest.raises(DataError, match="no path"):
        Cohort(table())[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_subject_is_in_two_parts_and_strata_keep_their_shares(seed):
    cohort = Cohort(table(), opener=opened)
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    parts = cohort.split(shares, seed=seed)
    people = [set(part.subjects) for part in parts.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 40
    assert [len(p) for p in people] == [28, 4, 8]
    assert sum(map(len, parts.values())) == len(cohort)
    whole = cohort.first_scans().scans["diagnosis"].value_counts()
    for name, part in parts.items():
        counts = part.first_scans().scans["diagnosis"].value_counts()
        for diagnosis, n in whole.items():
            assert abs(counts.get(diagnosis, 0) - shares[name] * n) < 2


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    shares = {"train": 0.8, "test": 0.2}

    def tested(scans, seed):
        return sorted(Cohort(scans).split(shares, seed=seed, stratify=["age"])["test"].subjects)

    assert tested(table(seed=0), 5) == tested(table(seed=9), 5)
    assert tested(table(), 5) != tested(table(), 6)


def test_splits_that_cannot_be():
    cohort = Cohort(table(subjects=3))
    with pytest.raises(UsageError, match="3 subjects leave none for test"):
        cohort.split({"train": 0.9, "test": 0.1}, seed=0)
    with pytest.raises(UsageError, match="sum to 1"):
        cohort.split({"train": 0.9, "test": 0.2}, seed=0)
    with pytest.raises(UsageError, match=r"'diagnose'.*Did you mean 'diagnosis'"):
        cohort.split({"a": 0.5, "b": 0.5}, seed=0, stratify=["diagnose"])
    leaking = table(visits=3).assign(split="train")
    leaking.iloc[[0, 1], leaking.columns.get_loc("split")] = "test"
    with pytest.raises(DataError, match=r"is in 2 splits"):
        Cohort(leaking)


def test_tables_that_are_wrong():
    twice = pd.DataFrame({"subject": ["a", "b", "a"], "session": [0.0, 0.0, 0.0]})
    with pytest.raises(DataError, match=r"two scans have the id a_M000 \(rows 0 and 2\)"):
        Cohort(twice)
    with pytest.raises(DataError, match="no scan"):
        Cohort(twice.iloc[:0])
    with pytest.raises(DataError, match="no column 'subject'"):
        Cohort(twice[["session"]])
    with pytest.raises(DataError, match=r"age is 'old' for 1 scans"):
        Cohort(pd.DataFrame({"subject": ["a"], "age": ["old"]}))
    with pytest.raises(DataError, match=r"an age such as 730"):
        Cohort(pd.DataFrame({"subject": ["a"], "age": [730]}))


def test_missing_ages_and_one_class_only_are_said():
    scans = table()
    scans.loc[scans.index[:3], "age"] = np.nan
    cohort = Cohort(scans)
    with pytest.raises(DataError, match=r"3 of \d+ scans have no age, first s"):
        cohort.require("age")
    known = cohort.select("age.notna()")
    known.require("age", "diagnosis")
    assert len(known) == len(cohort) - 3
    assert set(cohort.classes().scans["diagnosis"]) == {"AD", "CN"}
    with pytest.raises(DataError, match=r"no scan has the diagnosis AD.*there are CN"):
        cohort.select("diagnosis == 'CN'").classes()


def test_a_cohort_goes_on_and_lists_what_failed():
    cohort = Cohort(table(subjects=8), opener=opened)
    means, failed = cohort.each(lambda row, volume: float(volume.data.mean()))
    assert len(means) + len(failed) == len(cohort)
    assert set(failed["reason"]) == {"s03 is damaged; copy it again"}
    assert means["s02_M006"] == 6.0


def test_triples_are_every_middle_between_two_ends():
    months = [0.0, 6.0, 12.0, 24.0]
    scans = pd.DataFrame({"subject": ["a"] * 4 + ["b"] * 2, "session": [*months, 0.0, 12.0]})
    found = Cohort(scans).triples()
    assert len(found) == 4  # of four visits taken three at a time
    row = found.query("first == 'a_M000' and middle == 'a_M006' and last == 'a_M024'").iloc[0]
    assert (row["t"], row["gap"], row["reach"]) == (0.25, 24.0, 6.0)


def test_conversions_need_time_to_be_seen():
    rows = [("stays", 0, "MCI"), ("stays", 36, "MCI"), ("goes", 0, "MCI"), ("goes", 12, "AD"),
            ("late", 0, "MCI"), ("late", 48, "AD"), ("lost", 0, "MCI"), ("lost", 12, "MCI"),
            ("well", 0, "CN"), ("well", 12, "AD")]  # fmt: skip
    scans = pd.DataFrame(rows, columns=["subject", "session", "diagnosis"])
    found = Cohort(scans).conversions(36.0).to_dict()
    assert found == {"stays": False, "goes": True, "late": False, "lost": None}
    with pytest.raises(DataError, match="one grid first"):
        Cohort(scans, opener=lambda row: Volume(
            np.zeros((1, 2, 2, 2 + int(row["session"] > 0)), np.float32), np.eye(4)
        )).array()  # fmt: skip
    stacked = Cohort(scans, opener=opened).array()
    assert stacked.shape == (10, 1, 2, 2, 2)
    assert stacked[:, 0, 0, 0, 0].tolist() == Cohort(scans).scans["session"].tolist()


def test_fingerprints_follow_the_table_and_the_files(tmp_path):
    def made(folder):
        folder.mkdir(exist_ok=True)
        path = folder / "a.nii"
        Volume(np.zeros((1, 2, 2, 2), np.float32), np.eye(4)).save(path)
        return Cohort(pd.DataFrame({"subject": ["a"], "path": [str(path)]}))

    here, there = made(tmp_path / "here"), made(tmp_path / "there")
    assert here.fingerprint() == there.fingerprint()
    Volume(np.ones((1, 2, 2, 2), np.float32), np.eye(4)).save(tmp_path / "there" / "a.nii")
    assert here.fingerprint() == there.fingerprint()  # the same size
    assert here.fingerprint(contents=True) != there.fingerprint(contents=True)
    older = Cohort(here.scans.assign(age=70.0))
    assert older.fingerprint() != here.fingerprint()


def test_selections_and_joins():
    cohort = Cohort(table(subjects=6))
    assert cohort.select(["s01_M006", "s00_M000"]).ids == ["s01_M006", "s00_M000"]
    with pytest.raises(UsageError, match="does not fit"):
        cohort.select("colour == 1")
    with pytest.raises(UsageError, match="leaves no scan"):
        cohort.select("age > 120")
    flags = pd.DataFrame({"flags": ["skull"]}, index=["s00_M000"])
    joined = cohort.join(flags)
    assert joined.row("s00_M000")["flags"] == "skull"
    assert joined.scans["flags"].isna().sum() == len(cohort) - 1
    with pytest.raises(DataError, match="no scan 'x'"):
        cohort.join(pd.DataFrame({"flags": [""]}, index=["x"]))
    with pytest.raises(UsageError, match="no split 'test'"):
        cohort.part("test")
    assert scan_id("a", float("nan"), "run-2") == "a_run-2"
    assert "subjects" in repr(cohort)
    assert "<table>" in cohort._repr_html_()


def test_a_query_reaches_columns_and_nothing_else():
    cohort = Cohort(pd.DataFrame({"subject": ["a", "b"], "session": [0.0, 0.0]}))
    assert cohort.select("subject == 'a'").ids == ["a_M000"]
    with pytest.raises(UsageError, match="does not fit"):
        cohort.select("@np.ones(2) == 1")
