"""Fit an adapter that was trained elsewhere: its folder and its rows in, an artifact out; nothing is trained.

A command line over ``laplora.Classifier`` and ``laplora.fit``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import laplora
from laplora.artifact.folder import check_replaceable
from laplora.classifier import MAX_TOKENS, Classifier
from laplora.errors import ConfigError, ModelError, NonFiniteError, first_line
from laplora.fitting.settings import FitSettings
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base, resolve_device
from laplora.models.in_memory import non_finite
from laplora.models.quiet import quiet_loading
from laplora.prompts.templates import PromptTemplate
from training.config.adapter_fit import AdapterFit
from training.config.run import bad_fields, override
from training.data.examples import Task
from training.data.files import file_template, read_examples
from training.data.tables import read_records
from training.workspace.terminal import Terminal, say

_FILES = ("adapter_config.json", "adapter_model.safetensors")


def fit_adapter(request: AdapterFit) -> Path:
    """Fit, measure where there are test rows, write the artifact, and return its folder.

    Raises:
        ConfigError, DataError: options or rows that cannot be used.
        ModelError, ArtifactCorruptError: an adapter that is not covered, or is not this base's.
        ArtifactWriteError: something that is no artifact in the artifact's place.
    """
    check_replaceable(request.out)
    settings, task = _settings(request.overrides), _task(request)
    rows = {
        name: _rows(path, task, request.label_field)
        for name in ("data", "calibration", "test")
        if (path := getattr(request, name)) is not None
    }
    _tell_of_shared_rows(rows)
    device = resolve_device(request.device)
    folder = _adapter_folder(request.adapter)
    spec = BaseSpec(_base_name(folder, request.base), None, request.quantization, request.dtype)
    location = locate_base(spec, progress=say)
    base = load_base_model(location, spec, device=device).model
    if (name := non_finite(base)) is not None:
        raise NonFiniteError(
            f"the base model {spec.model!r} holds NaN or infinity in {name}: fetch or convert it again"
        )
    model, limit = attach_adapter(base, folder), request.max_tokens or MAX_TOKENS
    classifier = Classifier(model, load_tokenizer(location), task.labels, task.template, max_tokens=limit)
    posterior = laplora.fit(
        classifier,
        rows["data"],
        rows.get("calibration"),
        settings=settings,
        initial_adapter=request.initial_adapter,
        progress=Terminal(),
    )
    if "test" in rows:
        say(str(posterior.evaluate(rows["test"])))
    posterior.save(request.out)
    say(f"serve it: laplora serve {request.out}")
    return request.out


def _settings(overrides: Sequence[str]) -> FitSettings:
    fields: dict[str, Any] = {}
    for item in overrides:
        override(fields, item)
    try:
        return FitSettings.model_validate(fields)
    except ValidationError as error:
        raise bad_fields(Path("--set"), error) from None


def _task(request: AdapterFit) -> Task:
    text = request.template
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--template {text}: cannot be read as UTF-8 text ({first_line(error)})") from None
    template: PromptTemplate
    if "{" in text:
        spaced = text[-1:].isspace()
        template = PromptTemplate("custom", 1, text, label_prefix="" if spaced else " ")
    else:
        template = file_template(text)
    labels = request.labels or _labels_in(request.data, request.label_field)
    return Task(template.name, template, labels)


def _labels_in(path: Path, label_field: str) -> tuple[str, ...]:
    """Return the labels of a file's rows, sorted; what is no label is refused when the rows are read."""
    values = (record.values.get(label_field) for record in read_records(path))
    found = sorted({str(value).strip() for value in values if isinstance(value, (str, int)) and str(value).strip()})
    if len(found) < 2:
        raise ConfigError(f"{path}: field {label_field!r} has {len(found)} labels: name it by --label-field")
    return tuple(found)


def _rows(path: Path, task: Task, label_field: str) -> list[dict[str, Any]]:
    """Return a file's rows as ``laplora.fit`` takes them; errors name the line."""
    examples = read_examples(path, task, label_field, {})
    return [{"id": e.id, **e.fields, "label": task.labels[e.label]} for e in examples]


def _tell_of_shared_rows(rows: dict[str, list[dict[str, Any]]]) -> None:
    def fields(row: dict[str, Any]) -> str:
        return json.dumps({k: v for k, v in row.items() if k not in ("id", "label")}, sort_keys=True)

    seen = set[str]()
    for name, part in rows.items():
        texts = [fields(row) for row in part]
        if shared := sum(text in seen for text in texts):
            say(f"--{name}: {shared} of {len(texts)} rows are in an earlier file too, which makes the figures too good")
        seen.update(texts)


def _adapter_folder(adapter: str) -> Path:
    """Return the adapter's folder, fetched where it is a hub id."""
    folder = Path(adapter)
    if folder.is_dir():
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise ModelError(f"{adapter} has no {missing[0]}: give the folder that PEFT's save_pretrained wrote")
        return folder
    with quiet_loading():
        from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no adapter at {adapter!r}: give a folder, or a hub id that this machine can reach ({first_line(error)})"
        ) from None


def _base_name(folder: Path, wanted: str | None) -> str:
    """Return which base model the adapter goes on."""
    try:
        fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        named = str(fields.get("base_model_name_or_path") or "")
        kind = fields.get("task_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the adapter's adapter_config.json cannot be read ({type(error).__name__})") from None
    if kind == "SEQ_CLS":
        raise ModelError("the adapter has a classification head (task_type SEQ_CLS): fit it in Python, docs/python.md")
    if wanted is None and not named:
        raise ModelError("the adapter does not name its base model: name it by --base")
    if wanted and named and wanted != named:
        say(f"the adapter says that its base is {named}; it is put on {wanted}, as --base says")
    return wanted or named
