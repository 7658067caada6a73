"""FMRIObjaverse on a tiny copy of the hub's layout with its traps."""

import hashlib

import numpy as np
import PIL.Image
import pytest
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.datasets.fmri_objaverse import FMRIObjaverse, category_counts
from neurodiff.datasets.fmri_objaverse_files import read_captions, read_list
from neurodiff.datasets.opening import check_dataset, open_dataset
from neurodiff.datasets.surface import load_visual_cortex

SHELL, CAR, BAGEL, DOUBLE = "a1f0", "b2e4", "c3d9", "d4c8"


def trial(seed, frames=8):
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 1, (frames, 256, 256)).astype(np.float32)
    return images * load_visual_cortex().mask


@pytest.fixture
def root(tmp_path):
    """Four objects of three categories; 8 and 7 frames; captions with commas; a category of two
    words; Windows line ends, blank lines, lines with and without a suffix."""
    (tmp_path / "train_list.txt").write_bytes(
        f"seashell  000-107/{SHELL}.glb\r\n\r\ncar (automobile)\t000-001/{CAR}.npy\r\n"
        f"seashell   000-002/{DOUBLE}\r\n".encode()
    )
    (tmp_path / "test_list.txt").write_text(f"bagel  000-107/{BAGEL}.glb\n")
    (tmp_path / "Object_caption_Cap3D.csv").write_text(
        "category,uid,caption\n"
        f"seashell,000-107/{SHELL},a seashell, white, with spots\n"
        f'bagel,000-107/{BAGEL},"a bagel, cut in half, ""toasted"""\n'
        f"car (automobile),000-001/{CAR},a red car\n"
    )
    folder = tmp_path / "sub-0001" / "npy_data"
    folder.mkdir(parents=True)
    for seed, (uid, frames) in enumerate([(SHELL, 8), (CAR, 7), (DOUBLE, 8), (BAGEL, 8)]):
        np.save(folder / f"{uid}.npy", trial(seed, frames))
    return tmp_path


def problems(root, subject=None):
    table = check_dataset("fmri_objaverse", root=root, subject=subject)
    return table[table["status"] != "ok"]


def test_trials_categories_captions_and_values(root):
    recording, stimuli = open_dataset("fmri_objaverse", root=root, subject=1)
    assert recording.data.shape == (4, 8, 65536)
    assert recording.trials["stimulus"].tolist() == [SHELL, CAR, DOUBLE, BAGEL]
    assert recording.trials["split"].tolist() == ["train"] * 3 + ["test"]
    assert stimuli.categories() == ["seashell", "car (automobile)", "seashell", "bagel"]
    assert stimuli[SHELL].caption == "a seashell, white, with spots"
    assert stimuli[BAGEL].caption == 'a bagel, cut in half, "toasted"'
    assert stimuli[DOUBLE].caption == ""
    np.testing.assert_array_equal(recording.data[3], trial(3).reshape(8, -1))
    np.testing.assert_array_equal(recording.data[1][7], trial(1, 7)[6].ravel())
    assert category_counts(stimuli).to_dict() == {"seashell": 2, "car (automobile)": 1, "bagel": 1}
    assert len(problems(root)) == 0


@pytest.mark.parametrize(
    ("name", "frames"), [("mind3d-2024", range(2, 8)), ("mind3d-2024-dataset", range(1, 7))]
)
def test_the_two_published_choices_of_test_frames(root, name, frames):
    recording, _ = FMRIObjaverse.open(root, frames=name)
    np.testing.assert_array_equal(recording.data[0], trial(0)[list(frames)].reshape(6, -1))


def test_check_counts_the_long_tail_and_notes_what_captions_lack(root):
    table = check_dataset("fmri_objaverse", root=root)
    counts = table.query("what == 'categories'")["found"].item().splitlines()
    assert counts[0] == "3 categories of 4 objects; 2 have a single one"
    assert counts[1].split() == ["seashell", "2", "(2", "train)"]
    notes = " ".join(table["found"])
    assert f"1 of 4 objects have no caption, first 000-002/{DOUBLE}" in notes
    assert "shorter trials repeat their last frame" in notes
    assert "no mesh of any stimulus" in notes


def textured(path, colours):
    """A GLB of boxes side by side, each with a texture of one colour."""
    parts = []
    for k, colour in enumerate(colours):
        box = trimesh.creation.box().apply_translation([2 * k, 0, 0])
        image = PIL.Image.new("RGB", (4, 4), colour)
        uv = np.full((len(box.vertices), 2), 0.5)
        box.visual = TextureVisuals(uv=uv, material=PBRMaterial(baseColorTexture=image))
        parts.append(box)
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Scene(parts).export(path)


