"""Fill a network with parameters that follow from their names, and compare with golden numbers.

The golden numbers beside this file were made by running the published networks with every
parameter set by a closed form of its name and flat index; no weight file is needed.  A test loads
this module by path (the test folder is not a package)::

    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)

A recipe is a dict: ``kind`` ("quad" or "linear"), ``freq`` (0.37), ``mod`` (997), ``g`` (a number,
or a dict from name prefix to number with a "default") and ``exclude`` (parts of names that keep
what the constructor made).
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent


def load(name: str) -> dict:
    """Read ``<name>.json`` beside this file: case id -> case."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def gain(g: float | dict, name: str) -> float:
    """Weight scale of a parameter: the value of the longest prefix of ``name``, else "default"."""
    if not isinstance(g, dict):
        return float(g)
    prefixes = [p for p in g if p != "default" and name.startswith(p)]
    return float(g[max(prefixes, key=len)] if prefixes else g["default"])


def parameter_value(name: str, shape: tuple[int, ...], recipe: dict) -> np.ndarray:
    """Values of one parameter, float64, of ``shape``."""
    count = math.prod(shape)
    theta = zlib.crc32(name.encode()) % recipe["mod"]
    i = np.arange(count, dtype=np.int64)
    last, one_d = name.rsplit(".", 1)[-1], len(shape) == 1
    if recipe["kind"] == "linear":
        c = np.cos(recipe["freq"] * i + theta)
        value = 1 + 0.1 * c if one_d and name.endswith("weight") else 0.03 * c
    elif recipe["kind"] == "quad":
        c = np.cos(recipe["freq"] * ((7 * i * i + 3 * i) % 10007) + theta)
        if last == "gain" or (one_d and (name.endswith("weight") or last == "g")):
            value = 1 + 0.1 * c
        elif len(shape) <= 1:
            value = 0.1 * c
        else:
            value = gain(recipe["g"], name) * math.sqrt(2 / (count // shape[0])) * c
    else:
        raise ValueError(f"recipe kind is {recipe['kind']!r}; known: 'quad', 'linear'")
    return value.reshape(shape)


def fill(module: torch.nn.Module, recipe: dict) -> torch.nn.Module:
    """Set every parameter by its name, cast to float64 and ``eval``; returns the module."""
    for name, parameter in module.named_parameters():
        if any(part in name for part in recipe["exclude"]):
            continue
        value = parameter_value(name, tuple(parameter.shape), recipe)
        parameter.data = torch.tensor(value, device=parameter.device)
    return module.double().eval()


def make(description: dict) -> torch.Tensor:
    """Input tensor ``scale * sin(w * i + phase)``, float64, in C order."""
    i = np.arange(math.prod(description["shape"]))
    value = description["scale"] * np.sin(description["w"] * i + description["phase"])
    return torch.tensor(value.reshape(description["shape"]))


def manifest(module: torch.nn.Module, exclude: list[str] | tuple[str, ...] = ()) -> dict[str, str]:
    """Name -> shape as the golden manifests write it ("48x1x16x16", suffix "xexcluded")."""
    shapes = {n: "x".join(map(str, p.shape)) for n, p in module.named_parameters()}
    return {n: s + "xexcluded" * any(e in n for e in exclude) for n, s in shapes.items()}


def stats(tensor: torch.Tensor) -> dict:
    """Shape and seven numbers of a tensor; ``proj`` catches permutations, mean and SD do not."""
    v = tensor.detach().to(torch.float64).cpu().numpy().reshape(-1)
    return {
        "shape": list(tensor.shape),
        "mean": float(v.mean()),
        "std": float(v.std(ddof=1)),
        "absmax": float(np.abs(v).max()),
        "v0": float(v[0]),
        "v17": float(v[17 % v.size]),
        "vlast": float(v[-1]),
        "proj": float((v * np.cos(0.7 * np.arange(v.size))).mean()),
    }


def check(ours: torch.Tensor, golden: dict, tol: float = 1e-9) -> None:
    """Every stat of ``ours`` is within ``tol * absmax`` of the golden one, and the shape is equal.

    Raises
    ------
    AssertionError : lists each stat that differs, with both values.
    """
    got = stats(ours)
    assert got["shape"] == list(golden["shape"]), f"shape {got['shape']} != {golden['shape']}"
    bound = tol * golden["absmax"]
    wrong = {
        key: (got[key], golden[key])
        for key in ("mean", "std", "absmax", "v0", "v17", "vlast", "proj")
        if not abs(got[key] - golden[key]) <= bound
    }
    assert not wrong, f"beyond {bound:.3g} (ours, golden): {wrong}"
