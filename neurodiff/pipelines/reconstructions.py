"""What decoding returns: one reconstruction a trial and sample, and a list of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from neurodiff.core.atomic import atomic_write

if TYPE_CHECKING:
    import trimesh


@dataclass(frozen=True)
class Reconstruction:
    """One decoded trial. ``mesh`` may be empty: the decoder can say "nothing is here"."""

    subject: str
    stimulus: str
    repeat: int
    sample: int
    embedding: Float[np.ndarray, " d"]
    codes: Int[np.ndarray, " codes"]
    mesh: trimesh.Trimesh


class Reconstructions(list[Reconstruction]):
    """What ``predict`` returns: a list that can be saved and looked at."""

    def save(self, folder: str | Path) -> list[Path]:
        """One binary glTF a reconstruction, ``subject_stimulus_r<repeat>_s<sample>.glb``; an
        existing file of that name is replaced as a whole. Empty meshes are left out.

        Returns
        -------
        The paths that were written.
        """
        paths = []
        for one in self:
            if len(one.mesh.faces) == 0:
                continue
            stem = f"{one.subject}_{one.stimulus}_r{one.repeat}_s{one.sample}"
            path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '-', stem)}.glb"
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(one.mesh.export(file_type="glb"))
            paths.append(path)
        return paths

    def show(self, index: int = 0):
        """An interactive view of one mesh, for notebooks."""
        return self[index].mesh.show()