@pytest.mark.parametrize("place", ["stimuli/000-107", "stimuli", "glbs/000-107"])
def test_textured_stimuli_are_one_mesh_that_keeps_its_colours(root, place):
    textured(root / place / f"{SHELL}.glb", [(255, 0, 0), (0, 0, 255)])
    _, stimuli = FMRIObjaverse.open(root)
    mesh = stimuli[SHELL].mesh()
    assert len(mesh.faces) == 24
    colours = mesh.visual.to_color().vertex_colors[:, :3]
    left = mesh.vertices[:, 0] < 1
    assert (colours[left] == [255, 0, 0]).all()
    assert (colours[~left] == [0, 0, 255]).all()
    with pytest.raises(MissingDataError, match=f"stimulus '{CAR}' has no mesh"):
        stimuli[CAR].mesh()
    assert problems(root)["what"].tolist() == ["stimulus"] * 3


def test_a_broken_mesh_is_named_when_it_is_read(root):
    textured(root / "stimuli" / f"{SHELL}.glb", [(255, 0, 0)])
    path = root / "stimuli" / f"{SHELL}.glb"
    path.write_bytes(path.read_bytes()[:40])
    _, stimuli = FMRIObjaverse.open(root)
    with pytest.raises(DataError, match=rf"{SHELL}\.glb is not a readable GLB file"):
        stimuli[SHELL].mesh()


def test_without_lists_objects_are_held_out_by_the_hash_of_their_name(root):
    for name in ("train_list.txt", "test_list.txt"):
        (root / name).unlink()
    with pytest.raises(MissingDataError, match=r"train_list\.txt is missing.*split='hash'"):
        FMRIObjaverse.open(root)
    recording, _ = FMRIObjaverse.open(root, split="hash")
    expected = {
        uid: "train" if int(hashlib.sha256(uid.encode()).hexdigest()[:8], 16) % 20 else "test"
        for uid in (SHELL, BAGEL, CAR)
    }
    shown = recording.trials.set_index("stimulus")["split"].to_dict()
    assert shown == expected
    notes = check_dataset("fmri_objaverse", root=root)["found"]
    assert notes.str.contains("no published split").any()
    with pytest.raises(UsageError, match=r"no split 'hsh'.*Did you mean 'hash'"):
        FMRIObjaverse.open(root, split="hsh")


def test_lists_below_annotations_and_files_without_the_level_npy_data(root):
    (root / "annotations").mkdir()
    for name in ("train_list.txt", "test_list.txt"):
        (root / name).rename(root / "annotations" / name)
    for path in list((root / "sub-0001" / "npy_data").iterdir()):
        path.rename(root / "sub-0001" / path.name)
    (root / "sub-0001" / "npy_data").rmdir()
    assert FMRIObjaverse.open(root)[0].n_trials == 4


def test_missing_subjects_and_files(root):
    with pytest.raises(MissingDataError, match=r"sub-0015.*there is sub-0001"):
        FMRIObjaverse.open(root, 15)
    assert problems(root, 15)["what"].tolist() == ["sub-0015"]
    (root / "sub-0001" / "npy_data" / f"{CAR}.npy").unlink()
    with pytest.raises(MissingDataError, match=rf"1 of the 4 trials .*{CAR}\.npy.*allow_missing"):
        FMRIObjaverse.open(root)
    recording, stimuli = FMRIObjaverse.open(root, allow_missing=True)
    assert recording.n_trials == len(stimuli) == 3
    assert problems(root)["status"].tolist() == ["missing"]
    with pytest.raises(MissingDataError, match="not a folder"):
        FMRIObjaverse.open(root / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"000-107/{SHELL}.glb", "line 1 is .*expected two columns"),
        ("seashell  ../../etc/passwd", "line 1 is"),
        (f"bagel  000-107/{BAGEL}.glb", f"{BAGEL} is in the train and the test list"),
    ],
)
def test_lists_that_are_wrong(root, line, message):
    (root / "train_list.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        FMRIObjaverse.open(root)
    assert "broken" in set(problems(root)["status"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uid,caption\n000-107/a,b\n", "expected the header category,uid,caption"),
        ("category,uid,caption\nseashell,000-107/a\n", "line 2 is 'seashell,000-107/a'"),
        ("", "expected the header"),
    ],
)
def test_captions_that_are_wrong(root, text, message):
    (root / "Object_caption_Cap3D.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        FMRIObjaverse.open(root)
    assert problems(root)["what"].tolist() == ["captions"]


def test_captions_are_split_at_two_commas_and_no_more(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("category,uid,caption\r\nbox,000-001/u,one, two,, three\r\n")
    caption = read_captions(path)["u"]
    assert (caption.category, caption.key, caption.text) == ("box", "000-001/u", "one, two,, three")


def test_a_list_line_keeps_all_of_its_category(tmp_path):
    path = tmp_path / "l.txt"
    path.write_text("car (automobile)  000-107/ab12.glb\n")
    (shown,) = read_list(path, "train")
    assert (shown.category, shown.group, shown.uid) == ("car (automobile)", "000-107", "ab12")


def test_truncated_file_is_refused_and_found(root):
    path = root / "sub-0001" / "npy_data" / f"{CAR}.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=rf"{CAR}\.npy is truncated"):
        FMRIObjaverse.open(root)
    assert problems(root)["status"].tolist() == ["broken"]
