"""The outputs of the passes over a cell's rows, kept on the disk: a stopped run continues."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.evidence.adapters import load_classifier, put, train
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.splits import Dealt
from laplora.classifier import Classifier
from laplora.errors import DataError
from laplora.execution.progress import Silent
from laplora.experts.base import Outputs
from laplora.features.expert_passes import ExpertPasses
from laplora.features.sentence_encoder import load_sentence_encoder
from laplora.features.store import digest, rows_digest
from laplora.files.atomic import write_tensors
from laplora.head import fold_numbers
from laplora.linearised import class_log_probs
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.rows import Batch

#: The adapter's logits and last states; the base's states, and its answer by label tokens; a sentence encoder's
#: embeddings; the features of each option.
Source = Literal["adapter", "frozen", "encoder", "options"]
#: The sentence encoder.
ENCODER = "all-minilm-l6-v2"
#: Share of all labels that the adapter of ``whole`` trains on; the rest fits its temperature.
WHOLE = 0.9
_UNTRAINED = ("frozen", "encoder", "options")
_BATCH = 16


@dataclass(frozen=True)
class Passes:
    """The passes of a cell; each is made when it is first asked for.

    Attributes:
        trains: whether a missing adapter is trained.
        kept: by draw, what its methods share by name, with seconds.
        read: by file, what was read of it, for all methods of a cell.
        live: processor seconds of trainings and passes that were made, and not read, one after the other.
    """

    cell: Cell
    rows: Dealt
    say: Callable[[str], None]
    trains: bool = True
    kept: dict[int, dict[str, tuple[Any, float]]] = field(default_factory=dict)
    read: dict[Path, tuple[Outputs, float]] = field(default_factory=dict)
    live: list[float] = field(default_factory=list)

    @cached_property
    def classifier(self) -> Classifier:
        """The base with an adapter, which is trained only while a pass of it runs."""
        return load_classifier(self.cell.task, self.cell.training.base)

    @property
    def labelled_rows(self) -> tuple[Example, ...]:
        """All rows that some draw labels: those that train the adapter, then the pool."""
        return (*self.rows.train, *self.rows.pool)

    def labels(self) -> torch.Tensor:
        """Return the labels of ``labelled_rows``, int64."""
        return label_tensor(self.labelled_rows, len(self.cell.task.labels))

    def test_labels(self) -> torch.Tensor:
        """Return the labels of the test rows, int64."""
        return label_tensor(self.rows.test, len(self.cell.task.labels))

    def places(self, draw: int) -> torch.Tensor:
        """Return which of these rows a draw labels, (budget,) int64: the adapter's training rows first."""
        first = len(self.rows.train)
        return torch.tensor([*range(first), *(first + place for place in self.rows.draws[draw])])

    def of_draw(self, draw: int) -> dict[str, tuple[Any, float]]:
        """Return what is kept of a draw, and nothing more of other draws."""
        for other in self.kept.keys() - {draw}:
            del self.kept[other]
        return self.kept.setdefault(draw, {})

    def has(self, source: Source) -> bool:
        """Return whether a source can be had: only questions have options, and an adapter may have to be trained."""
        if source == "options":
            return self.cell.task.template.takes_choices
        return source != "adapter" or self.trains or (self.cell.adapters / "training.json").is_file()

    def labelled(self, source: Source) -> tuple[Outputs, float]:
        """Return what a source gives for ``labelled_rows``, and the processor seconds of it for those of one draw."""
        outputs, seconds = self._kept(self.cell.folder / f"{source}.safetensors", source, self.labelled_rows)
        seconds *= self.cell.training.budget / len(self.labelled_rows)
        return outputs, seconds + (self._trained("adapter")[1] if source == "adapter" else 0.0)

    def test(self, source: Source) -> Outputs:
        """Return what a source gives for the test rows: the same for every training, but of an adapter."""
        folder = self.cell.folder if source == "adapter" else self.cell.task_folder / "test"
        return self._kept(folder / f"{source}.test.safetensors", source, self.rows.test)[0]

    def of_adapter(self, name: str) -> tuple[Outputs, Outputs, float]:
        """Return what another adapter gives of the first draw's rows and of the test rows, and seconds with training.

        Args:
            name: ``whole``, of ``WHOLE`` of the first draw's rows; ``fold.K``, of those outside a fold; ``all``, of
                all; ``member.K``, of the rows of the main adapter from another start.
        """
        rows = [self.labelled_rows[place] for place in self.places(0).tolist()]
        folder = self.cell.folder / "others"
        parts = [
            self._kept(folder / f"{name}.{end}.safetensors", name, some)
            for end, some in (("labelled", tuple(rows)), ("test", self.rows.test))
        ]
        return parts[0][0], parts[1][0], parts[0][1] + self._trained(name)[1]

    def whole_rows(self) -> torch.Tensor:
        """Return (budget,) bool, which rows of the first draw train the adapter of ``whole``."""
        count = self.cell.training.budget
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.cell.training.seed))
        return torch.zeros(count, dtype=torch.bool).index_fill(0, order[: round(WHOLE * count)], True)

    def folds(self) -> torch.Tensor:
        """Return (budget,) int64, the fold of each of the first draw's rows for cross-fitted adapters."""
        return fold_numbers(self.cell.training.budget, seed=self.cell.training.seed)

    def made_from(self, rows: Sequence[Example]) -> str:
        """Return the digest of rows with the prompt and the label words that they are answered by."""
        task = self.cell.task
        return digest(rows_digest(rows), task.template.text, task.labels, task.max_tokens)

    def _kept(self, path: Path, source: str, rows: tuple[Example, ...]) -> tuple[Outputs, float]:
        if path in self.read:
            return self.read[path]
        path.parent.mkdir(parents=True, exist_ok=True)
        made_from = self.made_from(rows)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                folder = self._trained(source)[0] if source not in _UNTRAINED else None
                started = time.process_time()
                tensors = self._tensors(source, rows, folder)
                self.live.append(time.process_time() - started)
                write_tensors(path, tensors, {"seconds": f"{self.live[-1]:.2f}", "made_from": made_from})
                self.say(f"{source}: {len(rows)} rows, {self.live[-1]:.0f} s")
        self.read[path] = _outputs(source, load_file(path)), float(notes_of(path, made_from)["seconds"])
        return self.read[path]

    def _trained(self, name: str) -> tuple[Path, float]:
        """Return the folder of an adapter, and the seconds of its training; a missing one is trained.

        Raises:
            DataError: a missing one, where nothing may be trained.
        """
        folder = self.cell.adapters if name == "adapter" else self.cell.folder / "others" / name
        record, seed = folder / "training.json", self.cell.training.seed
        if not record.is_file():
            if not self.trains:
                raise DataError(f"{self.cell}: the adapter {name} is not trained yet")
            folder.mkdir(parents=True, exist_ok=True)
            some, start = self._training_rows(name), seed
            if name.startswith("member."):
                start = 100 * int(name.partition(".")[2]) + seed
            train(self.cell.task, some, start, folder, self.say, self.cell.training.base)
            self.live.append(_seconds(record))
        return folder, _seconds(record)

    def _training_rows(self, name: str) -> Sequence[Example]:
        if name == "adapter" or name.startswith("member."):
            return self.rows.train
        rows = [self.labelled_rows[place] for place in self.places(0).tolist()]
        if name == "all":
            return rows
        kept = self.whole_rows() if name == "whole" else self.folds() != int(name.partition(".")[2])
        return [row for row, one in zip(rows, kept.tolist(), strict=True) if one]

    def _tensors(self, source: str, rows: tuple[Example, ...], adapter: Path | None) -> dict[str, torch.Tensor]:
        if adapter is not None:
            put(self.classifier, load_file(adapter / "early.safetensors"))
            return adapted(self.classifier, rows)
        encoder = load_sentence_encoder(ENCODER, progress=self.say) if source == "encoder" else None
        passes = ExpertPasses.of(self.classifier, (source,), encoder, answers=source == "frozen")  # type: ignore[arg-type]
        outputs = passes.outputs(rows, Silent(), "", _BATCH)
        answer = {"logits": outputs.log_probs["zero_shot"]} if source == "frozen" else {}
        return {**outputs.features[source], **answer, "class_mask": outputs.class_mask}  # type: ignore[index]


