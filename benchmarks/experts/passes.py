"""The outputs of the passes over a cell's rows, kept on the disk: a stopped run continues."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.evidence.adapters import load_classifier, put, train
from benchmarks.evidence.gather import forward_outputs
from benchmarks.experts.cells import Cell, Rows
from laplora.classifier import Classifier
from laplora.execution.progress import Silent
from laplora.experts.base import Expert, Outputs
from laplora.features.expert_passes import ExpertPasses
from laplora.features.sentence_encoder import load_sentence_encoder
from laplora.files.atomic import write_tensors
from laplora.linearised import class_log_probs
from laplora.prompts.examples import Example

#: The adapter's logits and last states; the base's states, and its answer by label tokens; a sentence encoder's
#: embeddings; the features of each option.
Source = Literal["adapter", "frozen", "encoder", "options"]
#: The sentence encoder.
ENCODER = "all-minilm-l6-v2"
_BATCH = 16


@dataclass(frozen=True)
class Passes:
    """The passes of a cell; each is made when it is first asked for.

    Attributes:
        trains: whether a missing adapter is trained; kept: experts that a method has fitted, with their seconds.
    """

    cell: Cell
    rows: Rows
    say: Callable[[str], None]
    trains: bool = True
    kept: dict[str, tuple[Expert, float]] = field(default_factory=dict)

    @cached_property
    def classifier(self) -> Classifier:
        """The small base with an adapter, which is trained only while a pass of it runs."""
        return load_classifier(self.cell.task)

    @property
    def adapters(self) -> Path:
        return self.cell.folder / "adapters"

    def has(self, source: Source) -> bool:
        """Return whether a source can be had: only questions have options, and an adapter may have to be trained."""
        if source == "options":
            return self.cell.task.template.takes_choices
        return source != "adapter" or self.trains or (self.adapters / "training.json").is_file()

    def labelled(self, source: Source) -> tuple[Outputs, float]:
        """Return what a source gives for the labelled rows, and the processor seconds of it, training included."""
        outputs, seconds = self._kept(self.cell.folder / f"{source}.safetensors", source, self.rows.labelled)
        if source == "adapter":
            training = json.loads((self.adapters / "training.json").read_text(encoding="utf-8"))
            seconds += training["processor_seconds"]
        return outputs, seconds

    def test(self, source: Source) -> Outputs:
        """Return what a source gives for the test rows: the same for every seed, but of an adapter."""
        folder = self.cell.folder if source == "adapter" else self.cell.runs / self.cell.name / "test"
        return self._kept(folder / f"{source}.test.safetensors", source, self.rows.test)[0]

    def _kept(self, path: Path, source: Source, rows: tuple[Example, ...]) -> tuple[Outputs, float]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                if source == "adapter":
                    self._train()
                started = time.process_time()
                tensors = self._tensors(source, rows)
                seconds = time.process_time() - started
                write_tensors(path, tensors, {"seconds": f"{seconds:.2f}"})
                self.say(f"{source}: {len(rows)} rows, {seconds:.0f} s")
        with safe_open(path, framework="pt") as handle:
            seconds = float((handle.metadata() or {})["seconds"])
        return _outputs(source, load_file(path)), seconds

    def _train(self) -> None:
        if not (self.adapters / "training.json").is_file():
            self.adapters.mkdir(parents=True, exist_ok=True)
            used = [row for row, honest in zip(self.rows.labelled, self.rows.honest, strict=True) if not honest]
            train(self.cell.task, used, self.cell.seed, self.adapters, self.say)

    def _tensors(self, source: Source, rows: tuple[Example, ...]) -> dict[str, torch.Tensor]:
        if source == "adapter":
            put(self.classifier, load_file(self.adapters / "early.safetensors"))
            forwards = forward_outputs(self.classifier, rows)
            return {name: forwards[name] for name in ("logits", "class_mask", "states")}
        encoder = load_sentence_encoder(ENCODER, progress=self.say) if source == "encoder" else None
        passes = ExpertPasses.of(self.classifier, (source,), encoder, answers=source == "frozen")
        outputs = passes.outputs(rows, Silent(), "", _BATCH)
        answer = {"logits": outputs.log_probs["zero_shot"]} if source == "frozen" else {}
        return {**outputs.features[source], **answer, "class_mask": outputs.class_mask}


def _outputs(source: Source, tensors: dict[str, torch.Tensor]) -> Outputs:
    """Return a source's arrays as experts read them."""
    mask, logits = tensors.pop("class_mask"), tensors.pop("logits", None)
    answer = None if logits is None else class_log_probs(logits, mask)
    if source == "adapter":
        assert answer is not None
        return Outputs(mask, {"adapter": answer}, {"last_state": tensors})
    return Outputs(mask, {} if answer is None else {"zero_shot": answer}, {source: tensors})
