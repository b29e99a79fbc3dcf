"""Random tiny sequence classification models, decoders and encoders, with LoRA and a trained head or a head alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from tiny_models import PAD, SETTINGS, VOCABULARY, _exact_norms, _randomise, generator, randomise_trained

import laplora
from laplora.execution.progress import Silent
from laplora.features.expert_passes import ExpertPasses
from laplora.features.outputs import HeadSource, Outputs
from laplora.features.sentence_encoder import SentenceEncoder
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch, EncodedRow, Side, collate

_BERT: dict[str, Any] = {name: SETTINGS[name] for name in SETTINGS if name != "num_key_value_heads"}
#: DeBERTa-v3's own settings.
_DISENTANGLED: dict[str, Any] = {"relative_attention": True, "share_att_key": True, "position_biased_input": False}
_DISENTANGLED |= {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p", "type_vocab_size": 0}
_CONFIGS: dict[str, Any] = {
    "llama": lambda **o: hf.LlamaConfig(**SETTINGS | o),
    "qwen2": lambda **o: hf.Qwen2Config(**SETTINGS | o),
    "bert": lambda **o: hf.BertConfig(**_BERT | o),
    "roberta": lambda **o: hf.RobertaConfig(**_BERT | o),
    "modernbert": lambda **o: hf.ModernBertConfig(cls_token_id=1, sep_token_id=2, **_BERT | o),
    "modernbert_mean": lambda **o: hf.ModernBertConfig(
        cls_token_id=1, sep_token_id=2, classifier_pooling="mean", **_BERT | o
    ),
    "deberta": lambda **o: hf.DebertaV2Config(**_BERT | _DISENTANGLED | o),
}
DECODERS = ("llama", "qwen2")
CLASSIFIERS = tuple(_CONFIGS)
#: DeBERTa-v3's queries and keys run on relative positions too, so that they cannot be adapted.
TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "down_proj"],
    "bert": ["query", "value", "dense"],
    "roberta": ["query", "value"],
    "modernbert": ["Wqkv", "Wo"],
    "modernbert_mean": ["Wqkv", "Wi"],
    "deberta": ["value_proj"],
}


def classifier_base(kind: str, *, classes: int = 3, seed: int = 0, **options: Any) -> Any:
    """Return a random sequence classification model in float32, evaluation mode."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own, as it builds a model
        config = _CONFIGS[kind](num_labels=classes, **options)
        model = hf.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    _randomise(model, generator(seed))
    return model.eval()


def adapted_classifier(
    kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, lora: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Return a random classifier with LoRA and a trained copy of its head, as PEFT makes them, evaluation mode."""
    base = classifier_base(kind, seed=seed, **options)
    if dtype == torch.float64:
        _exact_norms(base)
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": TARGETS[kind], "task_type": "SEQ_CLS"}
    settings |= lora or {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers deprecates
        model = get_peft_model(base, LoraConfig(**settings), autocast_adapter_dtype=False)
    model = model.to(dtype)
    randomise_trained(model, seed + 1, 0.5, "lora_", "modules_to_save")
    return model.eval()


def head_alone(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return a random classifier without an adapter, its base frozen."""
    model = classifier_base(kind, seed=seed, **options)
    if dtype == torch.float64:
        _exact_norms(model)
    getattr(model, model.base_model_prefix).requires_grad_(False)
    return model.to(dtype)


def random_rows(count: int = 8, *, classes: int = 3, seed: int = 3) -> list[EncodedRow]:
    """Return random rows of 1 to 7 tokens."""
    draw = generator(seed)
    lengths = [1, 7, *torch.randint(1, 8, (count - 2,), generator=draw).tolist()]
    return [
        EncodedRow(tuple(torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()), classes)
        for length in lengths
    ]


def batch_of(rows: Sequence[EncodedRow], side: Side, classes: int = 3) -> Batch:
    return collate(rows, class_count=classes, pad_token_id=PAD, side=side)


def plain_logits(model: Any, row: EncodedRow) -> torch.Tensor:
    """Return the logits (classes,) of the model's own forward on one row without padding."""
    ids = torch.tensor([row.token_ids])
    logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits


def features_of(
    classifier: laplora.Classifier,
    source: HeadSource,
    examples: Sequence[Example],
    batch_size: int,
    *,
    encoder: SentenceEncoder | None = None,
    answers: bool = False,
) -> Outputs:
    """Return what a fit's heads read of examples."""
    passes = ExpertPasses.of(classifier, (source,), encoder, answers=answers)
    return passes.outputs(examples, Silent(), "", batch_size)
