"""The report of a run's test rows as one page: what laplora.report is told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from laplora.answers.explaining import nothing_accepted
from laplora.answers.reporting import row_text
from laplora.answers.review_scores import read_scores
from laplora.artifact.describing import installed_versions
from laplora.artifact.manifest import POSTERIOR, SCORES
from laplora.artifact.report_page import REPORT_PAGE
from laplora.decisions.uncertainty import decide, decompose, raise_flags, review_score, ruled
from laplora.features.store import rows_digest
from laplora.files.atomic import file_sha256, write_whole
from laplora.fitting.calibrate import Calibrated
from laplora.fitting.evaluation import RowOutputs
from laplora.fitting.saving import FitRecord
from laplora.linearised import class_probs
from laplora.models.hashes import weights_hash
from laplora.prompts.examples import Example
from laplora.prompts.rows import EncodedRow
from laplora.report.page import html
from laplora.report.records import Promise, Report, Rows
from laplora.report.slices import slices_of
from laplora.report.verdict import Verdict, judge
from training.config import RunConfig, config_hash_fields
from training.config.folders import configuration_digest
from training.workspace.run import Run


def answered_rows(
    outputs: RowOutputs,
    calibrated: Calibrated,
    unfamiliar: torch.Tensor | None,
    examples: Sequence[Example],
    encoded: Sequence[EncodedRow],
    labels: Sequence[str],
) -> Rows:
    """Return test rows as a server answers them by the recommended predictive, with their texts.

    Args:
        unfamiliar: (rows,) bool; None where nothing says which.
    """
    name, split = calibrated.recommended.predictive, outputs.outputs.split
    thresholds = calibrated.predictives[name].thresholds
    predictive = outputs.predictive(name, calibrated.temperatures[name])
    parts = decompose(predictive)
    split_whole = ((parts.aleatoric > 0) | (parts.total == 0)).all()
    epistemic = parts.epistemic if predictive.std.any() and split_whole else None
    map_probs = class_probs(split.logits, split.class_mask)
    score = review_score(thresholds, probs=predictive.probs, map_probs=map_probs)
    of = ruled(thresholds.review, score, predictive.probs, labels, split.class_mask)
    flags = raise_flags(
        thresholds,
        unsure=of.unsure,
        label_mass=split.label_mass,
        set_sizes=torch.ones(len(split)),  # decides nothing
        truncated=[row.truncated for row in encoded],
        epistemic=epistemic,
        unfamiliar=unfamiliar,
    )
    return Rows(
        labels=split.labels,
        map_probs=map_probs,
        probs=predictive.probs,
        score=score,
        threshold=thresholds.review.threshold,
        review=torch.tensor([decision == "review" for decision in decide(flags)]),
        epistemic=epistemic,
        references=[example.id for example in examples],
        texts=[row_text(example.fields, example.fields) for example in examples],
        slices=slices_of([example.fields for example in examples], [len(row.token_ids) for row in encoded], unfamiliar),
        groups=split.groups,
        answered=of.answered,
    )


def run_report(
    run: Run,
    record: FitRecord,
    methods: Mapping[str, Mapping[str, Any]],
    rows: Rows,
    gain: tuple[float, float, float] | None,
    notes: Sequence[str],
) -> Report:
    """Return the report of a run's evaluation; ``methods`` and ``notes`` as of ``Report``."""
    config, calibrated = run.config, record.calibrated
    name = calibrated.recommended.predictive
    thresholds = calibrated.predictives[name].thresholds
    rule, scores = thresholds.review, config.run_dir / "laplace" / SCORES
    nothing = nothing_accepted(name, thresholds, read_scores(scores, [name], calibrated.calibration.rows)[name])
    source = run.splits.report
    return Report(
        title=config.name,
        measured_on=f"{len(rows)} test rows of {source['dataset']}, which neither training nor calibration has seen",
        served=name,
        reason=calibrated.recommended.reason,
        labels=run.splits.task.labels,
        promise=Promise(
            target_risk=rule.target_risk,
            coverage=calibrated.calibration.coverage,
            calibration_rows=calibrated.calibration.rows,
            false_alarms=record.familiarity.false_alarms if record.familiarity else None,
            bounded=rule.guarantee == "upper_bound",
            nothing_accepted=nothing.message if nothing else None,
            risks=rule.risks,
        ),
        methods=methods,
        rows=rows,
        costs=rule.costs,
        gain=gain,
        unfamiliar=methods["map"].get("unfamiliar"),
        notes=notes,
        provenance=provenance(
            run,
            {
                "adapter": run.folder / "adapter" / "adapter_model.safetensors",
                "posterior": config.run_dir / "laplace" / POSTERIOR,
            },
        ),
        configuration=configuration(config),
    )


def write_pages(report: Report, run_dir: Path, *, texts_travel: bool) -> Verdict:
    """Write a report, with texts, into a run's folder, into its ``report`` the one that travels; return the verdict.

    Args:
        texts_travel: whether that has the texts too.
    """
    verdict = judge(report)
    whole = html(report, verdict)
    write_whole(run_dir / Path(REPORT_PAGE).name, whole)
    write_whole(run_dir / REPORT_PAGE, whole if texts_travel else html(report.without_texts(), verdict))
    return verdict


def provenance(run: Run, fitted: Mapping[str, Path]) -> dict[str, str]:
    """Return what the figures were made from, by name; ``fitted``: the files of what was fitted."""
    config, splits = run.config, run.splits
    rows = {"training": splits.train, "calibration": splits.calibration, "test": splits.test}
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "base model": f"{config.base.model}, {config.base.quantization}, {config.base.dtype}",
        "base weights": f"sha256:{weights_hash(run.location, config.base.revision).removeprefix('sha256:')}",
        **{name: f"sha256:{file_sha256(path).removeprefix('sha256:')}" for name, path in fitted.items()},
        "data": f"{splits.report['dataset']}, {splits.report['source_detail']}",
        **{f"{name} rows": f"{len(some)}, sha256:{rows_digest(some)}" for name, some in rows.items() if some},
        "configuration": f"sha256:{configuration_digest(config_hash_fields(config))}",
        "seed": str(config.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }


def configuration(config: RunConfig) -> str:
    """Return a run's configuration as indented JSON: of each path the last part, and no golden inputs, which are texts.

    A folder's name can tell of the person or the customer whose rows lie in it.
    """
    fields = config_hash_fields(config)
    del fields["golden_inputs"]
    return json.dumps(_last_parts(fields, config.model_dump()), indent=2, ensure_ascii=False)


def _last_parts(fields: Any, values: Any) -> Any:
    """Return JSON values, of which those that are a path among ``values`` are its last part."""
    if isinstance(values, Path):
        return values.name
    if isinstance(fields, dict) and isinstance(values, dict):
        return {name: _last_parts(value, values.get(name)) for name, value in fields.items()}
    return fields
