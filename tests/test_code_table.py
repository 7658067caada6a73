"""Tables of codes: there and back exactly, and a sentence for each table that is not one."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.code_table import CodeTable, read_codes, write_codes
from neurodiff.core.errors import DataError, MissingDataError, UsageError

ABOUT = {"model": "a" * 64, "recipe": "ldae_tiny", "preparation": {"spacing": 1.5}}


def table(n=3, d=4, **columns):
    scans = {"scan": [f"s{k}" for k in range(n)], "subject": [f"p{k}" for k in range(n)],
             "session": [0.0, np.nan, 12.0][:n], "flags": ["", "skull, cut", ""][:n]}  # fmt: skip
    codes = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    return CodeTable(scans=pd.DataFrame(scans | columns), codes=codes, about=ABOUT)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_comes_back_to_the_last_bit(tmp_path, suffix):
    path = write_codes(tmp_path / f"codes{suffix}", table())
    found = read_codes(path)
    assert np.array_equal(found.codes, table().codes)
    assert found.scans["flags"].tolist() == ["", "skull, cut", ""]
    assert np.isnan(found.scans["session"][1])
    assert found.about == (ABOUT if suffix == ".parquet" else {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary is left


def test_the_columns_of_a_wide_code_are_in_order(tmp_path):
    wide = table(d=1200)
    path = write_codes(tmp_path / "wide.parquet", wide)
    frame = pd.read_parquet(path)
    assert {"c000", "c099", "c999", "c1199"} <= set(frame)
    shuffled = frame[frame.columns[::-1]]
    shuffled.to_csv(tmp_path / "wide.csv", index=False)
    assert np.array_equal(read_codes(tmp_path / "wide.csv").codes, wide.codes)


def test_codes_of_another_model_or_width_are_refused():
    table().require_model("a" * 64, 4)
    with pytest.raises(DataError, match="4 numbers and this model's have 5"):
        table().require_model("a" * 64, 5)
    with pytest.raises(DataError, match="another model"):
        table().require_model("b" * 64, 4)


def test_what_is_no_table_of_codes_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(MissingDataError, match="does not exist"):
        read_codes(tmp_path / "none.parquet")
    with pytest.raises(UsageError, match=r"ends in \.parquet"):
        read_codes(tmp_path / "codes.xlsx")
    path = write_codes(tmp_path / "codes.parquet", table())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="damaged"):
        read_codes(path)
    pd.DataFrame({"scan": ["a"], "subject": ["a"]}).to_parquet(path)
    with pytest.raises(DataError, match="no columns c000"):
        read_codes(path)
    pd.DataFrame({"scan": ["a"], "subject": ["a"], "c000": [1.0], "c002": [1.0]}).to_parquet(path)
    with pytest.raises(DataError, match="lacks c001"):
        read_codes(path)
    pd.DataFrame({"subject": ["a"], "c000": ["x"]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="no number"):
        read_codes(tmp_path / "t.csv")
    pd.DataFrame({"subject": ["a"], "c000": [np.nan]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="NaN"):
        read_codes(tmp_path / "t.csv")


def test_one_scan_twice_is_refused():
    with pytest.raises(DataError, match="scan s1 twice"):
        table(scan=["s0", "s1", "s1"])
