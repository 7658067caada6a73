"""Notebooks run as they stand, at their smallest size, and stay short."""

import os

import pytest

NOTEBOOKS = (
    "01_fmri_to_mesh.ipynb",
    "02_fmri_to_image.ipynb",
    "03_brain_mr_autoencoder.ipynb",
    "04_ct_standardization.ipynb",
    "05_roi_attribution.ipynb",
    "06_batch_jobs.ipynb",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
# the kernel's own libraries warn about their event loop; that is not ours to mend
@pytest.mark.filterwarnings("default")
def test_notebook_runs(name, repository, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("NEURODIFF_NOTEBOOK_SIZE", "tiny")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(repository / "notebooks" / name, as_version=4)
    assert len(notebook.cells) <= 15
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit without outputs"
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    tables = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(tables) >= (1 if name.startswith(("05", "06")) else 3)  # what is seen as a table
