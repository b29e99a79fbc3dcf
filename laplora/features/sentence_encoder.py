"""Sentence encoders: a text in, a vector out, as sentence-transformers runs them, without that library.

A folder of sentence-transformers lists in ``modules.json`` what a text goes through: a model of transformers, a pooling
over its tokens (Reimers and Gurevych, arXiv 1908.10084), often a division by the vector's length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from laplora.errors import ModelError, first_line
from laplora.features.layers import feature_layers, noted_layers
from laplora.models.classifier_head import longest_input
from laplora.models.offline import OFFLINE_ENCODERS, ensure_encoder
from laplora.models.quiet import only_errors_logged, quiet_loading
from laplora.models.wheels import Progress
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.rows import EncodedRow, collate
from laplora.prompts.templates import Cut, PromptTemplate
from laplora.prompts.token_bounds import TokenBounds, token_bounds

#: By an ending of their names in a pooling's settings, those that are covered.
_POOLINGS: dict[str, Literal["cls", "mean"]] = {"cls_token": "cls", "mean_tokens": "mean"}


@dataclass(frozen=True, eq=False)
class TextEncoding:
    """The tokenizer of a sentence encoder: it needs no weights.

    Attributes:
        name: as it was asked for.
        location: folder of the encoder's model and tokenizer, whose hashes an artifact records.
        tokenizer: a fast one; bounds: what is certain of its tokens.
        max_tokens: longest text, in tokens, special ones included.
    """

    name: str
    location: str
    tokenizer: Any
    bounds: TokenBounds
    max_tokens: int

    def encode(self, template: PromptTemplate, labels: Sequence[str], inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the tokens of an input's text: its fields, a line each, without the template's words.

        An input that is a whole prompt is its own text. One that is too long is cut as in a prompt, at the right.

        Raises:
            InvalidInputError: fields that the template does not take, or text that cannot be used.
        """
        shown, most = _fields_alone(template), self.max_tokens
        row = encode_inputs(
            self.tokenizer, shown, inputs, labels, max_tokens=most, truncate=True, bounds=self.bounds, side="right"
        )
        return row.token_ids


@lru_cache
def _fields_alone(template: PromptTemplate) -> PromptTemplate:
    text = "\n".join(f"{{{name}}}" for name in template.fields)
    cut, answered = template.cut or Cut(), template.answered
    return PromptTemplate(template.name, template.version, text, choice="{text}", cut=cut, answered=answered)


@dataclass(frozen=True, eq=False)
class SentenceEncoder(TextEncoding):
    """A sentence encoder as loaded: frozen, in float32, in evaluation mode.

    Attributes:
        model: of ``transformers.AutoModel``.
        pooling: the first token's state, or the mean over all tokens, special ones too.
        normalised: whether an embedding is divided by its length.
    """

    model: Any
    pooling: Literal["cls", "mean"]
    normalised: bool

    @torch.no_grad()
    def blocks(self, texts: Sequence[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Return the blocks of one batch of tokenised texts, by name (texts, width) float32 on the CPU.

        They are ``embedding``, and at each layer L of ``feature_layers`` but the last ``mean.L``, over all tokens.

        Raises:
            ModelError: an encoder whose layers are in no list.
        """
        rows, pad = [EncodedRow(ids, 1) for ids in texts], self.tokenizer.pad_token_id
        batch = collate(rows, class_count=1, pad_token_id=pad, side="right").to(self.model.device)
        last, blocks = feature_layers(self.model)[-1], dict[str, torch.Tensor]()

        def mean_over_tokens(states: torch.Tensor) -> torch.Tensor:
            weights = batch.attention_mask[:, :, None].to(states)
            return (states * weights).sum(1) / weights.sum(1)

        def note(number: int, hidden: torch.Tensor) -> None:
            if number < last:
                blocks[f"mean.{number}"] = mean_over_tokens(hidden).cpu()

        with noted_layers(self.model, note):
            states = self.model(**batch.inputs).last_hidden_state.float()
        pooled = states[:, 0] if self.pooling == "cls" else mean_over_tokens(states)
        blocks["embedding"] = (torch.nn.functional.normalize(pooled) if self.normalised else pooled).cpu()
        return blocks


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
    from transformers import AutoModel

    text = load_text_encoding(name, cache=cache, progress=progress)
    top, folder, pooled_in, normalised = _modules(name, cache, progress)
    pooling = _pooling(name, _settings(name, top, f"{pooled_in}/config.json"))
    options: dict[str, Any] = {"subfolder": folder, "use_safetensors": True, "output_loading_info": True}
    with _loading(name):
        model, loaded = AutoModel.from_pretrained(top, dtype=torch.float32, trust_remote_code=False, **options)
    if absent := sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler.")):
        raise _unusable(name, f"its weights are without {absent[0]!r}, which would be random")
    model = model.requires_grad_(False).eval().to(device)
    return SentenceEncoder(**vars(text), model=model, pooling=pooling, normalised=normalised)


def load_text_encoding(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> TextEncoding:
    """Return what a sentence encoder's texts are tokenised by; arguments and errors of ``load_sentence_encoder``."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils.hub import cached_file

    auto_model: Any = AutoModel  # typed in part only
    top, folder, _, _ = _modules(name, cache, progress)
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(top, subfolder=folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(top, subfolder=folder, trust_remote_code=False)
        with torch.device("meta"):  # to see how many positions it has
            model = auto_model.from_config(config, trust_remote_code=False)
        location = str(Path(str(cached_file(top, f"{folder}/config.json".lstrip("/")))).parent)
    if config.is_encoder_decoder or not hasattr(tokenizer, "backend_tokenizer") or tokenizer.pad_token_id is None:
        raise _unusable(name, f"it is a {type(model).__name__} with a {type(tokenizer).__name__}")
    settings = _settings(name, top, f"{folder}/sentence_bert_config.json".lstrip("/"), required=False)
    if settings.get("do_lower_case") and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise _unusable(name, "its texts are lowered before its tokenizer sees them")
    longest = settings.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 3):  # a token between special ones
        raise _unusable(name, f"its max_seq_length is {str(longest)[:32]}")
    most = min(int(limit) for limit in (longest, longest_input(model), tokenizer.model_max_length) if limit)
    return TextEncoding(name, location, tokenizer, token_bounds(tokenizer), most)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Refuse by the encoder's name what cannot be loaded inside the block."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        with quiet_loading(), only_errors_logged():
            yield
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise _unusable(name, f"no model or tokenizer can be loaded ({first_line(error)})") from None


def _modules(name: str, cache: Path | None, progress: Progress | None) -> tuple[str, str, str, bool]:
    """Return an encoder's folder or hub id, its folders of model and pooling, and whether embeddings are normalised."""
    location = str(ensure_encoder(name, cache=cache, progress=progress)) if name in OFFLINE_ENCODERS else name
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
    return location, folders[0], folders[1], len(kinds) == 3


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
        cached = cached_file(location, path, _raise_exceptions_for_missing_entries=required)
        read = json.loads(Path(cached).read_text(encoding="utf-8")) if cached else {}
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
