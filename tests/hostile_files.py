"""Small sound files of every format that is read, and hostile or broken ones made from them.

``READERS`` names the reader of each format. Run as a program, it makes all hostile files in a
folder, reads each under limits of time and memory, and prints one JSON line a file.
"""

import base64
import gzip
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

SECONDS = 10


# ------------------------------------------------------------------------------------- readers


def _volume(path):
    from neurodiff.core.volume import Volume

    return Volume.open(path)


def _gifti(path):
    from neurodiff.core.safe_io import load_image

    return [array.data.sum() for array in load_image(path).darrays]


def _cifti(path):
    from neurodiff.datasets.cifti import open_cifti

    image, _, _ = open_cifti(path)
    return np.asarray(image.dataobj[:1])


def _ct(path):
    from neurodiff.datasets.ct_pixels import stored_frames

    return stored_frames(str(path))


def _extract(path):
    from neurodiff.core.safe_io import extract_archive

    return extract_archive(path, path.parent / f"{path.name}.out")


def _mapped(path):
    from neurodiff.datasets.npz import map_npz_member

    return map_npz_member(path, "data", (3,)).sum()


def _pickled(path):
    from neurodiff.datasets.numpy_pickle import read_pickled_arrays

    return read_pickled_arrays(path, ["a"])


def _dictionary(path):
    from neurodiff.datasets.numpy_pickle import read_npy_dictionary

    return read_npy_dictionary(path)


def _mat(path):
    from neurodiff.datasets.nsd_files import read_mat

    return read_mat(path, ["x"])


def _bdata(path):
    from neurodiff.datasets.bdata import BData

    return BData.open(path)


def _codes(path):
    from neurodiff.core.code_table import read_codes

    return read_codes(path)


def _mgh(path):
    from neurodiff.datasets.mgh import read_mgh

    return read_mgh(path)


def _safe(name):
    def read(path):
        from neurodiff.core import safe_io

        return getattr(safe_io, name)(path)

    return read


READERS = {
    "npy": _safe("read_npy"),
    "npz": _safe("read_npz"),
    "mapped": _mapped,
    "pickle": _pickled,
    "dictionary": _dictionary,
    "json": _safe("read_json"),
    "yaml": _safe("read_yaml"),
    "csv": _safe("read_csv"),
    "weights": _safe("load_weights"),
    "hdf5": _safe("read_hdf5_arrays"),
    "bdata": _bdata,
    "archive": _extract,
    "volume": _volume,
    "gifti": _gifti,
    "cifti": _cifti,
    "mgh": _mgh,
    "ct": _ct,
    "mat": _mat,
    "mesh": _safe("load_mesh"),
    "picture": _safe("open_picture"),
    "codes": _codes,
}


# ----------------------------------------------------------------------------- sound small files


