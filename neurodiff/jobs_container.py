"""A definition file for Apptainer, by which a site's users share one installation."""

from __future__ import annotations

import platform

from neurodiff.core.provenance import package_version

_TEXT = """\
Bootstrap: docker
From: python:{python}-slim

# apptainer build neurodiff.sif neurodiff.def        (in the folder of the source tree)
# Then in the site profile: container: /path/to/neurodiff.sif, and submit with --on script.

%files
    . /neurodiff

%post
    set -eu
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends libusb-1.0-0 libgl1 libgomp1 libglib2.0-0
    apt-get clean
    cd /neurodiff
    rm -rf .venv .git
    torch=$(grep '^torch==' constraints.txt)
    python -m pip install --no-cache-dir -c constraints.txt "$torch"
    python -m pip install --no-cache-dir -c constraints.txt .

%environment
    export LC_ALL=C.UTF-8 PYTHONNOUSERSITE=1 HF_HUB_OFFLINE=1
    export MPLBACKEND=Agg OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"

%runscript
    exec neurodiff "$@"

%test
    neurodiff doctor

%labels
    org.opencontainers.image.title neurodiff
    org.opencontainers.image.version {version}
    org.opencontainers.image.licenses Apache-2.0

%help
    neurodiff: from fMRI and medical volumes to reconstructions and reports.
    Bind the folders of data, weights and runs: apptainer run --nv -B /data neurodiff.sif ...
"""


def apptainer_definition() -> str:
    """Text of the file: this version of neurodiff on this version of Python.

    The image holds no weights and no data, and fetches none when it runs.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    return _TEXT.format(python=python, version=package_version() or "unknown")
