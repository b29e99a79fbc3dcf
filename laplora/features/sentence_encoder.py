"""Sentence encoders: a text in, a vector out, as sentence-transformers runs them, without that library.

A folder of sentence-transformers lists in ``modules.json`` what a text goes through: a model of transformers, a pooling
over its tokens (Reimers and Gurevych, arXiv 1908.10084), often a division by the vector's length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from laplora.errors import ModelError, first_line
from laplora.models.classifier_head import longest_input
from laplora.models.offline import OFFLINE_ENCODERS, ensure_encoder
from laplora.models.quiet import only_errors_logged, quiet_loading
from laplora.models.wheels import Progress
from laplora.prompts.rows import Batch, EncodedRow, collate

#: By an ending of their names in a pooling's settings, those that are covered.
_POOLINGS: dict[str, Literal["cls", "mean"]] = {"cls_token": "cls", "mean_tokens": "mean"}


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A sentence encoder as loaded: frozen, in float32, in evaluation mode.

    Attributes:
        name: as it was asked for.
        model: of ``transformers.AutoModel``; tokenizer: a fast one.
        pooling: the first token's state, or the mean over all tokens, special ones too.
        normalised: whether an embedding is divided by its length.
        max_tokens: longest text, in tokens, special ones included.
    """

    name: str
    model: Any
    tokenizer: Any
    pooling: Literal["cls", "mean"]
    normalised: bool
    max_tokens: int

    def collate(self, rows: Sequence[EncodedRow]) -> Batch:
        """Return tokenised texts as one batch on the model's device."""
        batch = collate(rows, class_count=1, pad_token_id=self.tokenizer.pad_token_id, side="right")
        return batch.to(self.model.device)

    @torch.no_grad()
    def embed(self, batch: Batch) -> torch.Tensor:
        """Return the embeddings of a batch, (rows, width) float32, on the model's device."""
        states = self.model(**batch.inputs).last_hidden_state.float()
        pooled = states[:, 0] if self.pooling == "cls" else mean_over_tokens(states, batch.attention_mask)
        return torch.nn.functional.normalize(pooled) if self.normalised else pooled


def mean_over_tokens(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over each row's real tokens, (rows, width), of states (rows, tokens, width)."""
    weights = attention_mask[:, :, None].to(states)
    return (states * weights).sum(1) / weights.sum(1)


def load_sentence_encoder(
    name: str,
    *,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SentenceEncoder:
    """Return a sentence encoder by its name.

    Args:
        name: one of ``OFFLINE_ENCODERS``, a folder of sentence-transformers, or a hub id.
        cache, progress: as of ``ensure_encoder``.

    Raises:
        DownloadError: as ``ensure_encoder``.
        ModelError: nothing to load there, pickled weights, an architecture that is Python code of the model, or modules
            that are not a plain encoder with a mean or first-token pooling.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    location = str(ensure_encoder(name, cache=cache, progress=progress)) if name in OFFLINE_ENCODERS else name
    places, normalised = _modules(name, location)
    pooling = _pooling(name, _settings(name, location, f"{places[1]}/config.json"))
    options: dict[str, Any] = {"subfolder": places[0]}
    try:
        with quiet_loading(), only_errors_logged():
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False, **options)
            options |= {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
            model, loaded = AutoModel.from_pretrained(location, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise _unusable(name, f"no model or tokenizer can be loaded ({first_line(error)})") from None
    if absent := sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler.")):
        raise _unusable(name, f"its weights are without {absent[0]!r}, which would be random")
    if model.config.is_encoder_decoder or not hasattr(tokenizer, "backend_tokenizer") or tokenizer.pad_token_id is None:
        raise _unusable(name, f"it is a {type(model).__name__} with a {type(tokenizer).__name__}")
    of_transformer = f"{places[0]}/sentence_bert_config.json".lstrip("/")
    settings = _settings(name, location, of_transformer, required=False)
    if settings.get("do_lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise _unusable(name, "its texts are lowered before its tokenizer sees them")
    longest = settings.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 3):  # a token between special ones
        raise _unusable(name, f"its max_seq_length is {str(longest)[:32]}")
    limits = (longest, longest_input(model), tokenizer.model_max_length)
    return SentenceEncoder(
        name,
        model.requires_grad_(False).eval().to(device),
        tokenizer,
        pooling,
        normalised,
        min(int(limit) for limit in limits if limit),
    )


def _modules(name: str, location: str) -> tuple[tuple[str, str], bool]:
    """Return the folders of the model and of its pooling, and whether embeddings are normalised."""
    listed = _settings(name, location, "modules.json")
    try:
        kinds = [str(one["type"]).rpartition(".")[2] for one in listed]
        folders = [str(one["path"]) for one in listed]
    except (KeyError, TypeError):
        raise _unusable(name, "modules.json is no list of modules with a type and a path") from None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _unusable(name, f"its modules are {kinds[:8]}")
    if odd := [folder for folder in folders if not re.fullmatch(r"[\w-]*", folder)]:
        raise _unusable(name, f"a module lies in {odd[0][:64]!r}")
    return (folders[0], folders[1]), len(kinds) == 3


def _pooling(name: str, settings: dict[str, Any]) -> Literal["cls", "mean"]:
    chosen = [key.removeprefix("pooling_mode_") for key, used in settings.items() if used is True and "mode" in key]
    mode = settings.get("pooling_mode")  # of later releases, one name
    chosen = chosen or [f"{mode}_tokens" if mode == "mean" else f"{mode}_token"]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise _unusable(name, f"its pooling is {chosen[:8]}")
    return _POOLINGS[chosen[0]]


def _settings(name: str, location: str, path: str, *, required: bool = True) -> Any:
    """Return a JSON file of a folder or hub id; an empty object where it is missing and not required."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(location, path, _raise_exceptions_for_missing_entries=required)
        read = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        if not isinstance(read, dict) and path != "modules.json":
            raise ValueError("it is no JSON object")
        return read
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(name, f"there is no {path} of sentence-transformers ({first_line(error)})") from None


def _unusable(name: str, why: str) -> ModelError:
    return ModelError(
        f"sentence encoder {name!r} cannot be used, {why}: give {sorted(OFFLINE_ENCODERS)[0]}, or a folder or a hub id "
        "of sentence-transformers with safetensors, pooled by mean or first token, that this machine can reach"
    )
