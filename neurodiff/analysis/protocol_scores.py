"""What a protocol makes of one reconstruction and its truth: points, views, activations.

Each item's random draws are seeded by its own name, and each picture and cloud goes through a
network alone, so that neither the order of the items nor what else is scored changes a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from neurodiff.analysis.networks import Networks
from neurodiff.analysis.protocols import NETWORK_USES, Protocol, column
from neurodiff.core.seeds import item_seed, numpy_generator
from neurodiff.geometry.mesh import sample_surface
from neurodiff.geometry.views import render_views
from neurodiff.metrics.alignment import adjust_2024, turned_chamfer
from neurodiff.metrics.frechet import frechet_interval
from neurodiff.metrics.identification import classifier_n_way
from neurodiff.metrics.images import psnr, ssim
from neurodiff.metrics.meshes import chamfer_distance, normalise_points
from neurodiff.metrics.transport import earth_movers_distance

if TYPE_CHECKING:
    import trimesh

N_POINTS = 2048
STORED_POINTS = 10_000  # of the truth's cloud from which mind3d-2024 draws with replacement
VIEW_PIXELS = 224
SCALE = 100.0  # CD and EMD are shown x 1e2
FPD_SCALE = 0.1


def surface_points(
    mesh: trimesh.Trimesh, stimulus: str, *, seed: int, which: str, n: int = N_POINTS
) -> Float[np.ndarray, "n 3"]:
    """Points drawn from the surface by a seed of the stimulus; an empty mesh is a point at 0."""
    if len(mesh.faces) == 0:
        return np.zeros((n, 3))
    key = item_seed(seed, subject=which, stimulus=stimulus, stage="protocol points")
    return sample_surface(mesh, n, numpy_generator(key))


def adjusted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The reconstruction as the published CD script hands it on (see `adjust_2024`)."""
    if len(mesh.faces) == 0:
        return mesh
    moved = mesh.copy()
    centre = np.asarray(mesh.center_mass if mesh.is_watertight else mesh.centroid)
    moved.vertices = adjust_2024(np.asarray(mesh.vertices), centre)
    return moved


def six_views(mesh: trimesh.Trimesh) -> UInt8[np.ndarray, "6 h w 3"]:
    """The six published views, by ray casting at 224 pixels."""
    return render_views(mesh, size=VIEW_PIXELS)


@dataclass
class TrueShape:
    """What is made of a true shape once, however many answers are compared with it."""

    name: str
    mesh: Any  # trimesh.Trimesh; None where the pictures are given
    judge: Any = None

    @cached_property
    def views(self) -> np.ndarray:
        """Six rendered views, made when they are first asked for."""
        return six_views(self.mesh)

    @cached_property
    def classes(self) -> np.ndarray:
        """The judge's probabilities of the views."""
        return self.judge.probabilities(self.views)


