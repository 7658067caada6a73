"""Events to trials: the formula on exact cases, BIDS and release tables, where files are found."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.events import events_path, first_frames, frames_of, read_events


@pytest.mark.parametrize(
    ("onset", "delay", "tr", "start", "frame"),
    [
        (0.0, 4.0, 0.8, 0.0, 5),  # 4 / 0.8 exactly
        (1.6, 4.0, 0.8, 0.0, 7),  # 5.6 / 0.8 is 6.999... in floating point
        (0.1, 0.2, 0.1, 0.0, 3),  # 0.30000000000000004 / 0.1 is above 3 in floating point
        (1.601, 4.0, 0.8, 0.0, 8),
        (1.5, 4.0, 0.8, 0.0, 7),
        (0.0, 4.0, 2.0, 0.5, 2),  # frames at 0.5, 2.5, 4.5 s
    ],
)
def test_first_frame_at_or_after_onset_plus_delay(onset, delay, tr, start, frame):
    found = first_frames(np.array([onset]), delay=delay, tr=tr, start=start)[0]
    assert found == frame
    # the definition: this frame is not before onset + delay, and the one before it is
    assert start + found * tr >= onset + delay - 1e-6
    assert start + (found - 1) * tr < onset + delay - 1e-6


def bids(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"onset": [8.0, 0.0], "duration": [2.0, 2.0], "stim_file": ["a/x.png", "b/y.png"]}
    pd.DataFrame({**table, **columns}).to_csv(path, sep="\t", index=False)
    return path


def test_bids_events_come_in_order_of_onset(tmp_path):
    found = read_events(bids(tmp_path / "e.tsv"))
    assert found["stimulus"].tolist() == ["y", "x"]
    assert found["category"].tolist() == ["b", "a"]
    assert found["row"].tolist() == [3, 2]
    assert frames_of(tmp_path / "e.tsv", found, tr=0.8) == 2  # 2.5 to the nearest even: 2


def test_the_columns_of_the_release(tmp_path):
    path = tmp_path / "shape_1_1.csv"
    path.write_text(
        "videoStartTime,videoStopTime,stim_path,answer\n"
        "12.5,20.5,./stimuli/03001627/0abc.mp4,1\n"
        "30,38,./stimuli/04379243/1def.mp4,0\n"
        "45,,,\n"
    )
    with pytest.raises(DataError, match="does not state one duration"):
        frames_of(path, read_events(path).assign(duration=[8.0, 4.0]), tr=0.8)
    found = read_events(path)
    assert found[["stimulus", "folder", "onset", "duration"]].to_numpy().tolist() == [
        ["0abc", "03001627", 12.5, 8.0],
        ["1def", "04379243", 30.0, 8.0],
    ]
    assert frames_of(path, found, tr=0.8) == 10
    assert len(read_events(path, drop_last=True)) == 2


def test_trial_types_categories_and_splits(tmp_path):
    path = bids(
        tmp_path / "e.tsv",
        trial_type=["object", "rest"],
        category=["box/bag", "n/a"],
        split=["test", "train"],
    )
    found = read_events(path, trial_type=["object"])
    assert found[["stimulus", "category", "folder", "split"]].to_numpy().tolist() == [
        ["x", "box/bag", "a", "test"]
    ]
    with pytest.raises(DataError, match="no trial"):
        read_events(path, trial_type=["other"])


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"onset": ["soon", 0.0]}, r"line 2: onset is 'soon'; expected seconds"),
        ({"stim_file": ["../../etc/passwd/..", "y"]}, "gives no file name for the trial"),
        ({"stim_file": ["a b/x y.png", "y"]}, "line 2: 'a b/x y.png' gives no file name"),
    ],
)
def test_bad_rows_are_named(tmp_path, columns, text):
    with pytest.raises(DataError, match=text):
        read_events(bids(tmp_path / "e.tsv", **columns))


def test_missing_columns_are_named(tmp_path):
    (tmp_path / "a.tsv").write_text("onset\tstim_fle\n0\tx.png\n")
    with pytest.raises(DataError, match=r"no column 'stim_file'.*Did you mean 'stim_fle'"):
        read_events(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text("start\tstimulus\n0\tx\n")
    with pytest.raises(DataError, match="no column 'onset'"):
        read_events(tmp_path / "b.tsv")


def test_files_are_found_by_pattern_and_in_a_bids_folder(tmp_path):
    run = {"subject": "0001", "session": "2", "run": 3, "task": "shape"}
    wanted = bids(tmp_path / "b" / "sub_0001" / "shape_1_03.csv")
    pattern = str(tmp_path / "b" / "sub_{subject}" / "{task}_1_{run:02}.csv")
    assert events_path(pattern, **run) == wanted
    with pytest.raises(UsageError, match="field that is not known"):
        events_path("x_{acq}.tsv", **run)
    with pytest.raises(MissingDataError, match="subject 0001, run 4, does not exist"):
        events_path(pattern, **{**run, "run": 4})
    raw = tmp_path / "raw"
    name = "sub-0001/ses-{}/func/sub-0001_ses-{}_task-shape_run-{}_events.tsv"
    for session, number in (("1", "3"), ("2", "03"), ("2", "4")):
        bids(raw / name.format(session, session, number))
    assert events_path(str(raw), **run).name == "sub-0001_ses-2_task-shape_run-03_events.tsv"
    with pytest.raises(MissingDataError, match="0 events files of subject 0001, run 9"):
        events_path(str(raw), **{**run, "run": 9})
