"""The one training loop: every network of every pipeline is fitted here.

On accelerate (devices, mixed precision, accumulation, several processes). What the loop adds:
batches and noise that depend on (seed, step) only, so a killed run that is started again ends in
the same weights; checkpoints that are whole or absent; an exponential moving average.
"""

from __future__ import annotations

import atexit
import functools
import math
import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from neurodiff.core.atomic import write_error
from neurodiff.core.errors import DataError, UsageError
from neurodiff.core.progress import SILENT, Progress
from neurodiff.core.safe_io import sha256_of
from neurodiff.core.seeds import item_seed, numpy_generator, torch_generator

if TYPE_CHECKING:
    import torch
    from torch import nn

    #: (model, item indices, generator of this step) -> named terms; "loss" is minimised
    LossFunction = Callable[[nn.Module, np.ndarray, torch.Generator], dict[str, torch.Tensor]]

HASH = "state.sha256"  # of a checkpoint: a disk's slip in a weight would load without an error


class Kept(Protocol):
    """What a checkpoint takes along: an optimiser, a module, or anything of tensors and numbers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast. ``steps`` counts optimiser steps: fixed, never wall time."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    # to 2 % of the peak, straight to 0, or none
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: float = 1.0
    ema_decay: float = 0.0  # 0: no moving average
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate is {self.learning_rate:g}; expected a number above 0")


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then down to the end as ``settings.decay`` says; ``step`` counts from 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.decay == "constant":
        return settings.learning_rate
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    if settings.decay == "linear":
        return settings.learning_rate * (1 - min(share, 1.0))
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def batch_indices(step: int, n_items: int, batch_size: int, seed: int, stage: str) -> np.ndarray:
    """Items of optimiser step ``step``: epochs of shuffled items, told from the seed alone."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // n_items
    chosen = np.zeros(batch_size, np.int64)
    for epoch in np.unique(epochs):
        key = item_seed(seed, subject="", stimulus=f"epoch {epoch}", stage=stage)
        order = numpy_generator(key).permutation(n_items)
        of_epoch = epochs == epoch
        chosen[of_epoch] = order[positions[of_epoch] % n_items]
    return chosen


