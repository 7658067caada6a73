"""Stimuli: lookup by id, lazy loading, and files that are missing, broken or outside."""

import numpy as np
import pandas as pd
import pytest

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.stimuli import Stimuli


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "id": [12, 7, 3],
            "category": ["cup", "lamp", "cup"],
            "caption": ["a cup", None, "a tall cup"],
            "height": [0.5, 1, 2],
            "maker": ["x", "y", "z"],
            "new": [True, False, True],
        },
        index=[9, 8, 7],
    )


def test_lookup_order_and_factors(table):
    stimuli = Stimuli(table, None, None, simulated=True)
    assert stimuli.ids == ["12", "7", "3"]
    assert stimuli.categories() == ["cup", "lamp", "cup"]
    assert stimuli["7"].factors == {"height": 1.0}  # text and yes/no are no factors
    assert stimuli["7"].caption == ""
    assert stimuli[12].id == "12"
    assert [one.id for one in stimuli] == stimuli.ids
    assert "3" in stimuli
    assert "4" not in stimuli
    part = stimuli.select(["3", "12"])
    assert part.ids == ["3", "12"]
    assert part.simulated
    assert len(part) == 2
    assert "3 ids, 2 categories, simulated" in repr(stimuli)
    assert "<table" in stimuli._repr_html_()


def test_loaders_are_called_with_the_id_and_only_when_asked(table):
    asked = []
    stimuli = Stimuli(table, lambda name: asked.append(name) or f"mesh of {name}")
    one = stimuli.select(["3"])["3"]
    assert asked == []
    assert one.mesh() == "mesh of 3"
    assert asked == ["3"]


def test_unknown_and_missing(table):
    stimuli = Stimuli(table.assign(id=["chair-1", "chair-2", "lamp-1"]))
    with pytest.raises(UsageError, match=r"no stimulus 'chair1' among 3\. Did you mean 'chair-"):
        stimuli["chair1"]
    with pytest.raises(UsageError, match="no stimulus 'mug'"):
        stimuli.select(["lamp-1", "mug"])
    for load in (stimuli["lamp-1"].mesh, stimuli["lamp-1"].image):
        with pytest.raises(MissingDataError, match="stimulus 'lamp-1' has no"):
            load()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(FileNotFoundError("x.glb"), MissingDataError), (ValueError("bad face"), DataError)],
)
def test_a_loader_that_fails_names_the_stimulus(table, error, kind):
    def load(name):
        raise error

    with pytest.raises(kind, match=r"mesh of stimulus '7' could not be read \((x\.glb|bad face)\)"):
        Stimuli(table, load)["7"].mesh()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.assign(id=["a", "b", "a"]), "id 'a' is there twice"),
        (lambda t: t.assign(id=["a", None, "c"]), "no id in row 1"),
        (lambda t: t.drop(columns="id"), "no column id"),
    ],
)
def test_tables_that_cannot_be(table, change, sentence):
    with pytest.raises(DataError, match=sentence):
        Stimuli(change(table))


@pytest.fixture
def folder(tmp_path):
    import PIL.Image
    import trimesh

    root = tmp_path / "stimuli"
    (root / "deep").mkdir(parents=True)
    trimesh.creation.box((1.0, 2.0, 3.0)).export(root / "box.ply")
    trimesh.creation.icosphere(2).export(root / "deep" / "other.glb")
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0] = 255
    PIL.Image.fromarray(pixels).save(root / "box.png")
    trimesh.creation.box().export(tmp_path / "outside.ply")
    return root


def test_from_folder(folder):
    found = Stimuli.from_folder(folder)
    assert found.ids == ["box"]
    assert found["box"].mesh().volume == pytest.approx(6.0)
    assert found["box"].image().mode == "RGB"
    assert found["box"].image().getpixel((5, 3)) == (255, 0, 0)
    csv = folder.parent / "table.csv"
    csv.write_text("id,category,mesh\nbox,brick,\nball,round,deep/other.glb\n007,agent,\n")
    listed = Stimuli.from_folder(folder, csv)
    assert listed["ball"].mesh().is_watertight
    assert listed["box"].mesh().is_watertight
    assert listed.categories() == ["brick", "round", "agent"]
    with pytest.raises(MissingDataError, match="stimulus '007' has no mesh"):
        listed["007"].mesh()
    with pytest.raises(MissingDataError, match="stimulus 'ball' has no image"):
        listed["ball"].image()


def test_from_folder_with_hostile_content(folder, tmp_path):
    (folder / "bad.ply").write_bytes(b"ply\nformat nonsense")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n")
    (folder / "bad.glb").write_bytes(b"glTF\x02\x00")
    stimuli = Stimuli.from_folder(
        folder,
        pd.DataFrame(
            {
                "id": ["bad", "../outside", "x", "y", "glb"],
                "mesh": ["bad.ply", "", "../outside.ply", str(tmp_path / "outside.ply"), "bad.glb"],
            }
        ),
    )
    for name in ("bad", "glb"):
        with pytest.raises(DataError, match=f"mesh of stimulus '{name}' could not be read"):
            stimuli[name].mesh()
    with pytest.raises(DataError, match="image of stimulus 'bad' could not be read"):
        stimuli["bad"].image()
    for name in ("../outside", "x", "y"):
        with pytest.raises(DataError, match="leads out of"):
            stimuli[name].mesh()
    with pytest.raises(MissingDataError, match="is not a folder"):
        Stimuli.from_folder(folder / "absent")
    with pytest.raises(DataError, match="has no file that ends in"):
        Stimuli.from_folder(_empty(tmp_path))


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_every_caption_of_a_stimulus():
    table = pd.DataFrame({"id": ["a", "b"], "captions": [("one cup", "", "a cup"), ()]})
    stimuli = Stimuli(table)
    assert stimuli.captions("a") == ("one cup", "a cup")
    assert stimuli.captions("b") == ()
    assert stimuli.factor_names == []
    single = Stimuli(pd.DataFrame({"id": ["a", "b"], "caption": ["one cup", " "]}))
    assert [single.captions(name) for name in "ab"] == [("one cup",), ()]
