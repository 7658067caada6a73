"""Published checkpoints: which one a file is, whether it is whole, and its tensors in networks.

A file is recognised by its names, never by its file name, and nothing is loaded in part: a name
that is needed and absent, or a tensor of another shape, is an error that says which.

    layout  what                                 container
    A       released MinD-3D                     flat names
    B       own training, stage 1 or stage 2     {"epoch_it", "it", "model": names}
    D       encoder pre-training                 {"model": "module.transformer.<name>"}
    F       PointNet of the Frechet distance     {"model_state_dict": names}
    V       VDVAE of Brain-Diffuser              flat names

Tensors stay where the file is mapped until something reads them, and none is held twice: the
second copy of the prior (``diffusion_prior.net``) and the second name of the shape decoder's tied
matrix are compared with the first and then dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.safe_io import load_weights
from neurodiff.models.mind3d import BrainNetworks, ShapeGenerator
from neurodiff.models.published_sizes import (
    AGGREGATION,
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
    meta_modules,
    schedule_tables,
    sizes_of,
)
from neurodiff.models.shape_decoder import ShapeDecoder
from neurodiff.models.vdvae import VDVAESize
from neurodiff.models.vdvae_weights import PARTS as VDVAE_PARTS
from neurodiff.models.vdvae_weights import vdvae_shapes, vdvae_size_of

Layout = Literal["A", "B stage 1", "B stage 2", "D", "F", "V"]
LAYOUTS: dict[str, str] = {
    "A": "released MinD-3D",
    "B stage 1": "training, stage 1",
    "B stage 2": "training, stage 2",
    "D": "encoder pre-training",
    "F": "PointNet of the Frechet distance",
    "V": "VDVAE of Brain-Diffuser",
}
#: Parameters that the published code makes and never reads, and a network that is not part of ours.
DEAD = (".null_fmri_encodings", TOKENIZER + "encoder.unet.", "CLIP_Model.")
_MIND3D = (ENCODER, AGGREGATION, PRIOR, PRIOR_TWIN, "shape_generator.", HEADER)
_MOST_NAMES, _MOST_LINES = 4, 20  # names written out in a sentence, and in a table


@dataclass(frozen=True)
class Checkpoint:
    """A recognised file. ``tensors`` have the published names, wrappers taken off."""

    path: Path
    layout: Layout
    tensors: dict[str, Tensor]
    facts: dict[str, int] = field(default_factory=dict)  # epoch and iteration, where it says so

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> list[str]:
        """Number types that occur, the most frequent first."""
        names = [str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()]
        return sorted(set(names), key=names.count, reverse=True)


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


# ------------------------------------------------------------------------------- opening


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Map a file and recognise its layout.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : broken, truncated, a pickle of something else, or no layout that is known here.
    """
    path = Path(path)
    whole = load_weights(path)
    facts = {
        name: int(whole[name])
        for name in ("epoch_it", "it", "epoch")
        if isinstance(whole.get(name), int | float)
    }
    inner, container = _unwrapped(whole)
    tensors = {
        name.removeprefix("module."): value
        for name, value in inner.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise DataError(f"{path} holds no named tensors; expected a published checkpoint")
    layout = _layout(path, tensors, container)
    if layout == "D":
        tensors = {_encoder_name(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(path, layout, tensors, facts)


def _unwrapped(whole: Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """The names, and the key under which they lie ("" for a flat file)."""
    for key in ("model_state_dict", "model", "state_dict"):
        value = whole.get(key)
        if isinstance(value, Mapping):
            return value, key
    return whole, ""


def _layout(path: Path, tensors: Mapping[str, Tensor], container: str) -> Layout:
    def any_of(*starts: str) -> bool:
        return any(name.startswith(starts) for name in tensors)

    if any_of("unet.base_model.") or any_of("i_logit_scale", "t_logit_scale"):
        raise DataError(
            f"{path} is a checkpoint of MinD-3D++ (layout C); this version decodes with MinD-3D "
            "only: give its released weights"
        )
    if any_of("lrm_generator."):
        raise DataError(
            f"{path} is a checkpoint of InstantMesh (layout E), no network of MinD-3D; give the "
            "released MinD-3D weights"
        )
    if any_of("feat.stn.", "feat.conv1."):
        return "F"
    if any_of(*VDVAE_PARTS):
        return "V"
    if any_of("transformer.") and all(name.startswith("transformer.") for name in tensors):
        return "D"
    if any_of(*_MIND3D):
        if any_of(HEADER) and not any_of("shape_generator."):
            return "B stage 1"
        return "B stage 2" if container == "model" else "A"
    first = ", ".join(sorted(tensors)[:3])
    raise DataError(
        f"{path} holds tensors, but of no network that neurodiff knows (first names: {first}); "
        "expected names that begin with fmri_encoder, prior_network or shape_generator (MinD-3D), "
        "module.transformer (encoder pre-training), feat.stn (PointNet) or encoder.enc_blocks "
        "(VDVAE)"
    )


def _encoder_name(name: str) -> str:
    return ENCODER + name.removeprefix("transformer.")


# ------------------------------------------------------------------------------- comparing


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
            if _is_dead(name):
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
    if _is_counter(name):
        return Row(name, "dead", "counts training steps")
    if name.startswith((ENCODER + "decoder_", ENCODER + "mask_token")):
        return Row(name, "dead", "decoder of the pre-training")
    return Row(name, "unexpected")


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal values; a tensor that is stored once and named twice is not read."""
    if a.is_meta or b.is_meta or (a.data_ptr() == b.data_ptr() and a.shape == b.shape):
        return True
    return torch.equal(a, b)


def _is_dead(name: str) -> bool:
    return any(part in name for part in DEAD)


def _is_counter(name: str) -> bool:
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


# ------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class Networks:
    """MinD-3D with a checkpoint's weights; a stage 1 has ``header``, the others ``shapes``."""

    sizes: MinD3DSizes
    brain: BrainNetworks
    shapes: ShapeGenerator | None
    report: KeyReport


def load_mind3d(
    path: str | Path,
    *,
    any_size: bool = False,
    dtype: torch.dtype | None = torch.float32,
    decoder_dtype: torch.dtype | None = None,
    protocol: str = "mind3d-2024",
    encoder_heads: int = 16,
    decoder_heads: int = 16,
) -> Networks:
    """Networks with the weights of layout A or B, each tensor held once.

    Parameters
    ----------
    any_size : take sizes from the shapes; else other sizes than the published ones are refused.
    dtype : of encoder, aggregation, prior and tokenizer (335 M values); None leaves each tensor in
        the number type of the file, and where that is the wanted one the mapped file is not copied.
    decoder_dtype : of the shape decoder (3.7 G values); ``dtype`` if not given.
    protocol : of the prior's norms and softmax (see `FeatureBridge`).

    Raises
    ------
    MissingDataError, DataError : as `open_checkpoint`; a needed name is missing; another size.
    UsageError : the file is a checkpoint of another network.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout in ("D", "F", "V"):
        what = "no part of MinD-3D" if checkpoint.layout == "V" else "a part of the chain only"
        raise UsageError(
            f"{path} is layout {checkpoint.layout} ({LAYOUTS[checkpoint.layout]}), {what}; give a "
            "checkpoint of layout A or B"
        )
    report = compare(checkpoint, encoder_heads=encoder_heads, decoder_heads=decoder_heads)
    if report.broken:
        raise DataError(report.sentence())
    sizes = report.sizes
    assert isinstance(sizes, MinD3DSizes)
    if not any_size and sizes.differences():
        raise DataError(
            f"{path} is of another size than the published model: {sizes.summary()}. "
            "Give the published weights, or allow other sizes (any_size, --any-size)"
        )
    tensors = checkpoint.tensors
    prior = PRIOR if PRIOR + "learned_query" in tensors else PRIOR_TWIN
    with torch.device("meta"):
        brain = BrainNetworks(
            sizes.encoder,
            sizes.bridge,
            aggregated_tokens=sizes.aggregated_tokens,
            protocol=protocol,
        )
    for prefix, module in (
        (ENCODER, brain.fmri_encoder),
        (AGGREGATION, brain.fa_module),
        (prior, brain.prior_network),
    ):
        fill(module, _under(tensors, prefix), dtype=dtype, where=str(path))
    shapes = None
    if checkpoint.layout != "B stage 1":
        tokenizer = _under(tensors, TOKENIZER)
        unet = any(name.startswith("encoder.unet.") for name in tokenizer)
        with torch.device("meta"):
            shapes = ShapeGenerator(
                sizes.decoder, replace(sizes.tokenizer, unused_encoder_unet=unet)
            )
        decoder = _under(tensors, DECODER)
        kept = decoder.pop("z_value_dec.weight", None)
        if kept is not None:
            decoder.setdefault("emb.weight", kept)
        wanted = dtype if decoder_dtype is None else decoder_dtype
        fill(shapes.transformer_model, decoder, dtype=wanted, where=str(path))
        fill(shapes.vqvae_model, tokenizer, dtype=dtype, where=str(path))
        shapes.eval().requires_grad_(False)
    brain.eval().requires_grad_(False)
    return Networks(sizes, brain, shapes, report)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    where: str = "the checkpoint",
) -> None:
    """Give a network on the meta device its weights, without a second copy of any.

    A tensor that has the wanted type already is taken as it is (mapped); the others are cast one by
    one.  Rotary frequencies stay float32: at position 700 they need it.  Dead parameters that are
    not there become zeros.

    Raises
    ------
    DataError : a name is missing or unknown, or a shape is another one.
    """
    own = module.state_dict()
    tied = "z_value_dec.weight" in own and "z_value_dec.weight" not in tensors
    ready: dict[str, Tensor] = {}
    for name, empty in own.items():
        if tied and name == "z_value_dec.weight":
            continue
        if name not in tensors:
            if not _is_dead("." + name):
                raise DataError(f"{where} lacks {name!r}; it is no whole {type(module).__name__}")
            ready[name] = torch.zeros(empty.shape, dtype=dtype or torch.float32)
            continue
        value = tensors[name]
        if value.shape != empty.shape:
            raise DataError(
                f"{where}: {name} has shape {tuple(value.shape)}, and this "
                f"{type(module).__name__} needs {tuple(empty.shape)}: it is of another size"
            )
        wanted = torch.float32 if name.endswith("rotary_emb.freqs") else dtype
        floating = value.is_floating_point() and wanted is not None
        ready[name] = value.to(wanted) if floating else value
    strange = sorted(set(tensors) - set(own))
    if strange:
        raise DataError(
            f"{where} holds {strange[0]!r}, which {type(module).__name__} does not have; it is of "
            "another network"
        )
    if tied:
        ready["z_value_dec.weight"] = ready["emb.weight"]
    module.load_state_dict(ready, assign=True)
    if tied:
        assert isinstance(module, ShapeDecoder)
        module.tie_weights()  # one parameter, not two that share a tensor


def load_encoder(
    path: str | Path, *, heads: int = 16, dtype: torch.dtype | None = torch.float32
) -> nn.Module:
    """The fMRI encoder of any MinD-3D checkpoint (layouts A, B and D), of its own size.

    Raises
    ------
    MissingDataError, DataError, UsageError : as `load_mind3d`.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.layout in ("F", "V"):
        raise UsageError(f"{path} is a {LAYOUTS[checkpoint.layout]}; it has no fMRI encoder")
    report = compare(checkpoint, encoder_heads=heads)
    bad = [row for row in report.broken if row.name.startswith(ENCODER)]
    if bad:
        raise DataError(KeyReport(checkpoint, report.sizes, bad).sentence())
    assert isinstance(report.sizes, MinD3DSizes)
    encoder = meta_modules(report.sizes)[ENCODER]
    own = {name for name in expected_shapes(report.sizes) if name.startswith(ENCODER)}
    tensors = {name: t for name, t in checkpoint.tensors.items() if name in own}
    fill(encoder, _under(tensors, ENCODER), dtype=dtype, where=str(path))
    return encoder.eval()


def load_pointnet(path: str | Path, module: nn.Module) -> nn.Module:
    """Layout F into a network with the published names (``num_batches_tracked`` may be absent).

    Raises
    ------
    MissingDataError, DataError : broken, not layout F, or names and shapes that do not fit.
    """
    checkpoint = open_checkpoint(path)
    report = compare(checkpoint)
    if checkpoint.layout != "F":
        raise DataError(
            f"{path} is layout {checkpoint.layout} ({LAYOUTS[checkpoint.layout]}); expected the "
            "PointNet of the Frechet distance (layout F)"
        )
    if report.broken:
        raise DataError(report.sentence())
    own = module.state_dict()
    counters = {name: value for name, value in own.items() if _is_counter(name)}
    fill(module, counters | checkpoint.tensors, dtype=torch.float32, where=str(path))
    return module.eval()


def not_finite(checkpoint: Checkpoint) -> list[str]:
    """Names of tensors that hold NaN or infinity (reads the whole file once).

    Schedule tables are left out: some overflow in half precision, and none is used.
    """
    return [
        name
        for name, tensor in checkpoint.tensors.items()
        if tensor.is_floating_point()
        and not name.startswith(SCHEDULE)
        and not bool(torch.isfinite(tensor).all())
    ]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _by_part(rows: list[Row]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    ends = ("CLIP_Model.", "feat.", *VDVAE_PARTS)
    prefixes = (*_MIND3D[:4], DECODER, TOKENIZER, HEADER, SCHEDULE, *ends)
    for row in rows:
        prefix = next((p for p in prefixes if row.name.startswith(p)), "")
        parts.setdefault(prefix.rstrip(".") or "(no prefix)", []).append(row)
    return parts


def _listed(rows: list[Row]) -> str:
    names = ", ".join(row.name + (f" {row.note}" if row.note else "") for row in rows[:_MOST_NAMES])
    return names + (f" and {len(rows) - _MOST_NAMES} more" if len(rows) > _MOST_NAMES else "")


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.tensors.values())
