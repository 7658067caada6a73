"""A checkpoint's names beside what its layout and sizes ask for: what is there, missing or other.

Nothing is held twice in a network, so the second copy of the prior (``diffusion_prior.net``) and
the second name of the shape decoder's tied matrix are compared with the first and then dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neurodiff.core.errors import DataError
from neurodiff.models.checkpoints import LAYOUTS, MIND3D_PARTS, Checkpoint
from neurodiff.models.published_sizes import (
    DECODER,
    ENCODER,
    HEADER,
    LOGIT_SCALE,
    PRIOR,
    PRIOR_TWIN,
    SCHEDULE,
    TIED,
    TOKENIZER,
    MinD3DSizes,
    Shape,
    expected_shapes,
    schedule_tables,
    sizes_of,
)
from neurodiff.models.vdvae_size import VDVAESize
from neurodiff.models.vdvae_weights import PARTS as VDVAE_PARTS
from neurodiff.models.vdvae_weights import vdvae_shapes, vdvae_size_of

#: Parameters that the published code makes and never reads, and a network that is not part of ours.
DEAD = (".null_fmri_encodings", TOKENIZER + "encoder.unet.", "CLIP_Model.")
_MOST_NAMES, _MOST_LINES = 4, 20  # names written out in a sentence, and in a table


@dataclass(frozen=True)
class Row:
    """One name: "matched", "missing", "unexpected", "other shape", "dead", "duplicate",
    "tied" or "differs"; ``note`` says what is to be said of it."""

    name: str
    status: str
    note: str = ""


@dataclass(frozen=True)
class KeyReport:
    """What a checkpoint holds, beside what its layout and sizes ask for."""

    checkpoint: Checkpoint
    sizes: MinD3DSizes | VDVAESize | None
    rows: list[Row]

    def of(self, *status: str) -> list[Row]:
        """Rows with one of these statuses."""
        return [row for row in self.rows if row.status in status]

    @property
    def broken(self) -> list[Row]:
        """Rows that forbid loading."""
        return self.of("missing", "other shape", "differs")

    def sentence(self) -> str:
        """Why the checkpoint cannot be loaded; "" where it can."""
        bad = self.broken
        if not bad:
            return ""
        kinds = {
            kind: [r for r in bad if r.status == kind]
            for kind in dict.fromkeys(r.status for r in bad)
        }
        parts = [f"{len(rows)} {kind}: {_listed(rows)}" for kind, rows in kinds.items()]
        what = LAYOUTS[self.checkpoint.layout]
        return (
            f"{self.checkpoint.path} is no whole checkpoint of layout {self.checkpoint.layout} "
            f"({what}): {'; '.join(parts)}. Download or save it again, or look at it with "
            "`neurodiff weights check`"
        )

    def table(self, *, full: bool = False) -> str:
        """For people: one line a part of the model, then the names that are not as expected.

        ``full`` writes out all of these names, else the first 20 of each kind.
        """
        there = self.checkpoint
        lines = [
            f"{there.path}: layout {there.layout} ({LAYOUTS[there.layout]}), "
            f"{len(there.tensors):,} tensors, {_parameters(there):,} values, "
            f"{', '.join(there.dtypes)}",
        ]
        lines += [f"{name}: {value}" for name, value in there.facts.items()]
        if self.sizes is not None and there.layout != "D":
            found = self.sizes.differences()
            lines.append(f"sizes: {'; '.join(found) if found else 'as published'}")
        lines.append(f"{'part':<36}{'matched':>8}{'missing':>8}{'unexpected':>11}  other")
        for prefix, rows in _by_part(self.rows).items():
            count = {s: sum(row.status == s for row in rows) for s in {row.status for row in rows}}
            matched, missing, strange = (
                count.pop(status, 0) for status in ("matched", "missing", "unexpected")
            )
            other = ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
            lines.append(f"{prefix:<36}{matched:>8}{missing:>8}{strange:>11}  {other}".rstrip())
        for status in ("missing", "other shape", "differs", "unexpected"):
            rows = self.of(status)
            shown = rows if full else rows[:_MOST_LINES]
            for row in shown:
                lines.append(f"{status:<12}{row.name}{f'  {row.note}' if row.note else ''}")
            if len(shown) < len(rows):
                lines.append(f"{status:<12}and {len(rows) - len(shown)} more")
        return "\n".join(lines)


def compare(
    checkpoint: Checkpoint, *, encoder_heads: int = 16, decoder_heads: int = 16
) -> KeyReport:
    """Every name of a checkpoint beside what its layout asks for at the sizes of its tensors.

    Raises
    ------
    DataError : the shapes are of no possible network.
    """
    if checkpoint.layout == "F":
        return KeyReport(checkpoint, None, _rows(checkpoint, _pointnet_shapes(checkpoint), ()))
    try:
        if checkpoint.layout == "V":
            size = vdvae_size_of(checkpoint.shapes)
            return KeyReport(checkpoint, size, _rows(checkpoint, vdvae_shapes(size), ()))
        sizes = sizes_of(
            checkpoint.shapes, encoder_heads=encoder_heads, decoder_heads=decoder_heads
        )
        expected = expected_shapes(sizes, stage1=checkpoint.layout == "B stage 1")
    except ValueError as error:
        raise DataError(
            f"{checkpoint.path} has tensors of no possible size ({error}); it is of another model"
        ) from None
    if checkpoint.layout == "D":
        expected = {name: s for name, s in expected.items() if name.startswith(ENCODER)}
    rows = _rows(checkpoint, expected, _dropped(checkpoint, expected))
    return KeyReport(checkpoint, sizes, rows)


def _dropped(checkpoint: Checkpoint, expected: Mapping[str, Shape]) -> set[str]:
    """Names that repeat another one, which the file may hold or leave out."""
    tensors = checkpoint.tensors
    twin = PRIOR_TWIN if any(name.startswith(PRIOR) for name in tensors) else PRIOR
    names = {name for name in expected if name.startswith((twin, SCHEDULE))}
    return names | ({TIED} if DECODER + "emb.weight" in tensors else {DECODER + "emb.weight"})


def _rows(
    checkpoint: Checkpoint, expected: Mapping[str, Shape], repeated: Iterable[str]
) -> list[Row]:
    tensors, repeated, rows = checkpoint.tensors, set(repeated), []
    for name, shape in expected.items():
        if name not in tensors:
            if is_dead(name):
                rows.append(Row(name, "dead", "not in the file; nothing reads it"))
            elif name not in repeated:
                rows.append(Row(name, "missing"))
            continue
        found = tuple(tensors[name].shape)
        if found != shape:
            rows.append(Row(name, "other shape", f"{found}; expected {shape}"))
        elif name in repeated:
            rows.append(_repeated(name, tensors))
        else:
            rows.append(Row(name, "matched"))
    for name in tensors:
        if name not in expected:
            rows.append(_row_of_foreign(name))
    return rows


def _repeated(name: str, tensors: Mapping[str, Tensor]) -> Row:
    """A second copy has to be equal to the first, and a schedule to the published path."""
    if name.startswith(SCHEDULE):
        table = schedule_tables(len(tensors[name]))[name.removeprefix(SCHEDULE)]
        stored = tensors[name]
        step = 3 * torch.finfo(stored.dtype).eps if stored.is_floating_point() else 0.0
        if torch.allclose(stored.float(), table, rtol=max(step, 1e-5), atol=max(step, 1e-7)):
            return Row(name, "duplicate", "follows from the path")
        return Row(name, "differs", "of another diffusion path than the published cosine one")
    first, status = name, "duplicate"
    for one, other in ((PRIOR_TWIN, PRIOR), (PRIOR, PRIOR_TWIN)):
        if name.startswith(one):
            first = other + name.removeprefix(one)
    if name == TIED:
        first, status = DECODER + "emb.weight", "tied"
    if first not in tensors:
        return Row(name, "duplicate")
    if _same(tensors[name], tensors[first]):
        return Row(name, status, f"equal to {first}")
    return Row(name, "differs", f"not equal to {first}, of which it should be a copy")


def _row_of_foreign(name: str) -> Row:
    if name.startswith(("CLIP_Model.", LOGIT_SCALE)):
        return Row(name, "dead", "of the training only")
    if is_counter(name):
        return Row(name, "dead", "counts training steps")
    if name.startswith((ENCODER + "decoder_", ENCODER + "mask_token")):
        return Row(name, "dead", "decoder of the pre-training")
    return Row(name, "unexpected")


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal values; a tensor that is stored once and named twice is not read."""
    if a.is_meta or b.is_meta or (a.data_ptr() == b.data_ptr() and a.shape == b.shape):
        return True
    return torch.equal(a, b)


