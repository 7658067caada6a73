"""The doctor against made-up installations: what is missing must be named, with its remedy."""

import ctypes.util
import importlib.metadata
import re

import pytest

from neurodiff.core import doctor


@pytest.fixture
def versions(monkeypatch):
    """A made-up set of installed packages."""
    installed = {"torch": "2.13.0+cpu", "numpy": "2.4.6"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return installed


def test_build_suffix_is_the_same_version(versions):
    (finding,) = doctor.packages(["torch==2.13.0"])
    assert (finding.value, finding.status, finding.advice) == ("2.13.0+cpu", "ok", "")


def test_absent_and_unfit_packages(versions):
    findings = doctor.packages(
        ["torch==2.12.0", "numpy>=2.0", "monai>=1.4", 'ruff; extra == "dev"']
    )
    assert {f.name: f.status for f in findings} == {
        "torch": "MISSING",
        "numpy": "ok",
        "monai": "MISSING",
    }
    torch, _, monai = findings
    assert torch.value == "2.13.0+cpu, needs ==2.12.0"
    assert torch.advice == 'python -m pip install "torch==2.12.0"'
    assert monai.value == "not installed, needs >=1.4"
    text, code = doctor.summary(findings)
    assert code == 3
    assert text.endswith("torch, monai")


def test_missing_library_names_the_debian_package(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    (finding,) = doctor.libraries()
    assert finding.status == "MISSING"
    assert finding.advice == "sudo apt-get install -y libusb-1.0-0"
    assert doctor.summary([finding])[1] == 3


def test_advice_names_the_packages_of_the_makefile(repository):
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    readme = (repository / "README.md").read_text(encoding="utf-8")
    for _, remedy in doctor.LIBRARIES.values():
        assert remedy in makefile
        assert remedy in readme


def test_torchvision_is_a_warning_and_no_failure():
    finding = doctor.torchvision("0.28.0")
    assert finding.status == "warning"
    assert "diffusers" in finding.advice
    assert doctor.summary([finding]) == ("nothing is missing; warnings: 1", 0)
    assert doctor.torchvision(None).status == "ok"


def test_every_requirement_of_the_package_is_looked_at():
    required = [
        re.match(r"[\w.-]+", line)[0]
        for line in importlib.metadata.requires("neurodiff")
        if "extra ==" not in line
    ]
    names = [finding.name for finding in doctor.diagnose()]
    assert required
    assert set(required) <= set(names)
    assert {"python", "processors", "memory", "weights", "torchvision"} <= set(names)


def test_this_environment_is_sound():
    # the tests run where neurodiff runs: what the doctor calls missing would break them too
    bad = [str(f) for f in doctor.diagnose() if f.status == doctor.MISSING]
    assert not bad


def test_model_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
    cache = doctor.weights()[1]
    assert str(tmp_path / "nowhere") in cache.value
    assert "(not there" in cache.value