def notes_of(path: Path, made_from: str, name: str = "made_from") -> dict[str, str]:
    """Return the notes of a kept file; DataError for one of other rows, or of another prompt."""
    with safe_open(path, framework="pt") as handle:
        notes = dict(handle.metadata() or {})
    if notes.get(name) != made_from:
        raise DataError(f"{path} was made of other rows or another prompt: delete it")
    return notes


def _seconds(record: Path) -> float:
    return float(json.loads(record.read_text(encoding="utf-8"))["processor_seconds"])


@torch.no_grad()
def adapted(classifier: Classifier, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return ``logits``, ``class_mask`` and ``states``, the last token's, of a model with its adapter."""
    classifier.model.eval()

    def seen(batch: Batch) -> tuple[torch.Tensor, ...]:
        scores = classifier.readout.scores(classifier.model, batch)
        return scores.logits.float(), batch.class_mask, scores.hidden.float()

    parts, order = classifier.over_batches(rows, _BATCH, seen, iter)
    logits, mask, states = (torch.cat(some)[order] for some in zip(*parts, strict=True))
    return {"logits": logits, "class_mask": mask, "states": states}


def _outputs(source: str, tensors: dict[str, torch.Tensor]) -> Outputs:
    """Return a source's arrays as experts read them."""
    mask, logits = tensors.pop("class_mask"), tensors.pop("logits", None)
    answer = None if logits is None else class_log_probs(logits, mask)
    if source not in _UNTRAINED:
        assert answer is not None
        return Outputs(mask, {"adapter": answer}, {"last_state": tensors})
    return Outputs(mask, {} if answer is None else {"zero_shot": answer}, {source: tensors})  # type: ignore[dict-item]
