"""A run: its configuration with the data, tokenizer and device that every job of it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from laplora.classifier import Classifier
from laplora.errors import ConfigError, NonFiniteError
from laplora.execution.workers import ALONE, Workers
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.classifier_head import is_adapted
from laplora.models.held_weights import non_finite
from laplora.models.spread import Spread, input_device
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch, EncodedRow, collate
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens
from laplora.settings import ExpertSettings, FitSettings
from training.config import RunConfig
from training.data.examples import Splits


class HeldBase:
    """A base model that one step after another puts an adapter on."""

    def __init__(self) -> None:
        self._held: Any = None

    def adapted(self, load: Callable[[], Any], put: Callable[[Any], Any]) -> Any:
        """Return the base with an adapter; the one that was on it before is gone.

        Args:
            load: gives the base where it is not held yet; put: returns a PEFT model of the base that it is given.
        """
        base = load() if self._held is None else self._held.unload() if is_adapted(self._held) else self._held
        self._held = None  # where the adapter cannot be put on, the base is loaded anew
        base.requires_grad_(False)
        base.eval()
        self._held = put(base)
        return self._held

    def release(self) -> None:
        """Forget the base, whose memory something else is to have."""
        self._held = None


@dataclass(frozen=True)
class Run:
    """A configuration with its data and tokenizer loaded.

    Attributes:
        location: folder or hub id of the base model.
        verbalizers: text after the prompt that stands for each label; readout: how their logits are read.
        lock: keeps other processes out of the run's folder while this lives.
        own_folder: where its results lie, if not in the configuration's ``run_dir``: a fold's
            (``training.workspace.folds``).
        base: the base model, which the run's steps and folds have one after another.
        workers: the processes that share its rows; the first of them writes.
        spread: how the base is spread over several devices; ``device`` is then that of its inputs. None: it is there.
        experts: the heads that its labels train, by name.
    """

    config: RunConfig
    splits: Splits
    location: str
    tokenizer: Any
    verbalizers: tuple[str, ...]
    readout: LabelTokens | LabelSequences
    device: torch.device
    lock: FileLock | None = None
    own_folder: Path | None = None
    base: HeldBase = field(default_factory=HeldBase)
    workers: Workers = ALONE
    spread: Spread | None = None
    experts: ExpertSettings = field(default_factory=ExpertSettings)

    @property
    def settings(self) -> FitSettings:
        """The settings of the library's fit beside the adapter."""
        experts = self.experts if self.config.experts.beside else self.experts.model_copy(update={"names": ()})
        return self.config.fit.model_copy(update={"experts": experts})

    @property
    def labelled(self) -> tuple[Example, ...]:
        """Every labelled row that is no test row."""
        return (*self.splits.train, *self.splits.calibration, *self.splits.selection)

    @property
    def place(self) -> str | Spread:
        """The device or spread of a model, as ``Predictor.load`` takes it."""
        return self.spread or str(self.device)

    @property
    def folder(self) -> Path:
        """Folder of its intermediate results."""
        return self.own_folder or self.config.run_dir

    @property
    def class_count(self) -> int:
        return self.readout.class_count

    def classifier(self, model: Any) -> Classifier:
        """Return a model with this run's prompt, labels and read-out."""
        task = self.splits.task
        labels = dict(zip(task.labels, self.verbalizers, strict=True))
        classifier = Classifier(
            model, self.tokenizer, task.template, labels, max_tokens=self.config.max_tokens, readout=self.readout
        )
        classifier.workers = self.workers
        return classifier

    def encode(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Return examples as token rows, cut at the run's limit."""
        task, limit = self.splits.task, self.config.max_tokens
        return [
            encode_inputs(self.tokenizer, task.template, example.fields, task.labels, max_tokens=limit, truncate=True)
            for example in examples
        ]

    def collate(self, rows: Sequence[EncodedRow]) -> Batch:
        batch = collate(rows, class_count=self.class_count, pad_token_id=self.tokenizer.pad_token_id)
        return batch.to(self.device)

    def adapted(self, put: Callable[[Any], Any]) -> Any:
        """Return the run's base with the adapter that ``put`` puts on it, and no other; errors as of ``load_base``.

        The base is the same at every call: a model of an earlier one loses its adapter.
        """
        return self.base.adapted(self.load_base, put)

    def load_base(self) -> Any:
        """Return the base model as this run uses it.

        Raises:
            ConfigError: a device map whose first module is not where the inputs are.
            ModelError: a base that cannot be loaded or is not covered.
            NonFiniteError: a base whose weights hold NaN or infinity, the scales of packed 4-bit ones included.
        """
        spec = base_spec(self.config)
        model = load_base_model(
            self.location,
            spec,
            device=self.spread or self.device,
            dequantize=self.config.base.dequantize,
        ).model
        if self.spread and input_device(model) != self.device:
            raise ConfigError(
                f"base.device_map puts the input embedding on {input_device(model)}, and its first module on "
                f"{self.device}: name the module of the input embedding first"
            )
        if (name := non_finite(model)) is not None:
            raise NonFiniteError(
                f"the base model {spec.model!r} holds NaN or infinity in {name}: nothing trained on it would be a "
                "number; fetch or convert it again"
            )
        return model


def base_spec(config: RunConfig) -> BaseSpec:
    base = config.base
    return BaseSpec(base.model, base.revision, base.quantization, base.dtype)
