"""The benchmark report: complete, off line, honest, and a folder where one file would be too large.

What is decoded here is poor on purpose: these are tests of the page, not of the decoder.
"""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest

from neurodiff.analysis import benchmark_data, benchmark_sections, run_report
from neurodiff.analysis import benchmark_report as module
from neurodiff.analysis.benchmark_data import Leaks, leaks_of, leaks_of_run
from neurodiff.analysis.benchmark_record import PARTS, record_of
from neurodiff.analysis.benchmark_report import (
    BenchmarkReport,
    benchmark_page,
    benchmark_report,
    data_of_numbers,
)
from neurodiff.analysis.report import Report
from neurodiff.analysis.report_diff import diff_reports
from neurodiff.core.errors import MissingDataError, UsageError
from neurodiff.core.run import Run
from neurodiff.core.safe_io import read_json, write_json
from neurodiff.datasets.simulated.opening import open_simulated

pytestmark = pytest.mark.slow  # fits a tiny model

SECTIONS = ("identity", "data", "weights", "numbers", "uncertainty", "published", "checklists")


class Addresses(HTMLParser):
    """Everything on a page that a browser could fetch, and the ids there are."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.found.append((tag, name, value or ""))
            if name == "id":
                self.ids.add(value)


def require_offline(text):
    """No address of a page leads to a network, and its policy forbids any request."""
    page = Addresses(text)
    for tag, name, value in page.found:
        assert not re.match(r"(?i)\s*(https?:|//|ftp:|wss?:)", value), (tag, name, value)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(\s*['\"]?https?:", text)
    return page


@pytest.fixture(scope="module", autouse=True)
def few():
    """Fewer objects on a page: two of the draw, and the best, the median and the worst."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "MOST_PAIRS", 8)
        yield


@pytest.fixture(scope="module")
def decoded(tiny_runs, tmp_path_factory):
    """A run that is fitted, decoded and scored."""
    return Run.open(tiny_runs(tmp_path_factory.mktemp("runs"), decoded=True))


@pytest.fixture(scope="module")
def other(decoded, tmp_path_factory):
    """The same run by another seed, as far as a page can tell."""
    folder = shutil.copytree(decoded.folder, tmp_path_factory.mktemp("other") / "other")
    write_json(folder / "run.json", read_json(folder / "run.json") | {"seed": 1})
    run = Run.open(folder)
    table = run.read_scores()
    table["CD"] += 1.0
    run.write_scores(table)
    return run


