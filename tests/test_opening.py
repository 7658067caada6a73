"""Data sets by name, cards, and one's own recordings through a manifest."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.opening import (
    CHECKERS,
    MADE_FROM_A_SEED,
    OPENERS,
    check_dataset,
    find_cards,
    open_dataset,
    read_card,
)


@pytest.fixture
def mine(tmp_path):
    """Two subjects, four trials of (2 frames, 5 features), three stimuli."""
    rng = np.random.default_rng(0)
    (tmp_path / "betas").mkdir()
    rows = []
    for number, (subject, stimulus) in enumerate([("1", "cup"), ("1", "hat"), ("2", "cup"),
                                                  ("2", "box")]):  # fmt: skip
        np.save(tmp_path / f"betas/{number}.npy", rng.normal(size=(2, 5)).astype(np.float32))
        rows.append((f"betas/{number}.npy", subject, stimulus, f"kind of {stimulus}"))
    table = pd.DataFrame(rows, columns=["path", "subject", "stimulus", "category"])
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path


def write_card(folder, **changes):
    card = {
        "name": "mine", "what": "w", "reader": "csv", "get": "g", "layout": "l", "units": "u",
        "splits": "s", "licence": "l", "citation": "c", **changes,
    }  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in card.items()))
    return path


def test_manifest_gives_trials_and_categories(mine):
    recording, stimuli = open_dataset("csv", root=mine)
    assert recording.data.shape == (4, 2, 5)
    assert stimuli.ids == ["cup", "hat", "box"]
    assert stimuli["hat"].category == "kind of hat"
    one, _ = open_dataset("csv", root=mine, subject=2, unit="z")
    assert one.n_trials == 2
    assert one.unit == "z"
    np.testing.assert_array_equal(one.data[0], np.load(mine / "betas/2.npy"))
    with pytest.raises(UsageError, match=r"subject '3'.*1, 2"):
        open_dataset("csv", root=mine, subject=3)


def test_stimuli_beside_the_manifest(mine):
    import trimesh

    (mine / "stimuli").mkdir()
    for name in ("cup", "hat"):
        trimesh.creation.box().export(mine / "stimuli" / f"{name}.ply")
    pd.DataFrame({"id": ["cup", "hat", "box"], "height": [1.0, 2.0, 3.0]}).to_csv(
        mine / "stimuli.csv", index=False
    )
    _, stimuli = open_dataset("csv", root=mine)
    assert len(stimuli["cup"].mesh().faces) == 12
    assert stimuli["hat"].factors == {"height": 2.0}
    with pytest.raises(DataError, match="'box' has no mesh"):
        stimuli["box"].mesh()
    table = check_dataset("csv", root=mine)
    assert table.query("status != 'ok'")["found"].str.contains("'box'").tolist() == [True]
    pd.DataFrame({"id": ["cup"]}).to_csv(mine / "stimuli.csv", index=False)
    with pytest.raises(DataError, match="2 stimuli of the manifest, first 'box'"):
        open_dataset("csv", root=mine)


def test_check_of_a_manifest_finds_missing_and_broken_files(mine):
    assert (check_dataset("csv", root=mine)["status"] == "ok").all()
    broken = np.full((2, 5), np.nan, np.float32)
    np.save(mine / "betas/1.npy", broken)
    assert check_dataset("csv", root=mine)["status"].tolist() == ["ok", "broken"]
    (mine / "betas/3.npy").unlink()
    table = check_dataset("csv", root=mine)
    assert table["status"].tolist() == ["ok", "missing"]
    assert table["where"].iloc[1].endswith("3.npy")
    (mine / "manifest.csv").unlink()
    assert check_dataset("csv", root=mine)["status"].tolist() == ["missing"]
    with pytest.raises(MissingDataError):
        open_dataset("csv", root=mine)


def test_a_card_of_ones_own(mine):
    (mine / "manifest.csv").rename(mine / "trials.csv")
    card = write_card(mine, options="{manifest: trials.csv, unit: percent}", root=str(mine))
    recording, _ = open_dataset(str(card))
    assert recording.unit == "percent"
    assert open_dataset(str(card), unit="z")[0].unit == "z"
    assert (check_dataset(str(card))["status"] == "ok").all()


def test_cards_that_are_wrong(mine):
    with pytest.raises(UsageError, match="fmri_shape"):
        open_dataset(str(write_card(mine, reader="fmri_shap")), root=mine)
    with pytest.raises(UsageError, match="colour"):
        open_dataset(str(write_card(mine, colour="red")), root=mine)


def test_unknown_names_and_options_suggest_near_ones(tmp_path):
    with pytest.raises(UsageError, match=r"no data set 'haxby'.*Did you mean 'haxby2001'"):
        open_dataset("haxby", root=tmp_path)
    with pytest.raises(UsageError, match=r"no option 'frame'.*'frames'"):
        open_dataset("fmri_shape", root=tmp_path, frame=[1])
    with pytest.raises(UsageError, match="needs root"):
        open_dataset("haxby2001")
    with pytest.raises(UsageError, match=r"no size 'tinny'.*Did you mean 'tiny'"):
        open_dataset("simulated_objects", size="tinny")
    with pytest.raises(UsageError, match="simulated subjects are 1, 2, 3"):
        open_dataset("simulated_objects", subject="none", size="tiny")


def test_check_never_raises_on_an_empty_folder(tmp_path):
    for name in sorted(set(CHECKERS) - set(MADE_FROM_A_SEED)):
        table = check_dataset(name, root=tmp_path)
        assert list(table.columns) == ["status", "what", "where", "found", "what_to_do"]
        assert (table["status"] != "ok").any(), name
        assert (table.query("status != 'ok'")["what_to_do"] != "").all()


def test_every_card_is_complete_and_names_a_reader():
    assert set(OPENERS) == set(CHECKERS)
    cards = find_cards()
    assert {"fmri_shape", "haxby2001", "simulated_objects"} <= set(cards)
    for name in [*cards, "template"]:
        card = read_card(name)
        assert card.reader is None or card.reader in OPENERS
        assert name == "template" or card.name == name


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "folder", "trials"), [("fmri_shape", "fmri_shape_demo", 6),
                                   ("haxby2001", "haxby2001_slice", 1452)]
)  # fmt: skip
def test_real_data_open_and_pass_the_check(shared_data, name, folder, trials):
    recording, _ = open_dataset(name, root=shared_data / folder, subject=1)
    assert recording.n_trials == trials
    assert (check_dataset(name, root=shared_data / folder)["status"] == "ok").all()
