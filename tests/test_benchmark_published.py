"""Published figures beside ours: only where nothing differs, and what differs is said."""

import pandas as pd

from neurodiff.analysis.benchmark_published import APART, SAME, published_rows
from neurodiff.core.run import Run


def make(folder, column, *, protocol, simulated=False, sessions=37, pipeline="brain-diffuser"):
    run = Run.create(
        folder,
        {"name": "x", "pipeline": pipeline},
        {"data": "nsd", "simulated": simulated},
        command="neurodiff",
        seed=0,
    )
    ours = "reconstruction" if pipeline == "brain-diffuser" else "MinD-3D"
    table = {"key": ["a", "b"], "condition": ours, "role": "ours", "data": "nsd"}
    table |= {"protocol": protocol, "subject": "1", "stimulus": ["a", "b"], column: [0.2, 0.4]}
    run.write_scores(pd.DataFrame(table))
    run.info["trained on"] = {"subjects": ["1"], "categories": [], "adapted": {}}
    run.info["trained on"]["sessions"] = sessions
    run.touch()
    return run


def test_ours_stands_beside_a_row_of_the_same_protocol_and_sessions(tmp_path):
    run = make(tmp_path / "a", "PixCorr", protocol="mindeye-2023", sessions=40)
    table = published_rows([run])
    same = table[table["comparable"] == SAME]
    assert set(same["card"]) == {"mindeye-2023"}
    assert "Brain-Diffuser" in set(same["method"])
    assert all(abs(value - 0.3) < 1e-12 for value in same["ours"])
    others = table[table["comparable"] != SAME]
    assert set(others["ours"]) == {APART}
    assert all(text.startswith("differs in: ") for text in others["comparable"])
    assert any("sessions" in text for text in others["comparable"])


def test_simulated_or_by_another_protocol_stays_out(tmp_path):
    made = make(tmp_path / "a", "PixCorr", protocol="mindeye-2023", simulated=True)
    assert all("simulated" in text for text in published_rows([made])["comparable"])
    other = make(tmp_path / "b", "PixCorr", protocol="neurodiff-1")
    table = published_rows([other])
    assert len(table)
    assert all("the protocol is neurodiff-1" in text for text in table["comparable"])
    assert SAME not in set(table["comparable"])


def test_another_network_is_named(tmp_path):
    run = make(tmp_path / "a", "2-way [scene judge]", protocol="mindeye-2023", sessions=40)
    table = published_rows([run])
    assert len(table)
    assert all("the network is scene judge" in text for text in table["comparable"])


def test_shapes_and_runs_without_scores(tmp_path):
    run = make(tmp_path / "a", "CD", protocol="mind3d-2024", pipeline="mind3d")
    table = published_rows([run])
    assert {"MinD-3D++", "BrainGS"} <= set(table["method"])
    assert set(table["comparable"]) == {SAME}
    run.scores_path.unlink()
    assert len(published_rows([run])) == 0
