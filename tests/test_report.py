"""The report page: self-contained, escaped, complete in numbers, honest about what is missing."""

import base64
import errno
import gzip
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import trimesh
from PIL import Image

from neurodiff.analysis import figures, viewer
from neurodiff.analysis.report import Pair, Report, ReportData
from neurodiff.core.errors import DataError

HOSTILE = "<script>alert('x')</script> & \"quoted\" </script><b>bold</b>"
METRICS = [
    {"name": "Chamfer", "unit": "x", "higher_is_better": False, "chance": None},
    {"name": "two-way", "unit": "share", "higher_is_better": True, "chance": 0.5},
]
NETWORK = {"mean": 0.8123, "median": 0.8456, "low": 0.7789, "high": 0.8501, "n": 117}


class Page(HTMLParser):
    """Elements, addresses, text and script contents of a page, read as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.text += data


def make_pair(number: int, **changes) -> Pair:
    picture = Image.new("RGB", (24, 24), (number % 256, 90, 120))
    values = {
        "stimulus": f"item-{number}",
        "category": "box",
        "caption": f"box number {number}",
        "why": "fixed random draw",
        "truth": trimesh.creation.box(extents=(1.0, 0.5, 0.25)),
        "reconstruction": trimesh.creation.box(extents=(0.9, 0.6, 0.25)),
        "truth_still": picture,
        "reconstruction_still": picture,
        "scores": {"Chamfer": 0.0123 + number},
    }
    return Pair(**(values | changes))


def make_data(**changes) -> ReportData:
    conditions = pd.DataFrame(
        {
            "role": ["ours", "chance", "ceiling"],
            "Chamfer": [{"mean": 0.0311, "n": 117}, {"mean": 0.0922}, {"mean": 0.0044}],
            "two-way": [NETWORK, {"mean": float("nan")}, {"mean": 0.9667, "median": 0.98}],
        },
        index=["network", "random object", "true features"],
    )
    curve = pd.DataFrame(
        {
            "level": [0.03, 0.1, 0.3],
            "condition": "network",
            "metric": "two-way",
            "value": [0.6111, 0.8123, np.nan],
            "low": [0.6, 0.7789, np.nan],
            "high": [0.63, 0.8501, np.nan],
        }
    )
    gate = {"stage": "tokenizer", "measure": "IoU", "value": 0.7654, "passed": True}
    values = {
        "title": "A page",
        "simulated": True,
        "headline": ["It identifies 81 % of objects."],
        "provenance": {"run": "runs/abc", "versions": {"torch": "2.13.0"}},
        "gates": [gate],
        "conditions": conditions,
        "metrics": METRICS,
        "factor_table": pd.DataFrame({"network": [0.4321, np.nan]}, index=["height", "taper"]),
        "curve": curve,
        "pairs": [make_pair(k) for k in range(3)],
        "tables": [("Areas", pd.DataFrame({"r": [0.2345, np.inf]}, index=["V1", "A1"]), "a note")],
        "notes": ["one limit"],
    }
    return ReportData(**(values | changes))


@pytest.fixture(scope="module")
def page() -> Page:
    pairs = [make_pair(k) for k in range(23)] + [make_pair(23, caption=HOSTILE, category=HOSTILE)]
    return Page(Report(make_data(pairs=pairs, notes=[HOSTILE], title=HOSTILE)).html())


def test_page_asks_for_nothing_outside_itself(page):
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "background")
    ]
    assert len(addresses) > 50  # pictures of the pairs and links inside the page
    assert [a for a in addresses if not a.startswith(("data:", "#"))] == []
    assert "url(" not in page.scripts["style"]
    assert "@import" not in page.scripts["style"]
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_data_of_the_page_equals_report_json_without_nan():
    report = Report(make_data())
    numbers = report.to_json()
    text = json.dumps(numbers, allow_nan=False)
    assert json.loads(Page(report.html()).scripts["report-data"]) == json.loads(text)
    assert numbers["conditions"]["network"]["metrics"]["two-way"] == NETWORK
    assert numbers["conditions"]["random object"]["metrics"]["two-way"]["mean"] is None
    assert numbers["curve"]["rows"][0]["value"] == 0.6111
    assert numbers["factors"]["rows"] == [[0.4321], [None]]
    assert numbers["tables"][0]["rows"] == [[0.2345], [None]]
    assert numbers["pairs"][2]["scores"] == {"Chamfer": 2.0123}
    assert numbers["pairs"][0]["truth"] == {"vertices": 8, "faces": 12}


def test_numbers_stand_in_the_visible_text():
    text = Page(Report(make_data()).html()).text
    for shown in ("0.812", "0.846", "0.779 to 0.850", "117", "0.0311", "0.967", "0.765", "0.432"):
        assert shown in text, shown


@pytest.mark.parametrize("statistic", [".", "multi"])
def test_flat_and_two_level_columns_give_the_same_numbers(statistic):
    given = make_data()
    flat = {("role", ""): given.conditions["role"]}
    for metric in ("Chamfer", "two-way"):
        for name in ("mean", "median", "low", "high", "n"):
            flat[(metric, name)] = [c.get(name, np.nan) for c in given.conditions[metric]]
    table = pd.DataFrame(flat, index=given.conditions.index)
    if statistic == ".":
        table.columns = [".".join(filter(None, column)) for column in table.columns]
    other = Report(make_data(conditions=table)).to_json()
    assert other["conditions"] == Report(given).to_json()["conditions"]


def test_simulated_is_said_in_bar_banner_sections_cards_and_viewer_or_nowhere():
    said = Page(Report(make_data()).html())
    classes = [a.get("class") for _, a in said.elements]
    assert classes.count("badge") == 2  # the bar that stays in view, and the viewer
    assert classes.count("banner") == 1
    assert classes.count("tag") >= 3 + 5  # one a card, one a section
    assert re.search(r"\.bar\{position:sticky;top:0", said.scripts["style"])
    silent = Report(make_data(simulated=False)).html()
    assert "simulated" not in silent.lower().replace('"simulated":false', "")


def test_hostile_text_is_shown_and_never_run(page):
    assert page.text.count("alert('x')") >= 4  # title, caption, category, note
    scripts = [a for tag, a in page.elements if tag == "script"]
    assert len(scripts) == 4
    assert "alert" not in page.scripts["script"]
    assert not [a for tag, a in page.elements if tag == "b" and a.get("onclick")]
    assert json.loads(page.scripts["report-data"])["title"] == HOSTILE
    assert json.loads(page.scripts["scenes"])[23]["title"] == HOSTILE


def test_viewers_are_made_on_click_only_and_disposed_before_the_next(page):
    buttons = [a for tag, a in page.elements if tag == "button" and "data-rotate" in a]
    assert [b["data-rotate"] for b in buttons] == [str(k) for k in range(1, 25)]
    assert not [tag for tag, _ in page.elements if tag == "canvas"]
    kinds = {a.get("id"): a.get("type") for tag, a in page.elements if tag == "script"}
    assert kinds["viewer-script"] == "text/plain"  # a browser does not run it by itself
    script = page.scripts["script"]
    opening = script[script.index("async function open(") :]
    assert opening.index("dispose();") < opening.index("await plotly()")
    assert "loseContext" in script
    assert script.count("newPlot(") == 1
    assert 'addEventListener("close", () => { dispose();' in script
    assert "#rotate=" in script.replace("\\", "")


def test_viewer_script_is_plotly_unchanged(page):
    from plotly.offline import get_plotlyjs

    packed = base64.b64decode(page.scripts["viewer-script"])
    assert gzip.decompress(packed).decode("utf-8") == get_plotlyjs()
    assert len(page.scripts["viewer-script"]) < 2.5e6


def test_page_without_objects_or_for_a_notebook_carries_no_viewer():
    assert "viewer-script" not in Page(Report(make_data(pairs=[])).html()).scripts
    frame = Report(make_data(title='"quoted"'))._repr_html_()
    assert len(frame) < 200_000
    (element,) = Page(frame).elements
    assert element[0] == "iframe"
    inner = Page(element[1]["srcdoc"])
    assert "scenes" not in inner.scripts
    assert "SIMULATED" in inner.text.upper()


def test_empty_mesh_and_missing_values_are_named():
    pair = make_pair(1, reconstruction=trimesh.Trimesh(), scores={"two-way": float("nan")})
    html = Report(make_data(pairs=[pair], metrics=METRICS)).html()
    assert html.count("<span>empty mesh</span>") == 1
    assert "NaN" not in Page(html).text
    assert re.search(r"two-way</dt><dd><span class=\"na\">not available</span></dd>", html)
    panels = json.loads(Page(html).scripts["scenes"])[0]["panels"]
    assert [panel["faces"] for panel in panels] == [12, 0]
    nothing = make_pair(2, truth=None, reconstruction=trimesh.Trimesh())
    assert "data-rotate" not in Report(make_data(pairs=[nothing])).html().split("<script")[0]


def test_pairs_are_grouped_fixed_draw_first_and_numbered_as_the_viewer_counts():
    pairs = [make_pair(7, why="worst"), make_pair(8), make_pair(9, why="best")]
    html = Report(make_data(pairs=pairs)).html()
    shown = Page(html)
    assert shown.text.index("Fixed random draw (1)") < shown.text.index("Best (1)")
    titles = [scene["title"] for scene in json.loads(shown.scripts["scenes"])]
    assert titles == ["box number 8", "box number 9", "box number 7"]
    assert html.index('id="pair-1"') < html.index("box number 8") < html.index('id="pair-2"')


def test_real_recordings_are_called_a_plumbing_check_and_carry_no_simulated_tag():
    html = Report(make_data(pairs=[], plumbing=[make_pair(5, truth=None)])).html()
    section = html[html.index('<section id="plumbing">') :].split("</section>")[0]
    assert "A plumbing check, not a result." in section
    assert "stimulus picture" in section
    assert ">simulated<" not in section


def test_packed_mesh_returns_within_half_a_step_of_its_quantisation():
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    mesh.apply_translation([3.0, -1.0, 0.2])
    packed = viewer.pack_mesh(mesh)
    numbers = np.frombuffer(gzip.decompress(base64.b64decode(packed["data"])), dtype="<u2")
    count = 3 * packed["vertices"]
    low, high = np.array(packed["low"]), np.array(packed["high"])
    vertices = low + (high - low) * numbers[:count].reshape(-1, 3) / 65535
    faces = numbers[count:].reshape(-1, 3)
    assert packed["faces"] == packed["faces_before"] == len(faces) == 320
    error = np.abs(vertices[faces] - mesh.triangles).max()
    assert error <= 0.5 / 65535 + 2e-6
    assert packed == viewer.pack_mesh(mesh)


def test_large_mesh_is_thinned_and_keeps_its_volume():
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    packed = viewer.pack_mesh(sphere, max_faces=2500)
    assert packed["faces_before"] == 20480
    assert 2000 <= packed["faces"] <= 2500
    numbers = np.frombuffer(gzip.decompress(base64.b64decode(packed["data"])), dtype="<u2")
    points = numbers[: 3 * packed["vertices"]].reshape(-1, 3) / 65535 - 0.5
    thin = trimesh.Trimesh(points, numbers[3 * packed["vertices"] :].reshape(-1, 3))
    assert thin.is_watertight
    assert thin.volume == pytest.approx(np.pi / 6, rel=0.01)


def test_mesh_with_vertices_that_are_not_finite_is_refused():
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="not finite"):
        viewer.pack_mesh(mesh)


def test_axis_puts_the_better_end_on_the_right():
    rising = figures.Axis.around([0.2, 0.9])
    falling = figures.Axis.around([0.2, 0.9], reverse=True)
    assert rising.percent(0.9) > rising.percent(0.2)
    assert falling.percent(0.2) > falling.percent(0.9)
    assert rising.percent(0.4) + falling.percent(0.4) == pytest.approx(100.0)
    assert rising.percent(-5.0) == 3.0  # values outside stay on the picture
    assert figures.nice_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_numbers_are_written_for_reading():
    shown = [figures.format_number(v) for v in (0, 1234, 3.0, 0.12345, -2.5, 1.5e-6, None, np.nan)]
    assert shown == [
        *("0", "1,234", "3.00", "0.123", "−2.50", "1.50e−06"),
        *("not available", "not available"),
    ]


def test_curve_breaks_at_a_missing_value_and_escapes_names():
    rows = [(0.01, 0.5), (0.03, 0.6), (0.1, np.nan), (0.3, 0.8), (0.9, 0.9)]
    frame = pd.DataFrame(rows, columns=["level", "value"]).assign(condition="<i>", low=0.4, high=1)
    drawn = str(figures.curve(frame, roles={"<i>": "ours"}, level_name="level", value_name="x"))
    (line,) = re.findall(r'<path d="([^"Z]*)" fill="none"', drawn)
    assert line.count("M") == 2
    assert line.count("L") == 2
    assert "<i>" not in drawn
    assert "&lt;i&gt;" in drawn


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    report = Report(make_data(pairs=[]))
    assert report.save(target) == target
    assert target.read_text(encoding="utf-8") == report.html()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="full"):
        Report(make_data(pairs=[], title="Another")).save(target)
    assert target.read_text(encoding="utf-8") == report.html()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditions": pd.DataFrame({"role": ["best"]}, index=["a"])}, "unknown role 'best'"),
        ({"conditions": pd.DataFrame({"x": [1]}, index=["a"])}, "no column 'role'"),
        ({"gates": [{"stage": "tokenizer"}]}, "no 'measure'"),
        ({"metrics": [{"name": "x"}]}, "higher_is_better"),
        ({"curve": pd.DataFrame({"level": [1.0]})}, r"no column \['condition'"),
    ],
)
def test_wrong_tables_are_refused_with_the_reason(changes, words):
    with pytest.raises(ValueError, match=words):
        Report(make_data(pairs=[], **changes)).html()
