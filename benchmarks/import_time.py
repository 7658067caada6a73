"""How long ``import neurodiff`` and ``neurodiff --help`` take, beside a bare interpreter.

Run: ``.venv/bin/python benchmarks/import_time.py [--repeats 10]``. Wall time of whole processes,
so the figures hold for one machine and its load; the first run of each fills the file cache and
is not counted.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

CASES = {
    "bare interpreter": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "import neurodiff": ["-c", "import neurodiff"],
    "neurodiff --help": ["-m", "neurodiff.cli", "--help"],
    "neurodiff doctor": ["-m", "neurodiff.cli", "doctor"],
    "import torch (for comparison)": ["-c", "import torch"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one process, started in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    print(f"Python {sys.version.split()[0]}, {repeats} runs each, seconds")
    print(f"{'case':<32}{'min':>8}{'median':>8}{'max':>8}")
    for name, arguments in CASES.items():
        seconds(arguments)
        times = [seconds(arguments) for _ in range(repeats)]
        print(f"{name:<32}{min(times):>8.3f}{statistics.median(times):>8.3f}{max(times):>8.3f}")


if __name__ == "__main__":
    main()
