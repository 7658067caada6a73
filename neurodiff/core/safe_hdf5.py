"""HDF5 files: nothing outside the file is read, and no shape is believed without its bytes."""

from __future__ import annotations

import math
import os
from typing import Any

from neurodiff.core.errors import DataError
from neurodiff.core.safe_limits import (
    DEFLATE_LIMIT,
    RATIO_FROM,
    existing_file,
    first_line,
    require_budget,
)

_OBJECTS = 200_000


def open_hdf5(path: str | os.PathLike[str]) -> Any:
    """The file, open for reading, after a look at everything in it.

    Refused are external links, datasets whose values lie in other files (external storage, virtual
    data sets), and shapes that are far above what is stored. Locks are not asked for, which network
    file systems may not have.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : not HDF5, cut off, or one of what is refused.
    """
    import h5py

    path = existing_file(path)
    file = None
    try:
        file = h5py.File(path, "r", locking=False)
        _look(file, str(path))
    except DataError:
        if file is not None:
            file.close()
        raise
    except Exception as error:  # broken bytes end in any of a dozen types inside h5py
        if file is not None:
            file.close()
        raise DataError(
            f"{path} is not a complete HDF5 file ({first_line(error)}); download it again"
        ) from None
    return file


def read_hdf5(dataset: Any, where: str) -> Any:
    """All values of a dataset, whose size is within the budget.

    Raises
    ------
    DataError : over the budget, or damaged.
    """
    require_budget(where, _declared(dataset), what=f"dataset {dataset.name}")
    try:
        return dataset[()]
    except Exception as error:
        raise DataError(f"{where} is damaged ({first_line(error)}); download it again") from None


def read_hdf5_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name -> array for every dataset of a file; errors as `open_hdf5`."""
    import h5py

    with open_hdf5(path) as file:
        try:
            names: list[str] = []
            file.visititems(
                lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None
            )
            total = sum(_declared(file[name]) for name in names)
            require_budget(str(path), total, what="all of it")
            return {name: read_hdf5(file[name], str(path)) for name in names}
        except DataError:
            raise
        except Exception as error:  # broken bytes end in any of a dozen types inside h5py
            raise DataError(
                f"{path} is not a complete HDF5 file ({first_line(error)}); download it again"
            ) from None


def _declared(dataset: Any) -> int:
    shape = dataset.shape
    return 0 if shape is None else math.prod(shape) * max(1, dataset.dtype.itemsize)


def _look(file: Any, where: str) -> None:
    import h5py

    seen: set[Any] = set()
    pending = [file["/"]]
    while pending:
        group = pending.pop()
        for name in group:
            if len(seen) > _OBJECTS:
                raise DataError(f"{where} has over {_OBJECTS} objects; give a file of one data set")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise DataError(
                    f"{where}: {name[:80]!r} is a link into another file, which is not followed; "
                    "copy the data into one file"
                )
            if isinstance(link, h5py.SoftLink):
                # the object, if it exists, is met under its own name; ways through external
                # links are met as such
                continue
            entry = group[name]
            info = h5py.h5o.get_info(entry.id)
            key = (info.fileno, info.addr)
            if key in seen:
                continue
            seen.add(key)
            if isinstance(entry, h5py.Group):
                pending.append(entry)
            elif isinstance(entry, h5py.Dataset):
                _look_at(entry, where)


def _look_at(dataset: Any, where: str) -> None:
    name = dataset.name[:80]
    if dataset.external or dataset.is_virtual:
        raise DataError(
            f"{where}: {name!r} has its values in another file, which is not read; copy the data "
            "into one file"
        )
    declared, stored = _declared(dataset), dataset.id.get_storage_size()
    if declared > RATIO_FROM and declared > DEFLATE_LIMIT * max(stored, 1):
        raise DataError(
            f"{where}: {name!r} declares {declared} bytes and stores {stored}; download it again"
        )
    if dataset.chunks is not None:
        chunk = math.prod(dataset.chunks) * max(1, dataset.dtype.itemsize)
        require_budget(where, chunk, what=f"one chunk of {name!r}")
