"""Seeded mutations of small sound files, through every reader: ``make fuzz``.

A reader may return, or raise an error of neurodiff; anything else, or no end within seconds, is a
find. Finds are kept as text, one JSON line each (file, edits), in ``finds.jsonl`` beside this file
and replayed by ``tests/test_safe_fuzz.py``.

    python tests/fuzz/fuzz_readers.py --seconds 120 --seed 0
"""

import argparse
import importlib.util
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
FINDS = HERE / "finds.jsonl"
NUMBERS = (
    "00", "ff", "7f", "80", "ffff", "7fff", "ff7f", "ffffffff", "ffffff7f", "7fffffff", "00000080",
    "00000000", "ffffffffffffffff", "ffffffffffffff7f", "0000c07f", "0000807f", "01000000",
)  # fmt: skip
WORDS = (
    "-1",
    "999999999999",
    "nan",
    "1e999",
    "..",
    "/",
    "\x00",
    "é",
    "[[",
    "{",
    "&a *a",
    '"',
    "\n",
)


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_edits(data, dice):
    """A few edits of a file's bytes: (what, place, value)."""
    edits = []
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        size = max(1, len(data))
        # headers lie at the beginning, directories of archives at the end
        near = dice.choice((min(size, 64), min(size, 400), size, size))
        at = dice.randrange(near)
        if dice.random() < 0.15:
            at = size - 1 - at % min(size, 200)
        kind = dice.choice(("flip", "flip", "set", "set", "set", "cut", "drop", "copy", "word"))
        value = {
            "flip": lambda: dice.randrange(8),
            "set": lambda: dice.choice(NUMBERS),
            "cut": lambda: 0,
            "drop": lambda: dice.randrange(1, 32),
            "copy": lambda: dice.randrange(1, 64),
            "word": lambda: dice.choice(WORDS).encode().hex(),
        }[kind]()
        edits.append([kind, at, value])
    return edits


def apply_edits(data, edits):
    """The bytes after the edits; places beyond the end wrap around."""
    data = bytearray(data)
    for kind, at, value in edits:
        at %= max(1, len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << value
        elif kind == "set":
            new = bytes.fromhex(value)
            data[at : at + len(new)] = new
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + value]
        elif kind == "copy":
            data[at:at] = data[at : at + value]
        elif kind == "word":
            data[at:at] = bytes.fromhex(value)
    return bytes(data)


def read_finds():
    """[(file, edits)] that were found."""
    if not FINDS.exists():
        return []
    lines = FINDS.read_text(encoding="utf-8").splitlines()
    return [(one["file"], one["edits"]) for one in map(json.loads, lines)]


def bad(found, text, path):
    """Whether an outcome is a find."""
    if found == "read":
        return False
    if found not in ("DataError", "MissingDataError", "UsageError"):
        return True
    return "\n" in text or path.name not in text


def fuzz(folder, options, dice, finds):
    """Mutate and read until the time is over; each find is a line of the file ``finds``."""
    hostile = _load("hostile_files", HERE.parent / "hostile_files.py")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    sound = hostile.valid_files(folder / "sound")
    names = [name for name in sound if options.only in name]
    for name in names:
        hostile.limited(sound[name], folder / "sound" / name)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft = pages * os.sysconf("SC_PAGE_SIZE") + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    seen, k = set(), 0
    while time.time() < options.end:
        name = names[k % len(names)]
        k += 1
        data = (folder / "sound" / name).read_bytes()
        edits = draw_edits(data, dice)
        line = json.dumps({"file": name, "edits": edits})
        (folder / "now.json").write_text(line)  # what is left where the process dies
        work = folder / "work"
        work.mkdir()
        path = work / name
        path.write_bytes(apply_edits(data, edits))
        found, text = hostile.limited(sound[name], path, 5)
        if bad(found, text, path):
            key = (name, found, text.replace(str(work), "")[:40])
            if key not in seen:
                seen.add(key)
                with open(finds, "a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
                print(f"FIND {name}: {found}: {text[:160]!r}", flush=True)
        shutil.rmtree(work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{k} mutations of {len(names)} files, peak {peak:.2f} GiB", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    options.end = time.time() + options.seconds
    with tempfile.TemporaryDirectory() as place:
        finds, tries = Path(place) / "finds.jsonl", 0
        while time.time() < options.end:  # a reader that kills the process is a find as well
            folder = Path(place) / f"{tries}"
            folder.mkdir()
            child = os.fork()
            if child == 0:
                fuzz(folder, options, random.Random(options.seed * 1000 + tries), finds)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if status and (folder / "now.json").exists():
                line = (folder / "now.json").read_text()
                print(f"FIND, the process died ({status}): {line[:160]}", flush=True)
                with open(finds, "a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            elif status:
                return 2
            tries += 1
        lines = finds.read_text(encoding="utf-8").splitlines() if finds.exists() else []
    known = FINDS.read_text(encoding="utf-8").splitlines() if FINDS.exists() else []
    new = [line for line in dict.fromkeys(lines) if line not in known]
    print(f"{len(new)} new finds, {len(known)} known")
    if new:
        FINDS.write_text("".join(f"{line}\n" for line in known + new), encoding="utf-8")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
