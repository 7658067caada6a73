"""Small, exact copies of the layout of NSD and of its neighbours, traps included.

Every value is known: trial t of a voxel with C-order number v of the volume is
``betas(...)[t, v]``, so that a swapped axis, a wrong order of the mask or a wrong session shows.
"""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io

SHAPE = (3, 4, 5)  # no two axes alike, so that a transposition cannot pass
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
TRIALS = 750
VERSION = "betas_fithrf_GLMdenoise_RR"
VERTICES = 7  # of a hemisphere
PICTURES = 12_000  # of the small file of pictures; the first 10,000 belong to subject 1
CTABS = {
    "prf-visualrois": "0 Unknown\n1 V1v\n2 V1d\n3 V2v\n4 V2d\n5 V3v\n6 V3d\n7 hV4\n",
    "floc-faces": "0 Unknown\n1 OFA\n2 FFA-1\n3 FFA-2\n4 mTL-faces\n5 aTL-faces\n",
    "Kastner2015": "0 Unknown\n1 V1v\n2 V1d\n",
}


def mask_of(seed=0, shape=SHAPE, n=20):
    """``n`` voxels inside, as the values -1, 0 and 1 of nsdgeneral."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 0], size=shape).astype(np.int16)
    values.reshape(-1)[rng.choice(values.size, n, replace=False)] = 1
    return values


def betas(session, shape=SHAPE, trials=TRIALS, seed=0):
    """Stored int16 values (X, Y, Z, trials) of a session."""
    rng = np.random.default_rng([seed, session])
    return rng.integers(-900, 900, size=(*shape, trials)).astype(np.int16)


def design(seed=0, sessions=40):
    """``masterordering`` of 10,000 pictures three times each, and ``subjectim``, from 1.

    The first 1,000 pictures are those of all subjects; the ids of subject s start elsewhere.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.repeat(np.arange(1, 10_001), 3))[: sessions * TRIALS]
    shared = np.sort(rng.choice(PICTURES, 1000, replace=False)) + 1
    others = np.setdiff1d(np.arange(1, 73_001), shared)
    pictures = np.stack(
        [np.concatenate([shared, np.roll(others, -9000 * s)[:9000]]) for s in range(8)]
    )
    per_run = np.zeros((40, 12, 75), np.uint8)
    for run in range(12):
        per_run[:, run, : 63 if run % 2 == 0 else 62] = 1
    return order, pictures, shared, per_run


def write_design(root, order=None, pictures=None, **changes):
    known = design()
    fields = {
        "masterordering": (known[0] if order is None else order)[None].astype(np.uint16),
        "subjectim": (known[1] if pictures is None else pictures).astype(np.int32),
        "sharedix": known[2][None],
        "stimpattern": known[3],
        **changes,
    }
    path = Path(root) / "nsddata/experiments/nsd/nsd_expdesign.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {name: value for name, value in fields.items() if value is not None})
    return path


def save_volume(path, values, affine=AFFINE):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def save_surface(path, values):
    """float32 (vertices,) or (vertices, trials) as MGH, big-endian as FreeSurfer writes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.float32)
    shaped = values.reshape(len(values), 1, 1, *values.shape[1:])
    nibabel.save(nibabel.MGHImage(shaped, np.eye(4)), path)
    return path


def betas_folder(root, space="func1pt8mm", subject=1, version=VERSION):
    return Path(root) / f"nsddata_betas/ppdata/subj{subject:02d}" / space / version


def write_nifti(root, session, values=None, affine=AFFINE, name=None, **where):
    values = betas(session) if values is None else values
    return save_volume(
        betas_folder(root, **where) / f"{name or f'betas_session{session:02d}'}.nii.gz",
        values,
        affine,
    )


def write_hdf5(root, session, values=None, chunks=True, name=None, **where):
    """As MATLAB writes it: the axes in the file are the reverse of MATLAB's."""
    values = betas(session) if values is None else values
    path = betas_folder(root, **where) / f"{name or f'betas_session{session:02d}'}.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        stored = values.transpose()
        file.create_dataset(
            "betas", data=stored, chunks=(stored.shape[0], 1, 1, 1) if chunks else None
        )
    return path


def write_surface(root, session, left, right, name=None, **where):
    folder = betas_folder(root, **{"space": "fsaverage", **where})
    for side, values in (("lh", left), ("rh", right)):
        save_surface(folder / f"{side}.{name or f'betas_session{session:02d}'}.mgh", values)
    return folder


def roi_folder(root, subject=1, space="func1pt8mm"):
    return Path(root) / f"nsddata/ppdata/subj{subject:02d}" / space / "roi"


def write_rois(root, subject=1):
    """Families of labels with hemispheres; x of 0 is the left one.  Returns the labels."""
    folder, labels = roi_folder(root, subject), {}
    rng = np.random.default_rng(1)
    for family, text in CTABS.items():
        most = len(text.splitlines()) - 1
        values = rng.integers(-1, most + 1, size=SHAPE).astype(np.int16)
        labels[family] = values
        side = np.zeros(SHAPE, bool)
        side[:1] = True
        save_volume(folder / f"{family}.nii.gz", values)
        save_volume(folder / f"lh.{family}.nii.gz", np.where(side, values, -1).astype(np.int16))
        save_volume(folder / f"rh.{family}.nii.gz", np.where(side, -1, values).astype(np.int16))
        ctab = Path(root) / f"nsddata/freesurfer/fsaverage/label/{family}.mgz.ctab"
        ctab.parent.mkdir(parents=True, exist_ok=True)
        ctab.write_text(text)
    return labels


def picture(number, size=6):
    """The small picture of a number, uint8 (size, size, 3)."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, size=(size, size, 3)).astype(np.uint8)


def write_pictures(root, numbers=(), count=73_000, size=6):
    """A sparse file of pictures: only those of ``numbers`` are written."""
    path = Path(root) / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        brick = file.create_dataset(
            "imgBrick", (count, size, size, 3), np.uint8, chunks=(1, size, size, 3)
        )
        for number in numbers:
            brick[number] = picture(number, size)
    return path


def write_captions(root, texts, count=73_000):
    """``texts``: number -> captions; a hole in every other row, empty like missing captions."""
    path = Path(root) / "annots/COCO_73k_annots_curated.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, "w+", np.dtype("<U24"), (count, 5))
    for number, captions in texts.items():
        array[number, : len(captions)] = captions
    array.flush()
    return path


def write_nsd(root, sessions=(1, 2), kind="nifti", mask=None):
    """A whole small subject 1: design, mask, ROIs, betas, ncsnr.  Returns its mask (bool)."""
    root = Path(root)
    mask = mask_of() if mask is None else mask
    write_design(root)
    save_volume(roi_folder(root) / "nsdgeneral.nii.gz", mask)
    save_volume(roi_folder(root).parent / "brainmask.nii.gz", np.ones(SHAPE, np.int16))
    write_rois(root)
    for session in sessions:
        {"nifti": write_nifti, "hdf5": write_hdf5}[kind](root, session)
    ncsnr = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) / 30
    save_volume(betas_folder(root) / "ncsnr.nii.gz", ncsnr)
    return mask > 0