def valid_files(folder):
    """File name -> reader, of one small sound file of every format, written below ``folder``."""
    import h5py
    import nibabel
    import pandas as pd
    import PIL.Image
    import scipy.io
    import torch
    import trimesh
    from nibabel.gifti import GiftiDataArray, GiftiImage
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}

    def put(name, reader):
        made[name] = reader
        return folder / name

    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.save(put("a.npy", "npy"), rows)
    np.savez(put("stored.npz", "npz"), data=rows, other=rows[0])
    np.savez_compressed(put("packed.npz", "npz"), data=rows)
    np.savez(put("mapped.npz", "mapped"), data=rows)
    put("a.pkl", "pickle").write_bytes(pickle.dumps({"a": rows, "b": [1, "x"]}, 2))
    np.save(put("d.npy", "dictionary"), {"a": rows}, allow_pickle=True)
    put("a.json", "json").write_text('{"a": [1, 2.5, null, "x"], "b": {"c": true}}')
    put("a.yaml", "yaml").write_text("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1e-4}, e: '1'}\n")
    put("a.csv", "csv").write_text('id,name\n1,"a b"\n2,c\n')
    save_file({"w": rows, "b": rows[0]}, put("a.safetensors", "weights"))
    torch.save({"w": torch.ones(3, 2), "n": {"b": torch.ones(2)}}, put("zip.pt", "weights"))
    torch.save({"w": torch.ones(3)}, put("old.pt", "weights"), _use_new_zipfile_serialization=False)
    with h5py.File(put("a.h5", "hdf5"), "w") as file:
        file["betas"] = rows
        file.create_dataset("packed", data=rows, compression="gzip", chunks=(4, 3))
        file["g/names"] = np.array([b"x", b"y"])
    with h5py.File(put("b.h5", "bdata"), "w") as file:
        file["dataset"] = rows
        file["metadata/key"] = np.array([b"k1", b"k2"])
        file["metadata/value"] = np.ones((2, 3))
    with zipfile.ZipFile(put("a.zip", "archive"), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in/a.txt", "hello " * 20)
    with tarfile.open(put("a.tar.gz", "archive"), "w:gz") as file:
        about = tarfile.TarInfo("in/a.txt")
        about.size = 5
        file.addfile(about, io.BytesIO(b"hello"))
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    nibabel.save(image, put("a.nii", "volume"))
    nibabel.save(image, put("a.nii.gz", "volume"))
    nibabel.save(nibabel.Nifti2Image(rows.reshape(2, 3, 4), np.eye(4)), put("two.nii", "volume"))
    nibabel.save(nibabel.MGHImage(rows.reshape(2, 3, 4), np.eye(4)), put("a.mgh", "mgh"))
    nibabel.save(nibabel.MGHImage(rows.reshape(2, 3, 4), np.eye(4)), put("a.mgz", "volume"))
    put("a.nrrd", "volume").write_bytes(_nrrd(rows))
    array = GiftiDataArray(rows[:, 0].copy(), datatype="NIFTI_TYPE_FLOAT32")
    nibabel.save(GiftiImage(darrays=[array]), put("a.func.gii", "gifti"))
    _write_cifti(put("a.dscalar.nii", "cifti"))
    put("a.dcm", "ct").write_bytes(_dicom())
    scipy.io.savemat(put("a.mat", "mat"), {"x": rows}, do_compression=True)
    scipy.io.savemat(put("plain.mat", "mat"), {"x": rows})
    box = trimesh.creation.box()
    for kind in ("glb", "obj", "ply", "stl", "off"):
        box.export(put(f"a.{kind}", "mesh"))
    box.export(put("text.ply", "mesh"), encoding="ascii")
    picture = PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for kind in ("png", "jpg", "webp", "bmp"):
        picture.save(put(f"p.{kind}", "picture"))
    table = pd.DataFrame(
        {"scan": ["1", "2"], "subject": ["1", "2"], "c000": [0.5, 1.0], "c001": [1.5, 2.0]}
    )
    table.astype({"c000": "f4", "c001": "f4"}).to_parquet(put("c.parquet", "codes"))
    return made


def _nrrd(rows, extra="", sizes="2 3 4", kind="float", encoding="raw"):
    head = (
        f"NRRD0004\ntype: {kind}\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: {encoding}\n"
        f"space origin: (0,0,0)\n{extra}\n"
    )
    return head.encode() + np.asarray(rows, "<f4").tobytes()


def _write_cifti(path):
    import nibabel
    from nibabel.cifti2 import BrainModelAxis, Cifti2Image, ScalarAxis

    brain = BrainModelAxis.from_surface(np.arange(6), 32492, "CortexLeft")
    nibabel.save(Cifti2Image(np.ones((2, 6), "f4"), (ScalarAxis(["a", "b"]), brain)), path)


def _dicom(name="Doe^Jane", values=None, **changes):
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    values = np.arange(48, dtype="<i2").reshape(6, 8) if values is None else values
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = changes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = "1.2.3.4"
    one.PatientName, one.Modality = name, "CT"
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = values.shape
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 1
    one.RescaleSlope, one.RescaleIntercept = 1, 0
    for key, value in changes.items():
        setattr(one, key, value)
    one.add_new("PixelData", "OW", values.tobytes())
    out = io.BytesIO()
    pydicom.dcmwrite(out, one, enforce_file_format=True)
    return out.getvalue()


# ----------------------------------------------------------------------- hostile and broken files


def hostile_files(folder):
    """[(path, reader)] of files that every reader has to refuse; at least 60."""
    folder = Path(folder)
    sound = valid_files(folder / "sound")
    made = []

    def put(name, reader, data):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        made.append((path, reader))
        return path

    for name, reader in sound.items():
        if reader in ("json", "yaml", "csv"):
            continue  # a shorter text may be sound
        data = (folder / "sound" / name).read_bytes()
        cut = len(data) // 2 if name.startswith(("a.obj", "text")) else (2 * len(data)) // 3
        if name not in ("a.obj", "a.off", "p.webp", "p.jpg"):
            put(f"cut/{name}", reader, data[:cut])
        put(f"noise/{name}", reader, b"\x9d\xfe\x00" + np.random.default_rng(0).bytes(400))
        put(f"none/{name}", reader, b"")
    _arrays(put)
    _texts(put)
    _weights(put)
    _hdf5(put, folder)
    _archives(put)
    _images(put, folder)
    _scans(put)
    _meshes(put)
    return made


def _npy_header(shape, descr="<f8"):
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()


class Evil:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return os.system, ("touch ran-code",)


def _arrays(put):
    huge = _npy_header("(1099511627776, 1024)")
    put("huge.npy", "npy", huge)
    put("negative.npy", "npy", _npy_header("(-4,)") + bytes(32))
    put("objects.npy", "npy", _npy_header("(1,)", "|O") + pickle.dumps([Evil()]))
    for name, member in (("huge", huge), ("zeros", _npy_header("(50000000,)") + bytes(4 * 10**8))):
        for reader in ("npz", "mapped"):
            path = put(f"{name}-{reader}.npz", reader, None)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("data.npy", member)
    path = put("stored-huge.npz", "mapped", None)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.npy", huge)
    path = put("objects.npz", "npz", None)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.npy", _npy_header("(1,)", "|O") + pickle.dumps([Evil()]))
    put("evil.pkl", "pickle", pickle.dumps({"a": Evil()}))
    put("memo.pkl", "pickle", b"\x80\x02}r\xff\xff\xff\x7f.")  # a memo of 2**31 places
    put("long.pkl", "pickle", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.")
    put("deep.pkl", "pickle", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    put("evil.npy", "dictionary", _npy_header("()", "|O") + pickle.dumps(Evil()))


def _texts(put):
    put("deep.json", "json", "[" * 200_000)
    put("digits.json", "json", '{"a": ' + "9" * 50_000 + "}")
    put("many.json", "json", "[" + "0," * 21_000_000 + "0]")
    put("latin.json", "json", b'{"a": "\xe4"}')
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    put("aliases.yaml", "yaml", "\n".join(lines))
    lines = ["a0: &a0 {a: 1, b: 2, c: 3, d: 4, e: 5, f: 6, g: 7, h: 8, i: 9}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    put("merges.yaml", "yaml", "\n".join(lines))
    put("itself.yaml", "yaml", "&a [*a]")
    put("object.yaml", "yaml", "!!python/object/apply:os.system ['touch ran-code']")
    put("long.yaml", "yaml", "- x\n" * 2_000_000)
    put("deep.yaml", "yaml", "[" * 50_000)
    put("twice.yaml", "yaml", "a: 1\na: 2\n")
    put("control.yaml", "yaml", "a: \x01\n")
    put("ragged.csv", "csv", "a,b\n1,2\n1,2,3\n")
    put("latin.csv", "csv", b"a,b\n\xe4,1\n")
    put("quote.csv", "csv", 'a,b\n"1,2\n' * 3)


def _weights(put):
    import torch

    put("evil.pt", "weights", pickle.dumps(Evil()))
    path = put("evil-zip.pt", "weights", None)
    torch.save({"model": Evil()}, path)
    put("header.safetensors", "weights", struct.pack("<Q", 2**60) + b"{}")
    head = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}'
    put("shape.safetensors", "weights", struct.pack("<Q", len(head)) + head + bytes(4))
    path = put("bomb.pt", "weights", None)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(3 * 10**8))
    put("list.pt", "weights", None)
    torch.save([torch.ones(2)], made_path := path.parent / "list.pt")
    assert made_path.exists()


def _hdf5(put, folder):
    import h5py

    secret = folder / "secret.bin"
    secret.write_bytes(bytes(800))
    other = folder / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.ones(100)
    for reader in ("hdf5", "bdata"):
        with h5py.File(put(f"external-{reader}.h5", reader, None), "w") as file:
            file.create_dataset("dataset", (100,), "f8", external=[(str(secret), 0, 800)])
        with h5py.File(put(f"link-{reader}.h5", reader, None), "w") as file:
            file["dataset"] = h5py.ExternalLink(str(other), "x")
        with h5py.File(put(f"virtual-{reader}.h5", reader, None), "w") as file:
            layout = h5py.VirtualLayout((100,), "f8")
            layout[:] = h5py.VirtualSource(str(other), "x", (100,))
            file.create_virtual_dataset("dataset", layout)
        with h5py.File(put(f"huge-{reader}.h5", reader, None), "w") as file:
            file.create_dataset("dataset", (10**9, 500_000), "f8", chunks=(1000, 1000))
        with h5py.File(put(f"zeros-{reader}.h5", reader, None), "w") as file:
            file.create_dataset(
                "dataset", (75_000_000,), "u4", chunks=(25_000_000,), compression="gzip"
            )
            file["dataset"][:25_000_000] = 0
    with h5py.File(put("soft.h5", "bdata", None), "w") as file:
        file["dataset"] = h5py.SoftLink("/nowhere")


def _archives(put):
    for name in ("../out.txt", "/hostile-out.txt", "in/../../out.txt"):
        word = name.replace("/", "_").replace(".", "_")
        with zipfile.ZipFile(put(f"{word}.zip", "archive", None), "w") as file:
            file.writestr(name, "x")
        with tarfile.open(put(f"{word}.tar", "archive", None), "w") as file:
            file.addfile(tarfile.TarInfo(name))
    with tarfile.open(put("link.tar", "archive", None), "w") as file:
        link = tarfile.TarInfo("in")
        link.type, link.linkname = tarfile.SYMTYPE, "/"
        file.addfile(link)
        file.addfile(tarfile.TarInfo("in/hostile-out.txt"))
    with tarfile.open(put("device.tar", "archive", None), "w") as file:
        device = tarfile.TarInfo("null")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
        file.addfile(device)
    with zipfile.ZipFile(put("link.zip", "archive", None), "w") as file:
        link = zipfile.ZipInfo("in")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/")
    with zipfile.ZipFile(put("bomb.zip", "archive", None), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(2 * 10**8))
    with tarfile.open(put("bomb.tar.gz", "archive", None), "w:gz") as file:
        about = tarfile.TarInfo("zeros")
        about.size = 10**8
        file.addfile(about, io.BytesIO(bytes(about.size)))


def _nifti(dims, bits=64, code=64, offset=352.0):
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, *dims)
    struct.pack_into("<2h", head, 70, code, bits)
    struct.pack_into("<8f", head, 76, *([1.0] * 8))
    struct.pack_into("<f", head, 108, offset)
    struct.pack_into("<2h", head, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<4f", head, 280 + 16 * row, *np.eye(4)[row])
    head[344:348] = b"n+1\0"
    return bytes(head)


def _images(put, folder):
    huge = (3, 32767, 32767, 1000, 1, 1, 1, 1)
    put("huge.nii", "volume", _nifti(huge))
    put("huge.nii.gz", "volume", gzip.compress(_nifti(huge), mtime=0))
    zeros = _nifti((3, 512, 512, 200, 1, 1, 1, 1)) + bytes(8 * 512 * 512 * 200)
    put("zeros.nii.gz", "volume", gzip.compress(zeros, 1, mtime=0))
    put("short.nii", "volume", bytes(200))
    put("negative.nii", "volume", _nifti((3, -5, 4, 4, 1, 1, 1, 1)) + bytes(999))
    put("offset.nii", "volume", _nifti((3, 2, 2, 2, 1, 1, 1, 1), offset=1e9) + bytes(64))
    put("nan-offset.nii", "volume", _nifti((3, 2, 2, 2, 1, 1, 1, 1), offset=np.nan) + bytes(64))
    put("dims.nii", "volume", _nifti((99, 2, 2, 2, 1, 1, 1, 1)) + bytes(64))
    nan = _nifti((3, 2, 2, 2, 1, 1, 1, 1)) + np.full(8, np.nan).tobytes()
    put("nan.nii", "volume", nan)
    put("alone.hdr", "volume", _nifti((3, 2, 2, 2, 1, 1, 1, 1))[:348].replace(b"n+1", b"ni1"))
    put("huge.mgh", "mgh", struct.pack(">7i", 1, 30000, 30000, 30000, 1, 3, 0) + bytes(300))
    packed = struct.pack(">7i", 1, 30000, 30000, 3000, 1, 3, 0) + bytes(300)
    put("huge.mgz", "mgh", gzip.compress(packed, mtime=0))
    put("sizes.nrrd", "volume", _nrrd(np.ones(24), sizes="9999999 9999999 9"))
    put("bomb.nrrd", "volume", _nrrd(np.ones(24), sizes="1000 1000 1000", encoding="gzip"))
    put("detached.nrrd", "volume", _nrrd(np.ones(24), extra="data file: ../secret.bin\n"))
    put("huge.dscalar.nii", "cifti", _nifti(huge))
    about = 'Intent="NIFTI_INTENT_NONE" DataType="NIFTI_TYPE_FLOAT32" Dimensionality="1"'

    def gifti(dim, encoding, data, more="", before=""):
        return (
            f'<?xml version="1.0"?>{before}<GIFTI Version="1.0" NumberOfDataArrays="1"><DataArray '
            f'{about} Dim0="{dim}" Encoding="{encoding}" Endian="LittleEndian" '
            f'ArrayIndexingOrder="RowMajorOrder" {more}><Data>{data}</Data></DataArray></GIFTI>'
        )

    bomb = base64.b64encode(zlib.compress(bytes(3 * 10**8), 1)).decode()
    put("bomb.gii", "gifti", gifti(4, "GZipBase64Binary", bomb))
    put("huge.gii", "gifti", gifti(10**12, "GZipBase64Binary", "eJwDAAAAAAE="))
    more = 'ExternalFileName="secret.bin" ExternalFileOffset="0"'
    put("outside.gii", "gifti", gifti(4, "ExternalFileBinary", "", more))
    lol = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 10))
    before = f'<!DOCTYPE GIFTI [<!ENTITY a0 "lol">{lol}]>'
    put("laughs.gii", "gifti", gifti(4, "ASCII", "&a9;", before=before))
    png = b"\x89PNG\r\n\x1a\n"
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png += struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    put("huge.png", "picture", png)
    put("ghost.png", "picture", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def _scans(put):
    put("rows.dcm", "ct", _dicom(Rows=60000, Columns=60000))
    put("frames.dcm", "ct", _dicom(NumberOfFrames="99999999"))
    data = _dicom()
    at = data.index(b"PN") + 2
    put("length.dcm", "ct", data[:at] + struct.pack("<H", 0xFFFE) + data[at + 2 :])
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    head = data[: data.index(b"\x08\x00\x16\x00")]
    put("nested.dcm", "ct", head + nested)
    deflated = head.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    if deflated != head:  # the mark grew by two: so do the lengths before it
        at = deflated.index(b"1.2.840.10008.1.2.1.99")
        fixed = bytearray(deflated)
        fixed[at - 2 : at] = struct.pack("<H", 22)
        (length,) = struct.unpack("<I", fixed[140:144])
        fixed[140:144] = struct.pack("<I", length + 2)
        engine = zlib.compressobj(9, wbits=-15)
        zeros = engine.compress(bytes(4 * 10**8)) + engine.flush()
        put("deflated.dcm", "ct", bytes(fixed) + zeros)
    mat = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    zeros = zlib.compress(struct.pack("<II", 14, 4 * 10**8) + bytes(4 * 10**8), 9)
    put("bomb.mat", "mat", mat + struct.pack("<II", 15, len(zeros)) + zeros)
    put("length.mat", "mat", mat + struct.pack("<II", 14, 2**31))


def _glb(tree, data=b""):
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if data:
        chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _meshes(put):
    ply = "ply\nformat binary_little_endian 1.0\nelement vertex 999999999999\n"
    ply += "property float x\nproperty float y\nproperty float z\nend_header\n"
    put("huge.ply", "mesh", ply)
    put("lists.ply", "mesh", ply.replace("vertex 9", "face 9").replace("float x", "list int int x"))
    put("text.ply", "mesh", ply.replace("binary_little_endian", "ascii"))
    put("huge.stl", "mesh", bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50))
    put("huge.off", "mesh", "OFF\n999999999 999999999 0\n0 0 0\n")
    put("corners.off", "mesh", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n")
    put("corners.obj", "mesh", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    put("outside.obj", "mesh", "mtllib ../../secret.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    put("address.obj", "mesh", "mtllib http://x/y.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    put("nothing.obj", "mesh", "# no face\nv 0 0 0\n")
    put("nan.obj", "mesh", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    asset = {"asset": {"version": "2.0"}}
    buffers = [{"uri": "../secret.bin", "byteLength": 36}]
    put("outside.glb", "mesh", _glb({**asset, "buffers": buffers}))
    views = [{"buffer": 0, "byteOffset": 0, "byteLength": 36}]
    accessor = {"bufferView": 0, "componentType": 5126, "count": 10**12, "type": "VEC3"}
    tree = {**asset, "buffers": [{"byteLength": 36}], "bufferViews": views}
    put("count.glb", "mesh", _glb({**tree, "accessors": [accessor]}, bytes(36)))
    hollow = {"componentType": 5126, "count": 10**10, "type": "VEC3"}
    put("hollow.glb", "mesh", _glb({**tree, "accessors": [hollow]}, bytes(36)))
    nodes = [{"children": [1]}, {"children": [0]}]
    put("circle.glb", "mesh", _glb({**tree, "nodes": nodes}, bytes(36)))
    nodes = [{"children": [k + 1, k + 1]} for k in range(40)] + [{}]
    put("copies.glb", "mesh", _glb({**tree, "nodes": nodes}, bytes(36)))


# --------------------------------------------------------------------------------------- running


class TooLong(BaseException):
    """A reader that does not come to an end."""


def _alarm(*_):
    raise TooLong


def outcome(reader, path):
    """``"read"``, the name of the error's class, and its text."""
    from neurodiff.core.errors import NeurodiffError

    try:
        READERS[reader](path)
    except NeurodiffError as error:
        return type(error).__name__, str(error)
    except TooLong:
        return "TooLong", f"{path} took over {SECONDS} s"
    except Exception as error:  # what must not come out of a reader
        return f"foreign {type(error).__name__}", str(error)
    return "read", ""


def limited(reader, path, seconds=SECONDS):
    """`outcome` with an alarm."""
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return outcome(reader, path)
    except TooLong:
        return "TooLong", f"{path} took over {seconds} s"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(folder):
    """Child process: warm up, take away memory, read every hostile file."""
    import logging
    import time
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    folder = Path(folder).resolve()
    child = os.fork()
    if child == 0:  # making the bombs takes memory, reading them must not
        files = hostile_files(folder)
        lines = [f"{reader}\t{path}" for path, reader in files]
        (folder / "list.txt").write_text("\n".join(lines))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    files = [line.split("\t") for line in (folder / "list.txt").read_text().splitlines()]
    os.chdir(folder)
    import trimesh  # noqa: F401

    for name, reader in valid_files(folder / "warm").items():
        found, text = limited(reader, folder / "warm" / name)
        print(json.dumps(["sound", reader, name, found, text, 0]))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft = pages * os.sysconf("SC_PAGE_SIZE") + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    for reader, path in files:
        start = time.perf_counter()
        found, text = limited(reader, Path(path))
        took = round(time.perf_counter() - start, 3)
        print(json.dumps(["hostile", reader, path, found, text, took]))
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20
    print(json.dumps(["peak GiB", "", "", peak, "", time.perf_counter() - begin]))


if __name__ == "__main__":
    main(sys.argv[1])
