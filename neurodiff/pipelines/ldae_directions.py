"""Directions in the space of semantic codes: what a probe reads, and where an edit moves to.

With ``z = (code - mean) / std`` of the training scans and the probe's weight ``w``::

    score(code) = w . z + intercept                       a logit, or a number in the unit
    move(code, a) = back(z + a sqrt(d) w / |w|)           as published
    move(code, a) = back(z + a S w / sqrt(w' S w))        along the pattern
    change(code, c) = back(z + c w / |w|^2)               the shortest way to score + c

``S`` is the covariance of ``z`` in the training scans. A published ``a`` of 1 adds to each of the
d numbers a root mean square of one SD. Along the pattern an ``a`` of 1 is one SD of the score, and
the code moves as codes of such a score differ from the mean: of all ways to that score it is the
likeliest under a normal distribution. A weight alone is no such way: it also holds what cancels
what the numbers share, and where codes have few dimensions it leads to where no code lies.

References
----------
Haufe et al. 2014, NeuroImage 87, equation 6 (pattern of a weight).
LDAE, arXiv 2504.08635, and its released script of manipulation (which writes sqrt(512) for any d).
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from neurodiff.bridges.probes import LogisticProbe, RidgeProbe
from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import (
    load_weights,
    read_json,
    require_finite,
    save_safetensors,
    write_json,
)

PUBLISHED_FILES = ("disease_classifier.ckpt", "semantic_mean.pt", "semantic_std.pt")


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction: the probe's weight on z-scored codes.

    Parameters
    ----------
    name : what a positive amount moves towards, such as "AD" or "age".
    weight, mean, std : (d,); ``std`` above 0.
    intercept : of the probe.
    kind : "class" (the score is a logit) or "number".
    unit : of the score, such as "years".
    pattern : (d,) S w / sqrt(w' S w), how z-scored codes differ where the score is one SD larger;
        None where the spread of the codes is not known, as for a published classifier.

    Raises
    ------
    DataError : arrays of different lengths, NaN, or an SD that is not above 0.

    Examples
    --------
    >>> ones = np.ones(4)
    >>> older = Direction("age", ones, 70.0, 0 * ones, ones, "number", "years")
    >>> older.score(older.change(np.zeros((1, 4)), 5.0))
    array([75.])
    >>> older.move(np.zeros((1, 4)), 2.0)[0, 0]
    np.float32(2.0)
    """

    name: str
    weight: np.ndarray
    intercept: float
    mean: np.ndarray
    std: np.ndarray
    kind: Literal["class", "number"] = "class"
    unit: str = ""
    pattern: np.ndarray | None = None

    def __post_init__(self) -> None:
        for part in ("weight", "mean", "std", "pattern"):
            if getattr(self, part) is None:
                continue
            values = np.asarray(getattr(self, part), np.float64)
            if values.ndim != 1 or values.shape != np.shape(self.weight):
                raise DataError(
                    f"{part} of the direction {self.name!r} is {values.shape} and its weight "
                    f"{np.shape(self.weight)}; expected one number for each of a code's"
                )
            require_finite(values, f"{part} of the direction {self.name!r}")
            object.__setattr__(self, part, values)
        object.__setattr__(self, "intercept", float(self.intercept))
        if not math.isfinite(self.intercept) or not (self.std > 0).all():
            raise DataError(
                f"the direction {self.name!r} has the intercept {self.intercept} and a least SD of "
                f"{self.std.min():g}; expected a number and SDs above 0"
            )
        if self.kind not in ("class", "number"):
            raise UsageError(f"kind is {self.kind!r}; known are 'class' and 'number'")

    @property
    def identity(self) -> str:
        """SHA-256 of its numbers: the same name may come to mean another direction."""
        parts = [self.weight, self.mean, self.std, np.float64(self.intercept)]
        parts += [] if self.pattern is None else [self.pattern]
        return hashlib.sha256(b"".join(np.asarray(p, "<f8").tobytes() for p in parts)).hexdigest()

    def score(self, codes: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Logit of the class, or the number in its unit; float64."""
        return self._z(codes) @ self.weight + self.intercept

    def move(
        self,
        codes: Float[np.ndarray, "n d"],
        amount: float,
        *,
        how: Literal["published", "pattern"] = "published",
    ) -> Float[np.ndarray, "n d"]:
        """Codes moved by an amount, along the weight as published or along the pattern; float32.

        Raises
        ------
        UsageError : an amount that is not a number, codes of another length, a pattern of a
            direction that has none.
        DataError : the probe found nothing: its weight is 0.
        """
        norm = self._norm()
        if how == "published":
            return self._along(codes, amount, math.sqrt(len(self.weight)) / norm * self.weight)
        if self.pattern is None:
            raise UsageError(
                f"the direction {self.name!r} has no pattern: fit it on codes of a cohort, or move "
                "along its weight (how='published')"
            )
        return self._along(codes, amount, self.pattern)

    def change(self, codes: Float[np.ndarray, "n d"], by: float) -> Float[np.ndarray, "n d"]:
        """Codes whose score is larger by ``by`` (logits, or the unit), the shortest way; float32.

        Raises
        ------
        UsageError, DataError : as :meth:`move`.
        """
        return self._along(codes, by, self.weight / self._norm() ** 2)

    def away(self, name: str) -> Direction:
        """The opposite direction under a name of its own."""
        pattern = None if self.pattern is None else -self.pattern
        return replace(
            self, name=name, weight=-self.weight, intercept=-self.intercept, pattern=pattern
        )

    def _along(self, codes: np.ndarray, amount: float, step: np.ndarray) -> np.ndarray:
        if not math.isfinite(amount):
            raise UsageError(f"the amount is {amount}; give a number such as 2")
        moved = self._z(codes) + amount * step
        return (moved * self.std + self.mean).astype(np.float32)

    def _norm(self) -> float:
        norm = float(np.linalg.norm(self.weight))
        if norm == 0:
            raise DataError(
                f"the direction {self.name!r} has a weight of 0: its probe found nothing in the "
                "codes, and there is nowhere to move"
            )
        return norm

    def _z(self, codes: np.ndarray) -> np.ndarray:
        values = np.asarray(codes, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.weight):
            raise UsageError(
                f"codes are {values.shape}; the direction {self.name!r} reads (n, "
                f"{len(self.weight)})"
            )
        require_finite(values, "codes")
        return (values - self.mean) / self.std


def fit_direction(
    codes: Float[np.ndarray, "n d"],
    values: Any,
    name: str,
    *,
    positive: Any = None,
    groups: Any = None,
    unit: str = "",
    seed: int = 0,
) -> Direction:
    """The direction of a class or a number in the codes of training scans.

    Parameters
    ----------
    codes : (n, d)
    values : (n,) booleans or words (a class), or numbers.
    name : of the direction.
    positive : the class to move towards; needed for words, unless ``name`` is one of them.
    groups : (n,) the subject of each scan; an inner fold never parts one.
    unit : of a number.
    seed : of the inner folds.

    Raises
    ------
    DataError : NaN, a missing value, one class only, fewer than 2 scans, lengths that differ.
    UsageError : ``positive`` is none of the values, or there are more than two classes.
    """
    table = np.asarray(codes, np.float64)
    given = np.asarray(values)
    if table.ndim != 2 or given.shape != (len(table),) or len(table) < 2:
        raise DataError(
            f"codes are {table.shape} and values of {name!r} {given.shape}; give a code and a "
            "value for each of at least 2 scans"
        )
    require_finite(table, "codes")
    if groups is not None and len(groups) != len(table):
        raise DataError(f"{len(groups)} groups for {len(table)} codes; give one for each scan")
    if given.dtype.kind in "iuf" and positive is None:
        require_finite(given, f"values of {name!r}")
        probe: Any = RidgeProbe(seed=seed).fit(table, given.astype(np.float64), groups)
        kind: Literal["class", "number"] = "number"
    else:
        truth = _classes(given, name, positive)
        probe = LogisticProbe(seed=seed).fit(table, truth, groups)
        kind = "class"
    weight, mean, std = probe.standard_coef_, probe.mean_, probe.deviation_
    pattern = weight_pattern(weight, (table - mean) / std)
    return Direction(name, weight, probe.standard_intercept_, mean, std, kind, unit, pattern)


def weight_pattern(
    weight: Float[np.ndarray, " d"], z: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " d"]:
    """S w / sqrt(w' S w): how ``z`` differs where its score z . w is one SD larger; zeros for w 0.

    Examples
    --------
    >>> z = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    >>> weight_pattern(np.array([1.0, 0.0]), z)  # the second number goes along
    array([1., 1.])
    """
    score = z @ weight
    score = score - score.mean()
    sd = float(np.sqrt((score**2).mean()))
    return (score @ z) / (len(z) * sd) if sd > 0 else np.zeros_like(weight)


def published_direction(
    folder: str | Path, *, towards: Literal["AD", "CN"] = "AD", std_floor: float = 0.0
) -> Direction:
    """The released classifier of AD and CN as a direction.

    The folder holds disease_classifier.ckpt, semantic_mean.pt and semantic_std.pt, which are read
    as tensors only.  The release sorts its labels (AD 0, CN 1), so that its weight points to CN;
    ``towards="AD"`` is its opposite.

    std_floor : least SD; a code that never varied has 0, which is refused by default.

    Raises
    ------
    MissingDataError : a file is not there.
    DataError : broken, not of these names, or of different lengths.
    """
    if towards not in ("AD", "CN"):
        raise UsageError(f"towards is {towards!r}; the released classifier knows 'AD' and 'CN'")
    classifier, mean, std = (Path(folder) / name for name in PUBLISHED_FILES)
    tensors = load_weights(classifier)
    inner = tensors.get("state_dict", tensors)
    if not isinstance(inner, Mapping) or not {"weight", "bias"} <= set(inner):
        raise DataError(
            f"{classifier} holds {', '.join(sorted(map(str, tensors))[:5])}; expected 'weight' "
            "(1, d) and 'bias'"
        )
    weight = _numbers(inner["weight"])
    bias = _numbers(inner["bias"])
    if len(bias) != 1:
        raise DataError(f"{classifier} has a bias of {len(bias)} numbers; expected 1: two classes")
    spread = np.maximum(_bare_tensor(std), std_floor)
    direction = Direction(
        "CN", weight, float(bias[0]), _bare_tensor(mean), spread, "class", "logit"
    )
    return direction if towards == "CN" else direction.away("AD")


def save_directions(directions: Mapping[str, Direction], folder: str | Path) -> None:
    """Write directions.safetensors and directions.json."""
    import torch

    tensors, facts = {}, {}
    for number, (key, one) in enumerate(directions.items()):
        for part in ("weight", "mean", "std", "pattern"):
            if (values := getattr(one, part)) is not None:
                tensors[f"{number}.{part}"] = torch.from_numpy(np.array(values))
        facts[key] = {
            "name": one.name,
            "intercept": one.intercept,
            "kind": one.kind,
            "unit": one.unit,
        }
    save_safetensors(tensors, Path(folder) / "directions.safetensors")
    write_json(Path(folder) / "directions.json", facts)


def load_directions(folder: str | Path) -> dict[str, Direction]:
    """What :func:`save_directions` wrote.

    Raises
    ------
    MissingDataError, DataError : no file, a broken one, files that do not fit each other.
    """
    path = Path(folder) / "directions.json"
    facts = read_json(path)
    if facts == {}:
        return {}
    tensors = load_weights(Path(folder) / "directions.safetensors")
    try:
        return {
            key: Direction(
                one["name"],
                tensors[f"{number}.weight"].numpy(),
                float(one["intercept"]),
                tensors[f"{number}.mean"].numpy(),
                tensors[f"{number}.std"].numpy(),
                one["kind"],
                one["unit"],
                pattern.numpy()
                if (pattern := tensors.get(f"{number}.pattern")) is not None
                else None,
            )
            for number, (key, one) in enumerate(facts.items())
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not fit directions.safetensors ({type(error).__name__} {error}); save "
            "the directions again"
        ) from None


# ------------------------------------------------------------------------------- helpers


def _classes(given: np.ndarray, name: str, positive: Any) -> np.ndarray:
    """True where the value is the positive class."""
    missing = np.asarray(pd.isna(given))
    if missing.any():
        raise DataError(f"{int(missing.sum())} values of {name!r} are missing; leave them out")
    found = list(dict.fromkeys(given.tolist()))
    if positive is None:
        positive = True if given.dtype.kind == "b" else name
    if positive not in found and len(found) > 1:
        raise UsageError(
            f"{positive!r} is none of the values {', '.join(map(repr, found[:5]))} of {name!r}; "
            "name the class to move towards with positive="
        )
    if len(found) > 2:
        raise UsageError(f"{name!r} has {len(found)} classes; a direction lies between two")
    if len(found) < 2:
        raise DataError(f"all values of {name!r} are {found[0]!r}; a direction needs two classes")
    return np.array([value == positive for value in given.tolist()])


def _numbers(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().double().numpy().reshape(-1)


def _bare_tensor(path: Path) -> np.ndarray:
    """Numbers of a file with one tensor in it."""
    import torch

    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; expected {', '.join(PUBLISHED_FILES)}")
    try:
        # load_weights wants names; this file is one bare tensor, and as safely read
        tensor = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except pickle.UnpicklingError:
        raise DataError(f"{path} is a pickle of something other than a tensor") from None
    except Exception as error:  # broken bytes end in any of a dozen types inside the unpickler
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a complete file of torch.save ({what})") from None
    if not isinstance(tensor, torch.Tensor):
        raise DataError(f"{path} holds {type(tensor).__name__}; expected one tensor")
    return _numbers(tensor)