def train(
    model: nn.Module,
    loss: LossFunction,
    *,
    n_items: int,
    settings: TrainingSettings,
    seed: int,
    stage: str,
    folder: Path | None = None,
    log: Callable[[dict], None] | None = None,
    progress: Progress = SILENT,
    parameters: list[nn.Parameter] | None = None,
    rates: list[float] | None = None,
    after_step: Callable[[int], None] | None = None,
    keep: Mapping[str, Kept] | None = None,
) -> nn.Module:
    """Fit ``model`` in place and return it, with the averaged weights if ``ema_decay`` is set.

    Parameters
    ----------
    loss : called once a micro-batch with the item indices and a generator seeded by (seed, step);
        a mean over the items. torch's own generator on the CPU is seeded by them, too (dropout).
    folder : where checkpoints go; an interrupted run continues from the newest whole one.
    parameters : those to train; ``None``: all that require a gradient.
    rates : for each of ``parameters`` a factor of the learning rate; ``None``: 1 for all.
    after_step : called with the step's number after each optimiser step (codebook upkeep).
    keep : by name, what else a checkpoint holds, such as a discriminator and its optimiser that
        ``loss`` and ``after_step`` train. It is saved after ``after_step`` and restored with the
        weights.

    Raises
    ------
    UsageError : no items, no steps, fewer items in a batch than parts to accumulate, or a batch
        that is no multiple of processes times parts.
    DataError : the loss is not finite (says at which step); the disk is full.

    Notes
    -----
    Several processes (started by accelerate's launcher) share each batch: every process takes each
    n-th item and draws noise of its own.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    if n_items < 1:
        raise UsageError(f"{stage}: {n_items} items: nothing to train on")
    if settings.accumulate > settings.batch_size:
        raise UsageError(
            f"{stage}: a batch of {settings.batch_size} cannot be accumulated from "
            f"{settings.accumulate} parts; accumulate must lie between 1 and batch_size"
        )
    chosen = parameters or [p for p in model.parameters() if p.requires_grad]
    accelerator = _accelerator(settings, chosen)
    share = accelerator.num_processes
    if settings.batch_size % (share * settings.accumulate) and share > 1:
        raise UsageError(
            f"{stage}: a batch of {settings.batch_size} cannot be shared by {share} processes of "
            f"{settings.accumulate} parts; make it a multiple of {share * settings.accumulate}"
        )
    factors = dict.fromkeys(rates or [1.0])
    groups = [
        {"params": [p for k, p in enumerate(chosen) if rates is None or rates[k] == factor]}
        for factor in factors
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    ema = None
    if settings.ema_decay:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    others = keep or {}
    first = _resume(folder, model, optimizer, ema, others)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    wrapped.train()
    progress.begin(stage)
    for step in range(first, settings.steps):
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = factor * learning_rate_at(step, settings)
        process = accelerator.process_index
        name = f"step {step}" if process == 0 else f"step {step}, process {process}"
        key = item_seed(seed, subject="", stimulus=name, stage=stage)
        generator = torch_generator(key)
        rows = batch_indices(step, n_items, settings.batch_size, seed, stage)[process::share]
        terms: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            for part in np.array_split(rows, settings.accumulate):
                weight = len(part) / len(rows)  # parts may differ in length by one
                with accelerator.accumulate(wrapped), accelerator.autocast():
                    values = loss(wrapped, part, generator)
                    # accelerate divides by the number of parts
                    accelerator.backward(values["loss"] * (weight * settings.accumulate))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(chosen, settings.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                for name, value in values.items():
                    terms[name] = terms.get(name, 0.0) + float(value.detach()) * weight
        if not math.isfinite(terms["loss"]):
            raise DataError(
                f"{stage}: the loss became {terms['loss']} at step {step}; "
                "look for NaN in the data, or lower the learning rate"
            )
        if ema is not None:
            ema.update_parameters(accelerator.unwrap_model(wrapped))
        if after_step is not None:
            after_step(step)
        if log is not None and (step % 10 == 0 or step + 1 == settings.steps):
            log({"step": step, "learning_rate": learning_rate_at(step, settings), **terms})
        progress.update(step + 1, settings.steps, f"loss {terms['loss']:.4f}")
        due = (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps
        if folder is not None and due and accelerator.is_main_process:
            _save(folder, step + 1, model, optimizer, ema, others)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # no autocast after training
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    model.eval()
    return model


def remove_checkpoints(folder: Path) -> None:
    """Once a stage is done its checkpoints are dead weight."""
    for old in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(old, ignore_errors=True)


def _accelerator(settings: TrainingSettings, parameters: list[nn.Parameter]):
    """An accelerator of this training alone, on the device where the parameters lie.

    accelerate keeps one state a process and refuses a second precision or device; each stage of a
    pipeline has its own.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=parameters[0].device.type == "cpu",
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
    )
    if accelerator.num_processes > 1:
        _leave_group_at_exit()
    return accelerator


@functools.cache
def _leave_group_at_exit() -> None:
    """A process that ends inside its group is aborted now and then: its threads still run."""
    atexit.register(_leave_group)


def _leave_group() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _save(folder: Path, step: int, model, optimizer, ema, keep: Mapping[str, Kept]) -> None:
    import torch

    folder = Path(folder)
    partial = folder / f".partial-{uuid.uuid4().hex}"
    target = folder / f"checkpoint-{step:07d}"
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if ema is not None:
        state["ema"] = ema.state_dict()
    if keep:
        state["keep"] = {name: part.state_dict() for name, part in keep.items()}
    try:
        partial.mkdir(parents=True)
        with open(partial / "state.pt", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        (partial / HASH).write_text(sha256_of(partial / "state.pt"), encoding="ascii")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)  # a checkpoint is whole or absent
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in sorted(folder.glob("checkpoint-*"))[:-2]:
        shutil.rmtree(old, ignore_errors=True)


def _resume(folder: Path | None, model, optimizer, ema, keep: Mapping[str, Kept]) -> int:
    """Load the newest checkpoint that can be read; 0 if there is none."""
    import torch

    if folder is None:
        return 0
    for left_over in Path(folder).glob(".partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    for path in sorted(Path(folder).glob("checkpoint-*"), reverse=True):
        try:
            hashed = path / HASH  # those of earlier versions have none
            if hashed.is_file() and hashed.read_text().strip() != sha256_of(path / "state.pt"):
                continue
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if ema is not None:
                ema.load_state_dict(state["ema"])
            for name, part in keep.items():
                part.load_state_dict(state["keep"][name])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError):
            continue  # a truncated file: the one before it is whole
        return int(state["step"])
    return 0