@dataclass
class ProtocolScorer:
    """Scores by one protocol with the networks that there are; networks are opened when needed.

    ``networks`` None leaves out what needs weights.
    """

    protocol: Protocol
    networks: Networks | None = None
    seed: int = 0
    _opened: dict[str, Any] = field(default_factory=dict, repr=False)

    def names(self, metrics: Sequence[str]) -> list[str]:
        """Columns of one value an item, networks in their names; what is missing is left out."""
        found = []
        for metric in metrics:
            use = NETWORK_USES.get(metric)
            if metric == "FPD" or (use and not self._network(use)):
                continue
            found.append(column(metric, self._network(use).name if use else None))
        return found

    def true_shape(self, name: str, mesh: Any) -> TrueShape:
        """A stimulus's mesh with the judge of n-way identification."""
        return TrueShape(name, mesh, self._load("n-way"))

    def item(
        self, predicted: trimesh.Trimesh, true: TrueShape, metrics: Sequence[str], draw: int = 0
    ) -> dict[str, float]:
        """Scores of one reconstruction; ``draw`` (sample and repeat) seeds the n-way draws."""
        wanted = set(metrics)
        scores: dict[str, float] = {}
        if wanted & {"CD", "CD turned", "EMD"}:
            scores |= self._points(predicted, true, wanted)
        if wanted & {"PSNR", "SSIM", "LPIPS", "2-way", "10-way"}:
            scores |= self.pictures(six_views(predicted), true, wanted, draw)
        return scores

    def pictures(
        self, views: np.ndarray, true: TrueShape, metrics: Sequence[str] | set[str], draw: int = 0
    ) -> dict[str, float]:
        """Means over views of what compares pictures, view by view with ``true.views``."""
        wanted, protocol = set(metrics), self.protocol
        pairs = list(zip(views, true.views, strict=True))
        scores: dict[str, float] = {}
        if "PSNR" in wanted:
            # equal pictures have no finite value; 8 bits end at one grey level in one channel
            best = 10 * np.log10(255.0**2 * views[0].size)
            scores["PSNR"] = float(np.mean([min(psnr(a, b), best) for a, b in pairs]))
        if "SSIM" in wanted:
            columns = protocol.columns_as_channels
            scores["SSIM"] = float(
                np.mean([ssim(a, b, columns_as_channels=columns) for a, b in pairs])
            )
        lpips, judge = self._network("LPIPS"), self._network("n-way")
        if lpips and "LPIPS" in wanted:
            distance = self._load("LPIPS").distances(
                views, true.views, values=protocol.lpips_values
            )
            scores[column("LPIPS", lpips.name)] = float(distance.mean())
        if judge and wanted & {"2-way", "10-way"}:
            guessed = self._load("n-way").probabilities(views)
            for metric, n in (("2-way", 2), ("10-way", 10)):
                if metric in wanted:
                    rates = self._n_way(guessed, true, n, draw)
                    scores[column(metric, judge.name)] = float(rates.mean())
        return scores

    def activation(self, mesh: trimesh.Trimesh, stimulus: str, which: str) -> np.ndarray | None:
        """PointNet's activation of a shape; None without a network or a shape."""
        from neurodiff.models.pointnet import activations

        network = self._load("FPD")
        if network is None or len(mesh.faces) == 0:
            return None
        if which == "true" and self.protocol.with_replacement:
            stored = surface_points(mesh, stimulus, seed=self.seed, which=which, n=STORED_POINTS)
            key = item_seed(self.seed, subject=which, stimulus=stimulus, stage="replacement")
            points = stored[numpy_generator(key).integers(0, len(stored), N_POINTS)]
        else:
            points = surface_points(mesh, stimulus, seed=self.seed, which=which)
        return activations(network, normalise_points(points)[None].astype(np.float32))[0]

    def fpd(self, predicted: Sequence, true: Sequence) -> dict[str, Any] | None:
        """One row of `Evaluation.sets`; None without a network.

        Parameters
        ----------
        predicted, true : activations of the same items; None for an answer without a shape, which
            is left out, and counted in the note.
        """
        network = self._network("FPD")
        if network is None:
            return None
        pairs = [(a, b) for a, b in zip(predicted, true, strict=True) if a is not None]
        name = column("FPD", network.name)
        left = len(predicted) - len(pairs)
        note = f"; {left} items without a shape are left out" if left else ""
        if len(pairs) < 2:
            nan = float("nan")
            text = f"not available: {len(pairs)} items with a shape, 2 are needed{note}"
            row = {"value": nan, "low": nan, "high": nan, "n": len(pairs), "note": text}
            return {"metric": name} | row
        found = frechet_interval(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
        return {
            "metric": name,
            "value": FPD_SCALE * found.value,
            "low": FPD_SCALE * found.low,
            "high": FPD_SCALE * found.high,
            "n": found.n_items,
            "note": found.note + note,
        }

    def _points(
        self, predicted: trimesh.Trimesh, true: TrueShape, wanted: set[str]
    ) -> dict[str, float]:
        moved = adjusted(predicted) if self.protocol.adjusts else predicted
        a = surface_points(moved, true.name, seed=self.seed, which="predicted")
        b = surface_points(true.mesh, true.name, seed=self.seed, which="true")
        scores: dict[str, float] = {}
        if "CD" in wanted:
            scores["CD"] = SCALE * float(chamfer_distance(a, b))
        if "CD turned" in wanted:
            scores["CD turned"] = SCALE * turned_chamfer(a, b).distance
        if "EMD" in wanted:
            scores["EMD"] = SCALE * earth_movers_distance(a, b)
        return scores

    def _n_way(self, guessed: np.ndarray, true: TrueShape, n: int, draw: int) -> np.ndarray:
        if self.protocol.draws is None:
            return classifier_n_way(guessed, true.classes, n)
        key = item_seed(self.seed, subject="", stimulus=true.name, sample=draw, stage=f"{n}-way")
        return classifier_n_way(
            guessed,
            true.classes,
            n,
            generator=numpy_generator(key),
            trials=self.protocol.draws,
        )

    def _network(self, use: str) -> Any:
        return self.networks.get(use) if self.networks is not None else None

    def _load(self, use: str) -> Any:
        """The opened network; None where there is none."""
        if use not in self._opened:
            network = self._network(use)
            self._opened[use] = None if network is None else network.load()
        return self._opened[use]


def empty_sets() -> pd.DataFrame:
    """A table of scores of sets without rows."""
    return pd.DataFrame(columns=["metric", "sample", "value", "low", "high", "n", "note"])
