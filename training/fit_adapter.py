"""Fit an adapter that was trained elsewhere: its folder and its rows in, an artifact out; nothing is trained.

A command line over ``laplora.Classifier`` and ``laplora.fit``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import laplora
from laplora.artifact.describing import installed_versions
from laplora.artifact.folder import check_name, check_replaceable
from laplora.artifact.report_page import REPORT_PAGE
from laplora.classifier import MAX_TOKENS, Classifier
from laplora.data.labelled import Task
from laplora.errors import ConfigError
from laplora.execution.terminal import program
from laplora.features.store import digest
from laplora.files.atomic import file_sha256
from laplora.fitting.rows import read_rows
from laplora.models.base import BaseSpec, load_tokenizer, locate_base, resolve_device
from laplora.models.hashes import weights_hash
from laplora.models.readout import base_of
from laplora.models.spread import Spread, first_device
from laplora.report.page import html
from laplora.report.verdict import judge
from laplora.settings import FitSettings
from training.config.adapter_fit import AdapterFit
from training.config.run import bad_fields, override
from training.data.adapter_rows import HeadTask, adapter_rows, labels_of_head, labels_of_rows, template_of
from training.report.posterior import posterior_report
from training.workspace.given_adapter import GivenAdapter, given_adapter, head_task, load_adapted
from training.workspace.stores import FolderStore
from training.workspace.terminal import Terminal, say


def fit_adapter(request: AdapterFit) -> Path:
    """Fit, measure where there are test rows, write the artifact, and return its folder.

    Raises:
        ConfigError, DataError: options or rows that cannot be used.
        ModelError, ArtifactCorruptError: an adapter that is not covered, or is not this base's.
        ArtifactWriteError: something that is no artifact in the artifact's place.
    """
    check_name(request.out)
    check_replaceable(request.out)
    settings, spread = _settings(request.overrides), Spread.parsed(request.device_map, request.max_memory)
    if spread and request.device != "auto":
        raise ConfigError("--device-map says where the base is, and so does --device: give one")
    device = spread or resolve_device(request.device)
    if spread:
        first_device(spread)  # refuses GPUs that are not there, before anything is fetched
    adapter = given_adapter(request.adapter, request.base, request.task_type)
    spec, location, head = BaseSpec(adapter.base, None, request.quantization, request.dtype), None, None
    if adapter.has_head:
        location = locate_base(spec, progress=say)
        head = head_task(adapter, location)
        spec = replace(spec, classes=head.classes)
    task, several = _task(request, head)
    rows = {
        name: adapter_rows(
            path, task, request.label_field, of_head=adapter.has_head, several=several, groups=request.groups
        )
        for name in ("data", "calibration", "test")
        if isinstance(path := getattr(request, name), Path)
    }
    shared = _shared_rows(rows, task)
    if shared:
        say(f"--test: {shared}")
    location = location or locate_base(spec, progress=say)
    model = load_adapted(adapter, location, spec, device, several=several)
    limit = request.max_tokens or MAX_TOKENS
    classifier = Classifier(model, load_tokenizer(location), task.template, task.labels, max_tokens=limit)
    # Beside the artifact, until that is there.
    passes = request.out.parent / f".{request.out.name}.fit"
    if passes.is_dir():
        say(f"an earlier fit was stopped: its passes over the same rows, in {passes}, are not made again")
    posterior = laplora.fit(
        classifier,
        rows["data"],
        rows.get("calibration", request.calibration),
        store=FolderStore(passes, _made_from(classifier, adapter, location, settings, rows)),
        settings=settings,
        initial_adapter=request.initial_adapter,
        label_field=request.label_field,
        groups=request.groups,
        progress=Terminal(),
    )
    assert isinstance(posterior, laplora.CalibratedPosterior)  # the model has an adapter
    page = None
    if request.test is not None:
        measured = posterior.evaluate(rows["test"], request.label_field, request.groups)
        say(str(measured))
        gained = posterior.fit.fine_tuning
        report = posterior_report(
            posterior,
            read_rows(rows["test"], classifier, request.label_field, "test row", request.groups),
            measured,
            title=request.out.name,
            measured_on=f"{len(rows['test'])} rows of {request.test.name}, given as test rows",
            notes=[*([shared] if shared else ()), *([str(gained)] if gained else ())],
            provenance=_provenance(request, adapter, spec),
            configuration=json.dumps(settings.model_dump(mode="json"), indent=2),
        )
        verdict = judge(report)
        say(f"{verdict.title}. {verdict.sentence}")
        page = html(report, verdict)
    posterior.save(request.out, report=page)
    shutil.rmtree(passes, ignore_errors=True)
    if page is not None:
        say(f"report: {request.out / REPORT_PAGE}")
    say(f"serve it: {program()} serve {request.out}")
    return request.out


def _made_from(
    classifier: Classifier,
    adapter: GivenAdapter,
    location: str,
    settings: FitSettings,
    rows: dict[str, list[dict[str, Any]]],
) -> str:
    """Return the digest of all that a pass over the rows depends on."""
    model, template = base_of(classifier.model), classifier.template
    return digest(
        weights_hash(location, None),
        file_sha256(adapter.folder / "adapter_model.safetensors"),
        [str(model.dtype), str(getattr(model.config, "quantization_config", None)), classifier.max_tokens],
        [asdict(template), classifier.labels, classifier.verbalizers],
        settings.model_dump(mode="json"),
        [rows["data"], rows.get("calibration")],  # a twin of a calibration row is left out
    )


def _provenance(request: AdapterFit, adapter: GivenAdapter, spec: BaseSpec) -> dict[str, str]:
    """Return what the figures were made from, by name; of each path the last part."""
    files = {"training": request.data, "calibration": request.calibration, "test": request.test}
    weights = file_sha256(adapter.folder / "adapter_model.safetensors").removeprefix("sha256:")
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "base model": f"{Path(spec.model).name}, {spec.quantization}, {spec.dtype}",
        "adapter": f"trained elsewhere, sha256:{weights}",
        **{
            f"{name} rows": f"{path.name}, sha256:{file_sha256(path).removeprefix('sha256:')}"
            for name, path in files.items()
            if isinstance(path, Path)
        },
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }


def _settings(overrides: Sequence[str]) -> FitSettings:
    fields: dict[str, Any] = {}
    for item in overrides:
        override(fields, item)
    try:
        return FitSettings.model_validate(fields)
    except ValidationError as error:
        raise bad_fields(Path("--set"), error, FitSettings) from None


def _task(request: AdapterFit, head: HeadTask | None) -> tuple[Task, bool]:
    """Return the task, and whether several labels of a row may be right."""
    template, several = template_of(request.template), False
    if head is None:
        labels = request.labels or labels_of_rows(request.data, request.label_field)
    else:
        labels, several = labels_of_head(request.data, request.label_field, head, request.labels)
    return Task(template.name, template, labels), several


def _shared_rows(rows: dict[str, list[dict[str, Any]]], task: Task) -> str:
    """Return a sentence of how many test rows are in another file, "" where none is.

    ``laplora.fit`` warns of calibration rows that are training rows.
    """

    def fields(row: dict[str, Any]) -> str:
        return json.dumps({name: row[name] for name in task.template.fields}, sort_keys=True)

    seen = set[str]()
    for name, part in rows.items():
        texts = [fields(row) for row in part]
        if name == "test" and (shared := sum(text in seen for text in texts)):
            return f"{shared} of {len(texts)} rows are in another file too, which makes the figures too good"
        seen.update(texts)
    return ""