@pytest.fixture(scope="module")
def written(decoded, other, tmp_path_factory):
    """The page about both, and its numbers."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    assert benchmark_page([decoded.folder, other], out) == out
    return out.read_text(), read_json(out.with_suffix(".json"))


@pytest.fixture(scope="module")
def alone(decoded):
    """The report about one run, made once."""
    return benchmark_report([decoded])


def test_the_page_has_every_section_and_asks_for_nothing(written):
    text, _ = written
    page = require_offline(text)
    assert set(SECTIONS) | {"replay", "objects", "scores"} <= page.ids
    assert all(value.startswith("data:") for tag, name, value in page.found if name == "src")
    links = {value[1:] for _, name, value in page.found if name == "href" and value[:1] == "#"}
    assert links <= page.ids
    assert "Simulated" in text


def test_the_record_says_who_what_where_and_when(written, decoded):
    record = written[1]["benchmark"]["records"][decoded.folder.name]
    assert set(PARTS) <= set(record)
    assert record["identity"]["fingerprint"] == decoded.fingerprint
    assert len(record["identity"]["recipe sha256"]) == 64
    assert record["circumstances"]["command"]
    assert record["circumstances"]["wall time, s"] > 0
    assert record["environment"]["variables that change numbers"]["OMP_NUM_THREADS"] == "1"
    assert record["environment"]["packages"]["numpy"] == record["versions"]["numpy"]
    assert record["data"]["training data as they were"] == "yes"
    assert record["data"]["counts"]["train"]["trials"] == 48
    assert record["data"]["counts"]["test"]["stimuli by repeats"] == {"1": 12}
    assert record["data"]["licence"].startswith("Apache-2.0")
    assert all(len(one["sha256"]) == 64 for one in record["weights"])
    assert record["seeds"]["items whose seed follows the rule"] == "12 of 12"
    cell = record["scores"]["simulated_tiny"]["MinD-3D"]["CD"]
    table = decoded.read_scores()
    mean = table.loc[table["condition"] == "MinD-3D", "CD"].mean()
    assert cell == {"mean": pytest.approx(mean), "n": 12}


def test_a_seed_that_does_not_follow_the_rule_is_seen(written):
    assert written[1]["benchmark"]["records"]["other"]["seeds"]["items with another seed"] == 12


def test_seeds_are_told_apart_from_stimuli(written):
    tables = written[1]["benchmark"]["tables"]["uncertainty"]
    table = pd.DataFrame(
        tables["Where a score would move"]["rows"],
        columns=tables["Where a score would move"]["columns"],
    )
    found = table[table["metric"] == "CD"].set_index("source")
    # two seeds one apart on every stimulus: all of it is the seed's, nothing is left over
    assert found.loc["seed", "variance"] == pytest.approx(0.5)
    assert found.loc["residual", "variance"] == pytest.approx(0.0, abs=1e-9)
    assert found.loc["seed", "levels"] == "2"
    notes = written[1]["benchmark"]["notes"]["uncertainty"]
    assert any("one subject" in note for note in notes)


def test_floors_leaks_published_and_checklists_are_there(written, decoded):
    tables = written[1]["benchmark"]["tables"]
    leaks = tables["data"][f"Is the test in the training? {decoded.folder.name}"]
    assert leaks["rows"]
    floors = tables["numbers"][f"{decoded.folder.name}: against each floor"]
    assert {"p", "holm", "q", "share", "n"} <= set(floors["columns"])
    published = tables["published"]["Published figures"]
    column = published["columns"].index("comparable")
    assert all("the data are simulated" in row[column] for row in published["rows"])
    ours = published["columns"].index("ours")
    assert {row[ours] for row in published["rows"]} == {"not comparable"}
    assert len(tables["checklists"]) == 3
    text = written[0]
    assert "to be filled in by the authors" in text
    assert "not a certificate" in text


def test_the_page_says_how_to_do_it_again(written, decoded):
    lines = written[1]["benchmark"]["commands"]["replay"]
    name = decoded.folder.name
    assert f"neurodiff fit {name}/recipe.yaml --data simulated_tiny --seed 0" in lines
    assert "neurodiff reconstruct RUN" in lines
    assert "neurodiff evaluate RUN --protocol neurodiff-1" in lines
    assert any(line.startswith(f"neurodiff report verify {name}") for line in lines)
    assert lines[-1] == f"neurodiff report benchmark {name} other --out report.html"


def test_samples_are_a_fixed_draw_with_the_extremes(decoded, alone):
    pairs = alone.data.pairs
    assert [p.why for p in pairs].count("fixed random draw") == 2
    assert {p.why for p in pairs} == {"fixed random draw", "best", "worst", "median"}
    table = decoded.read_scores()
    ours = table[table["condition"] == "MinD-3D"].sort_values("CD")
    best = {p.stimulus for p in pairs if p.why == "best"}
    assert best <= set(ours["stimulus"][:2])
    assert [p.stimulus for p in pairs] == [
        p.stimulus for p in run_report.report_data([decoded]).pairs
    ]


def test_a_page_is_compared_with_a_run(decoded, alone, tmp_path):
    write_json(tmp_path / "page.json", alone.to_json())
    found = diff_reports(tmp_path / "page.json", decoded.folder)
    # the page has counted the trials, which a comparison of folders does not
    assert set(found.table["part"][found.table["counts"]]) == {"data"}
    record = record_of(decoded)
    assert diff_reports(record, record).same


def test_above_the_budget_a_folder_with_linked_files_is_written(
    decoded, alone, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "benchmark_report", lambda runs, **options: alone)
    index = benchmark_page([decoded], tmp_path / "page.html", budget_mb=0.2)
    assert index == tmp_path / "page" / "index.html"
    assert not (tmp_path / "page.html").exists()
    text = index.read_text()
    page = require_offline(text)
    assert len(index.read_bytes()) < 0.5e6
    linked = [v for _, n, v in page.found if n in ("src", "href") and v and v[0] not in "#d"]
    assert any(value.startswith("pictures/") for value in linked)
    assert "objects-1.html" in linked
    for value in linked:
        assert (index.parent / value).is_file(), value
    require_offline((index.parent / "objects-1.html").read_text())
    assert set(read_json(index.parent / "report.json")["benchmark"]["records"])


def test_hostile_words_stay_words(alone):
    hostile = "</script><script>alert(1)</script><img src=http://x>"
    records = {"run": {**next(iter(alone.benchmark.records.values())), "identity": hostile}}
    first = replace(alone.benchmark.sections[0], facts={hostile: {hostile: hostile}})
    sections = (first, *alone.benchmark.sections[1:])
    benchmark = replace(alone.benchmark, records=records, sections=sections)
    text = BenchmarkReport(replace(alone.data, pairs=[], title=hostile), benchmark).html()
    require_offline(text)
    assert "<script>alert(1)" not in text
    assert "<img src=http" not in text
    assert text.count("&lt;script&gt;alert(1)") > 3


def test_a_leak_is_an_error_where_it_is_to_be_one(decoded, tmp_path, monkeypatch):
    table = pd.DataFrame({"check": ["stimulus in both"], "found": [1], "verdict": ["LEAK"]})
    leaks = Leaks(table, "By hand.", ("1 of 12 stimulus in both",))
    monkeypatch.setattr(benchmark_sections, "leaks_of_run", lambda run, opened, progress: leaks)
    with pytest.raises(UsageError, match="1 of 12 stimulus in both; and --strict"):
        benchmark_page([decoded], tmp_path / "page.html", strict=True)


def test_the_audit_is_asked_where_it_is(monkeypatch):
    recording, stimuli = open_simulated(size="tiny")
    by_hand = leaks_of((recording, stimuli))
    assert by_hand.errors == ()
    assert by_hand.table["check"].tolist()[0]
    told = SimpleNamespace(
        audit=lambda train, test, stimuli, preprocessing: SimpleNamespace(
            table=pd.DataFrame({"check": ["crop"], "pairs": [2]}),
            errors=(SimpleNamespace(kind="crop", count=2, of=12),),
        )
    )
    monkeypatch.setattr(benchmark_data.importlib, "import_module", lambda name: told)
    found = leaks_of((recording, stimuli))
    assert found.table["check"].tolist() == ["crop"]
    assert found.text == "LEAK: 2 of 12: crop"
    train = recording.select((recording.trials["split"] == "train").to_numpy())
    assert leaks_of((train, stimuli)).text.startswith("Not checked: splits are train")


def test_data_that_are_gone_are_said_to_be_gone(decoded, tmp_path):
    folder = shutil.copytree(decoded.folder, tmp_path / "run")
    info = read_json(folder / "run.json")
    info.pop("data")
    write_json(folder / "run.json", info)
    numbers = benchmark_report([folder]).to_json()["benchmark"]
    assert "does not say where" in numbers["records"]["run"]["data"]["counts"]
    # what was checked before the fit is still known, and the page says that it is from there
    [title] = [name for name in numbers["tables"]["data"] if name.startswith("Is the test in")]
    found = leaks_of_run(Run.open(folder), "gone")
    assert found.note == "Not checked: gone. By the audit before the fit."
    assert len(found.table) == len(numbers["tables"]["data"][title]["rows"])
    info.pop("leakage")
    write_json(folder / "run.json", info)
    numbers = benchmark_report([folder]).to_json()["benchmark"]
    assert any("Not checked" in note for note in numbers["notes"]["data"])
    assert any("does not say where" in note for note in numbers["notes"]["replay"])


def test_checks_made_before_the_fit_alone_are_taken_from_there(decoded):
    run = Run.open(decoded.folder)
    opened = benchmark_data.open_run_data(run)
    before = json.loads(json.dumps(run.info["leakage"]))
    for one in before["checks"]:
        if one["kind"] == "crop":  # as a fit with --strict --allow crop leaves it
            one |= {"severity": "error", "count": 2, "of": 12, "examples": ["a = b"]}
    run.info["leakage"] = before
    found = leaks_of_run(run, opened)
    row = found.table.set_index("check").loc["crop"]
    assert (row["severity"], row["count"], row["examples"]) == ("error", 2, "a = b")
    assert found.errors == ("2 of 12: crop",)
    assert "crop: as found before the fit" in found.note
    run.info.pop("leakage")
    assert leaks_of_run(run, opened).errors == ()


def test_numbers_alone_make_a_page_again(alone):
    numbers = Report(alone.data).to_json()
    again = data_of_numbers(json.loads(json.dumps(numbers)))
    back = Report(again).to_json()
    assert back["conditions"] == numbers["conditions"]
    assert back["gates"] == numbers["gates"]
    assert back["headline"] == numbers["headline"]
    assert "own page" in again.notes[-1]
    assert Report(replace(again, notes=())).html()


def test_wrong_calls_are_answered_in_a_sentence(decoded, tmp_path):
    page = tmp_path / "page.html"
    with pytest.raises(UsageError, match="once"):
        benchmark_page([decoded, decoded.folder], page)
    with pytest.raises(UsageError, match="at least one"):
        benchmark_page([], page)
    with pytest.raises(UsageError, match=r"\.html"):
        benchmark_page([decoded], tmp_path / "page.pdf")
    with pytest.raises(UsageError, match="budget"):
        benchmark_page([decoded], page, budget_mb=0.0)
    scenes = Run.create(tmp_path / "b", {"pipeline": "brain-diffuser"}, {}, command="x", seed=0)
    with pytest.raises(UsageError, match="two"):
        benchmark_page([decoded, scenes], page)
    with pytest.raises(MissingDataError, match="not a run"):
        benchmark_page([tmp_path], page)
    assert not page.exists()
