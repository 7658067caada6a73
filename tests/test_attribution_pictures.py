"""Pictures of maps: colours, limits, legend, and pages that ask for nothing from a network."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from neurodiff.analysis import attribution_pictures
from neurodiff.analysis.attribution_maps import BrainMap, paint
from neurodiff.analysis.attribution_pictures import (
    Scale,
    legend_text,
    picture,
    signed_colours,
)
from neurodiff.analysis.attribution_views import interactive
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.recording import MaskSpace, VectorSpace
from neurodiff.datasets.surface import FlatMapSpace, load_visual_cortex


def brain_map(values, **more):
    given = {
        "method": "encoding", "subject": "sub-01", "stage": "bridge", "statistic": "importance",
        "unit": "correlation", "painted": True, "threshold": 0.2,
    }  # fmt: skip
    return BrainMap(values=np.asarray(values, np.float32), **{**given, **more})


def on_areas(**values):
    return paint(values, load_visual_cortex().areas, 8921)


def voxels():
    mask = np.zeros((20, 22, 20), bool)
    mask[6:12, 4:12, 6:12] = True
    affine = np.array([[-8, 0, 0, 80], [0, 8, 0, -100], [0, 0, 8, -60], [0, 0, 0, 1.0]])
    return MaskSpace(mask, affine)


def lightness(rgb):
    """CIELAB L* of sRGB (n, 3)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(np.maximum(y, 216 / 24389)) - 16


def test_signed_colours_go_evenly_and_symmetrically_from_white():
    found = lightness(signed_colours()(np.linspace(0, 1, 257))[:, :3])
    assert found[128] > 95
    assert np.abs(np.diff(found, 2)[np.r_[0:126, 129:255]]).max() < 0.1  # a straight line
    assert np.abs(found - found[::-1]).max() < 1.0
    assert found[0] < 36


def test_limits_are_symmetric_only_where_there_are_negative_values():
    signed, plain, p = Scale([-1, 3, np.nan]), Scale([0, 2]), Scale([0.2], probability=True)
    assert (signed.low, signed.high, signed.signed) == (-3, 3, True)
    assert (plain.low, plain.high, plain.name) == (0, 2, "viridis")
    assert (p.low, p.high, p.name) == (0, 1, "viridis_r")
    assert Scale([np.nan]).high == 1.0
    assert Scale([0.0]).high == 1.0


def test_the_legend_says_unit_and_threshold():
    assert legend_text(brain_map([1.0])) == "importance (correlation); q ≤ 0.05 from 0.2"
    assert legend_text(brain_map([1.0], statistic="q", unit="q", threshold=np.nan)) == "q"


def test_a_flat_map_shows_each_region_in_its_colour():
    one = brain_map(on_areas(V1=1.0, FFC=0.2))
    png = picture(one, FlatMapSpace(), rois={})
    seen = Image.open(io.BytesIO(png)).convert("RGB")
    colours = {colour for _, colour in seen.getcolors(10**6)}
    for value in (1.0, 0.2):
        wanted = np.round(255 * np.array(Scale([1.0]).colours(value)[:3])).astype(int)
        assert min(np.abs(np.array(list(colours)) - wanted).max(axis=1)) <= 1
    assert png == picture(one, FlatMapSpace(), rois={})  # no date in the file


def test_flat_maps_are_svg_too_with_text_as_text():
    areas = {name: load_visual_cortex().areas[name] for name in ("V1", "FFC")}
    one = brain_map(on_areas(V1=1.0))
    svg = picture(one, FlatMapSpace(), rois=areas, format="svg").decode()
    assert svg.count("<svg") == 1
    assert "importance (correlation); q ≤ 0.05 from 0.2</text>" in svg
    assert svg.encode() == picture(one, FlatMapSpace(), rois=areas, format="svg")
    assert "<dc:date>" not in svg


@pytest.mark.slow
@pytest.mark.parametrize("surface", ["inflated", "flat"])
def test_surfaces_are_drawn_from_the_installed_meshes(surface, monkeypatch):
    monkeypatch.setattr(attribution_pictures, "VIEWS", ("ventral",))
    one = brain_map(on_areas(V1=1.0, FFC=-0.2))
    png = picture(one, FlatMapSpace(), kind="surface", surface=surface)
    assert np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).std() > 10


def test_slices_of_voxels():
    space = voxels()
    png = picture(brain_map(np.linspace(-1, 1, space.n_features)), space)
    assert np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).std() > 5


def test_pictures_that_do_not_go_with_a_space_are_refused():
    with pytest.raises(UsageError, match="flat and surface"):
        picture(brain_map(np.zeros(voxels().n_features)), voxels(), kind="surface")
    with pytest.raises(UsageError, match="png or svg"):
        picture(brain_map(on_areas(V1=1.0)), FlatMapSpace(), format="gif")
    with pytest.raises(DataError, match="no place"):
        picture(brain_map([1.0, 2.0]), VectorSpace(2))


@pytest.mark.parametrize("kind", ["vertices", "voxels"])
def test_views_that_turn_hold_all_they_need(tmp_path, kind):
    if kind == "vertices":
        space, values = FlatMapSpace(), on_areas(V1=1.0, FFC=-0.2)
    else:
        space = voxels()
        values = np.linspace(-1, 1, space.n_features)
    path = interactive(brain_map(values), space, tmp_path / "view.html")
    text = path.read_text()
    assert not re.search(
        r"<(script|link|img|iframe)[^>]*(src|href)\s*=\s*[\"']?\s*(https?:)?//", text
    )
    assert "importance (correlation)" in text
    assert path.stat().st_size < 12e6


def test_a_page_that_would_load_something_is_not_written(tmp_path, monkeypatch):
    import nilearn.plotting

    class Page:
        def get_standalone(self):
            return '<script src="https://example.org/x.js"></script>'

    monkeypatch.setattr(nilearn.plotting, "view_img", lambda *args, **options: Page())
    with pytest.raises(DataError, match="was not written"):
        interactive(brain_map(np.ones(voxels().n_features)), voxels(), tmp_path / "view.html")
    assert not list(tmp_path.iterdir())


def test_edges_of_a_pixel_are_its_four_sides():
    segments = attribution_pictures._edges(np.array([[True]]))
    assert len(segments) == 4
    assert np.abs(segments).max() == 0.5
    assert {tuple(np.ptp(side, axis=0)) for side in segments} == {(1.0, 0.0), (0.0, 1.0)}