def is_dead(name: str) -> bool:
    """Whether nothing reads a published parameter."""
    return any(part in name for part in DEAD)


def is_counter(name: str) -> bool:
    """Whether it is the step counter of a batch norm, which files may lack."""
    return name.endswith("num_batches_tracked")


def _pointnet_shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Names of the published PointNet, whose classes are those of the file (13 as published)."""
    head = checkpoint.tensors.get("fc3.weight")
    classes = 13 if head is None else len(head)
    shapes: dict[str, Shape] = {}
    for prefix in ("feat.stn.", "feat."):
        for k, (a, b) in enumerate(((3, 64), (64, 128), (128, 1024)), 1):
            shapes |= {f"{prefix}conv{k}.weight": (b, a, 1), f"{prefix}conv{k}.bias": (b,)}
            shapes |= _batch_norm(f"{prefix}bn{k}.", b)
    for prefix, last in (("feat.stn.", 9), ("", classes)):
        for k, (a, b) in enumerate(((1024, 512), (512, 256), (256, last)), 1):
            shapes |= {f"{prefix}fc{k}.weight": (b, a), f"{prefix}fc{k}.bias": (b,)}
    others = {"feat.stn.bn4.": 512, "feat.stn.bn5.": 256, "bn1.": 512, "bn2.": 256}
    for name, width in others.items():
        shapes |= _batch_norm(name, width)
    return shapes


def _batch_norm(prefix: str, width: int) -> dict[str, Shape]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {prefix + name: (width,) for name in names}


def _by_part(rows: list[Row]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    ends = ("CLIP_Model.", "feat.", *VDVAE_PARTS)
    prefixes = (*MIND3D_PARTS[:4], DECODER, TOKENIZER, HEADER, SCHEDULE, *ends)
    for row in rows:
        prefix = next((p for p in prefixes if row.name.startswith(p)), "")
        parts.setdefault(prefix.rstrip(".") or "(no prefix)", []).append(row)
    return parts


def _listed(rows: list[Row]) -> str:
    names = ", ".join(row.name + (f" {row.note}" if row.note else "") for row in rows[:_MOST_NAMES])
    return names + (f" and {len(rows) - _MOST_NAMES} more" if len(rows) > _MOST_NAMES else "")


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.tensors.values())
