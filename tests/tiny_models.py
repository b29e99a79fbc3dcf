"""Random tiny causal LMs with LoRA, and random left-padded batches; every number is drawn from a seed of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F

from laplora.prompts.rows import Batch, EncodedRow, collate

#: A name of ``_CONFIGS``.
Architecture = str
#: The three kinds under test everywhere. Phi-3 has one fused projection, so other targets.
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "phi", "phi3")
TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "v_proj", "lm_head"],
    "phi": ["q_proj", "v_proj", "lm_head"],
    "phi3": ["qkv_proj", "lm_head"],
}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 28, "patch_size": 14}
_CONFIGS: dict[str, Callable[..., hf.PretrainedConfig]] = {
    "llama": hf.LlamaConfig,
    "phi": hf.PhiConfig,
    "phi3": hf.Phi3Config,
    "mistral": hf.MistralConfig,
    "ministral": hf.MinistralConfig,
    "qwen2": hf.Qwen2Config,
    "qwen3": hf.Qwen3Config,
    "granite": hf.GraniteConfig,
    "smollm3": hf.SmolLM3Config,
    "olmo2": hf.Olmo2Config,
    "olmo3": hf.Olmo3Config,
    "gemma": hf.GemmaConfig,
    "gemma3": hf.Gemma3TextConfig,
    "gemma3_sees": lambda **text: gemma3_that_sees(text),
}

VOCABULARY = 64
PAD = 0
#: Of a model's configuration, by the names that most kinds have for them.
SETTINGS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def gemma3_that_sees(text: dict[str, Any]) -> hf.Gemma3Config:
    """Return the configuration of a Gemma 3 with a vision tower, by that of its text part."""
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    return hf.Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4, **tokens)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_base(
    architecture: Architecture, *, tied: bool = False, hidden: int = 16, layers: int = 2, seed: int = 0, **options: Any
) -> Any:
    """Return a random causal LM in float32, evaluation mode; ``options`` are of the model's configuration."""
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    config = _CONFIGS[architecture](**SETTINGS | sizes | {"tie_word_embeddings": tied} | options)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # transformers deprecates an attribute of its own that it reads itself while it builds a model.
        warnings.simplefilter("ignore", FutureWarning)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, generator(seed))
    return model.eval()


def tiny_model(
    architecture: Architecture,
    *,
    tied: bool = False,
    hidden: int = 16,
    rank: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    targets: Sequence[str] | str | None = None,
    dropout: float = 0.1,
    **options: Any,
) -> PeftModel:
    """Return a tiny LM with LoRA on targets (names, or a pattern), in evaluation mode, every ``lora_B`` non-zero.

    In float64 the RMS norms are float64 too: transformers computes them in float32 whatever the model's type
    is, and their rounding (1e-7) would hide every disagreement smaller than itself.
    """
    base = tiny_base(architecture, tied=tied, hidden=hidden, seed=seed, **options)
    if dtype == torch.float64:
        _exact_norms(base)
    chosen = targets if isinstance(targets, str) else list(targets or TARGETS[architecture])
    return add_lora(base, chosen, rank=rank, seed=seed + 1, dropout=dropout, dtype=dtype)


def add_lora(
    base: Any,
    targets: list[str] | str,
    *,
    rank: int = 3,
    seed: int = 1,
    dropout: float = 0.1,
    dtype: torch.dtype | None = torch.float64,
    name: str = "default",
    **options: Any,
) -> PeftModel:
    """Return the base wrapped by peft, its LoRA weights random; cast to ``dtype`` unless that is none.

    ``name`` is the adapter's, ``options`` are of its configuration.
    """
    options = {"task_type": "CAUSAL_LM"} | options
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=targets, **options)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # peft warns that adapters on a tied lm_head cannot be merged. No test here merges one.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        model = get_peft_model(base, config, adapter_name=name, autocast_adapter_dtype=False)
    if dtype is not None:
        model = model.to(dtype)
    randomise_trained(model, seed, 0.3, "lora_")
    return model.eval()


def randomise_trained(model: Any, seed: int, scale: float, *parts: str) -> None:
    """Overwrite the weights whose names have one of these parts, in name order."""
    draw = generator(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if any(part in name for part in parts):
                noise = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
                weight.copy_(scale / math.sqrt(weight.shape[-1]) * noise)


@dataclass(frozen=True)
class Task:
    """A random classification set.

    Attributes:
        rows: one encoded prompt per example, of different lengths, the third of one token only.
        labels: (n,) int64, always a possible class.
        label_ids: the token id of each class.
    """

    rows: list[EncodedRow]
    labels: torch.Tensor
    label_ids: list[int]

    @property
    def classes(self) -> int:
        """Number of classes of the task."""
        return len(self.label_ids)

    def batch(self, indices: Sequence[int] | None = None) -> Batch:
        """Return the rows at ``indices`` (all, by default) as one left-padded batch."""
        picked = self.rows if indices is None else [self.rows[i] for i in indices]
        return collate(picked, class_count=self.classes, pad_token_id=PAD)

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
        """Yield all rows in batches of ``size``, the last one partial, in the given order."""
        order = range(len(self.rows)) if order is None else order
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])


def tiny_task(*, examples: int = 24, classes: int = 3, seed: int = 3) -> Task:
    """Return random rows of 1 to 7 tokens; of three or more classes, every fifth row lacks the last."""
    draw = generator(seed)
    label_ids = (torch.randperm(VOCABULARY - 8, generator=draw)[:classes] + 8).tolist()
    rows, labels = [], []
    for i in range(examples):
        length = 1 if i == 2 else int(torch.randint(1, 8, (), generator=draw))
        tokens = torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()
        possible = classes - 1 if classes > 2 and i % 5 == 4 else classes
        rows.append(EncodedRow(tuple(tokens), possible))
        labels.append(int(torch.randint(0, possible, (), generator=draw)))
    return Task(rows, torch.tensor(labels), label_ids)


def _randomise(model: Any, draw: torch.Generator) -> None:
    """Overwrite every weight in name order: matrices N(0, 1/fan_in), embeddings N(0, 1), norms near 1, biases small."""
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=draw)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.1 * noise)
            else:
                weight.copy_(noise if "embed" in name else 1.5 * noise / math.sqrt(weight.shape[1]))


class _OffsetNorm(torch.nn.Module):
    """Gemma's norm in the type of its input."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, 1 + self.weight, self.eps)


def _exact_norms(model: Any) -> None:
    """Replace transformers' float32 RMS norms by those that follow the type of their input."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind.startswith("Gemma") and kind.endswith("RMSNorm"):
                setattr(parent, name, _OffsetNorm(child))
            elif kind.endswith("RMSNorm") and not isinstance(child, torch.nn.RMSNorm):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight, norm.variance_epsilon = child.weight, child.variance_epsilon
                setattr(parent, name, norm)
