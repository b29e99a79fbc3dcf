"""Artifacts of tiny classifiers, packed by hand: every file but the answers is the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import adapted_classifier, batch_of, classifier_base, random_rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from laplora.answers.golden import golden_entry
from laplora.artifact.folder import file_records, write_manifest
from laplora.artifact.manifest import GOLDEN, HEAD, POSTERIOR, SCORES, Manifest
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.models.base import load_tokenizer
from laplora.models.classifier_head import output_layer
from laplora.models.hashes import tokenizer_hash, weights_hash
from laplora.models.head_file import save_head
from laplora.posterior.file import posterior_tensors
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior
from laplora.predictor import Predictor
from laplora.readouts.classification_head import ClassificationHead, classification_head

#: An artifact of the repository, from which the manifest's calibrated fields are.
_PATTERN = Path(__file__).parents[1] / "artifacts" / "sst2-smollm2"
_KEPT = ("map", "laplace")
TEXTS = [{"text": "a b c d"}, {"text": "e"}, {"text": "f g h i j k l m n o p q"}]


def letters(around: str) -> Any:
    """Return a tokenizer of letters with [CLS] before a text and [SEP] behind it where ``around`` has them."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz", *(f"w{i}" for i in range(34))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def save_tokenizer(folder: Path) -> Any:
    """Save a tokenizer of letters that puts [CLS] before a text and [SEP] behind it, 64 tokens in all."""
    tokenizer = letters("[CLS] $A [SEP]")
    tokenizer.save_pretrained(folder)
    return tokenizer


def pack(target: Path, base: Path, model: Any, readout: ClassificationHead, **changes: Any) -> Path:
    """Write the artifact of a classifier of two classes, and return its folder.

    Args:
        base: folder of the base model and its tokenizer; changes: of the manifest.
    """
    target.mkdir()
    alone = not hasattr(model, "peft_config")
    if alone:
        save_head(model, readout.trained, target / HEAD)
    else:
        model.save_pretrained(target / "adapter")
        (target / "adapter" / "README.md").unlink()
    blocks = covered_blocks(model, readout)

    def one_pass(_title: str, state: Any, add: Any) -> Any:
        batch = batch_of(random_rows(20, classes=2), readout.side, 2)
        return add(state, contrast_jacobians(model, batch, readout, blocks), batch.class_mask)

    posterior = fit_posterior(StructureSettings(joint_rank=8), blocks, one_pass)
    tensors, metadata = posterior_tensors(posterior, "float32")
    save_file(tensors, target / POSTERIOR, metadata)
    scores = load_file(_PATTERN / SCORES)
    save_file({name: t for name, t in scores.items() if name.rpartition(".")[0] in _KEPT}, target / SCORES)
    fields = json.loads((_PATTERN / "manifest.json").read_text(encoding="utf-8"))
    fields |= {
        "name": target.name,
        "base_model": str(base),
        "base_weights_hash": weights_hash(str(base), cache=base.parent),
        "quantization": "none",
        "dtype": "float32",
        "tokenizer_hash": tokenizer_hash(load_tokenizer(str(base))),
        "template": fields["template"] | {"text": "{text}"},
        "readout": {
            "kind": "classification_head",
            "class_count": readout.class_count,
            "likelihood": readout.likelihood,
            "side": readout.side,
            "trained": list(readout.trained),
            "alone": alone,
        },
        "max_tokens": 12,
        "prior": fields["prior"] | {"granularity": "scalar", "precision": {"all": 0.5}},
        "predictives": {name: fields["predictives"][name] for name in _KEPT},
        "familiarity": None,
        "conditioned": {},
        "files": {},
    }
    manifest = Manifest.model_validate(fields | changes)
    golden = {"tolerance": 1e-3, "variance_tolerance": 0.05, "answers": []}
    (target / GOLDEN).write_text(json.dumps(golden), encoding="utf-8")
    seal(target, manifest)
    predictor = load(target, verify_golden=False)
    rows = [predictor.encode(inputs, truncate=True) for inputs in TEXTS]
    answers = predictor.predict(rows, also=predictor.predictives)
    golden["answers"] = [golden_entry(inputs, answer) for inputs, answer in zip(TEXTS, answers, strict=True)]
    (target / GOLDEN).write_text(json.dumps(golden), encoding="utf-8")
    seal(target, manifest)
    return target


def pack_several(folder: Path) -> Path:
    """Write the artifact of a tiny decoder of which each of two labels may be right, and return its folder."""
    base = save_base(folder / "base", classifier_base("llama", classes=2), head=False)
    model = adapted_classifier("llama", dtype=torch.float32, classes=2, problem_type="multi_label_classification")
    output_layer(model)[1].weight.data *= 2  # labels from absent to present
    fields = json.loads((_PATTERN / "manifest.json").read_text(encoding="utf-8"))
    prior = fields["prior"] | {"granularity": "scalar", "precision": {"all": 50.0}}
    return pack(folder / "several", base, model, classification_head(model), prior=prior)


def load(artifact: Path, **options: Any) -> Predictor:
    """Return the predictor of an artifact, hashes remembered beside it."""
    return Predictor.load(artifact, device="cpu", cache_dir=artifact.parent, **options)


def seal(target: Path, manifest: Manifest) -> None:
    """Write the manifest over the files as they are."""
    write_manifest(target, manifest.model_copy(update={"files": file_records(target)}))


def save_base(folder: Path, model: Any, *, head: bool) -> Path:
    """Save a classifier's base, without its head unless ``head``, and the tokenizer; return the folder."""
    (model if head else getattr(model, model.base_model_prefix)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
