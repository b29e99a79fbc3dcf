"""A fit on disk, and the artifact that is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from laplora.answers.golden import Golden, GoldenSource, golden_entry, verify_answers, what_leaves
from laplora.answers.prediction import Prediction
from laplora.answers.review_scores import score_tensors
from laplora.artifact.encoders import encoder_record
from laplora.artifact.folder import file_records, new_artifact, write_manifest
from laplora.artifact.head_files import MOST_ROW_BYTES, KeptRows, expert_fields, expert_tensors, row_tensors
from laplora.artifact.manifest import (
    ADAPTER_FOLDER,
    EXPERTS,
    FAMILIARITY,
    GOLDEN,
    HEAD,
    POSTERIOR,
    ROWS,
    SCORES,
    EncoderRecord,
    ExpertName,
    ExpertRecord,
    FamiliarityRecord,
    Manifest,
    ManyClassesRecord,
    MemberName,
    PriorRecord,
)
from laplora.errors import warn
from laplora.familiarity.file import familiarity_tensors
from laplora.files.atomic import write_json, write_tensors
from laplora.fitting.calibrate import Calibrated
from laplora.fitting.fit import Fit
from laplora.fitting.projected import split_tensors
from laplora.models.held_weights import tensor_bytes
from laplora.models.spread import Spread
from laplora.pool.fine_tuning import FineTuning
from laplora.pool.served import POOLED, ServedExperts
from laplora.posterior.base import block_precisions
from laplora.posterior.file import posterior_tensors
from laplora.predictive.kinds import PREDICTIVES
from laplora.predictor import Predictor
from laplora.prior.search import PriorChoice

#: How far a replayed probability may be from the recorded one. Activations in bfloat16 are rounded differently by every
#: processor and kernel: up to 0.20 was seen. Other checks catch what this misses: hashes of base, quantization and
#: tokenizer, and the variances. Float32 differs by the order of sums.
TOLERANCE = {"bfloat16": 0.25, "float32": 2e-3}
#: The same of the logarithm of a variance: 0.57 was seen in bfloat16, of an answer with ten times the others' variance.
VARIANCE_TOLERANCE = {"bfloat16": 1.0, "float32": 0.05}
#: The same of a familiarity, beside the steps of two calibration rows.
FAMILIARITY_TOLERANCE = {"bfloat16": 0.25, "float32": 0.02}

#: Gives an answer per input.
Answers = Callable[[Sequence[Mapping[str, Any]]], list[Prediction]]
#: The file of a fit's record.
FIT = "fit.json"


class FitRecord(BaseModel):
    """The record of a fit beside its tensors.

    Attributes:
        served: the prior that answers, one of ``choices``.
        most_options: most classes that a labelled row can have; None in a record of an earlier version.
    """

    choices: list[PriorChoice]
    served: PriorChoice
    centred: bool
    most_options: int | None = None
    calibrated: Calibrated
    familiarity: FamiliarityRecord | None = None
    experts: dict[ExpertName, ExpertRecord]
    pool: dict[MemberName, float]
    encoder: EncoderRecord | None = None
    many_classes: ManyClassesRecord | None = None
    fine_tuning: FineTuning | None = None


def record_of(fit: Fit, encoder: EncoderRecord | None) -> FitRecord:
    """Return what is written of a fit beside its tensors; ``encoder``: that its heads read."""
    served, predictives = fit.answering, fit.calibrated.predictives
    kept = {*PREDICTIVES, *served.heads, *([POOLED] if served.weights else [])}
    update = {"predictives": {name: one for name, one in predictives.items() if name in kept}}
    return FitRecord(
        choices=list(fit.choices),
        served=fit.served,
        centred=fit.centred,
        most_options=fit.labelled.most_options,
        calibrated=fit.calibrated.model_copy(update=update),
        familiarity=fit.familiar.record if fit.familiar else None,
        **expert_fields(served, {name: len(of.places) for name, of in fit.kept_rows().experts.items()}, encoder),
        many_classes=fit.many_classes,
        fine_tuning=fit.fine_tuning,
    )


def encoder_of(fit: Fit) -> EncoderRecord | None:
    """Return the sentence encoder of a fit's heads as an artifact records it; None where none reads one."""
    encoder = fit.heads.passes.encoder if fit.heads else None
    return None if encoder is None else encoder_record(encoder)


def fitted_fields(record: FitRecord) -> dict[str, Any]:
    """Return what a manifest says of a fitted adapter."""
    return {
        "prior": prior_record(record.served, record.centred),
        "most_options": record.most_options,
        "experts": record.experts,
        "pool": record.pool,
        "encoder": record.encoder,
        "familiarity": record.familiarity,
        "many_classes": record.many_classes,
        **dict(record.calibrated),
    }


def write_fit(folder: Path, record: FitRecord, fit: Fit, notes: Mapping[str, Any]) -> None:
    """Write a fit into a folder; ``notes`` go into its ``fit.json``, which is written last."""
    dtype, blocks = fit.settings.laplace.factor_dtype, fit.posterior.blocks
    for name in (EXPERTS, ROWS, FAMILIARITY):  # of an earlier fit
        (folder / name).unlink(missing_ok=True)
    write_tensors(folder / POSTERIOR, *posterior_tensors(fit.posterior, dtype))
    write_tensors(folder / "calibration.safetensors", split_tensors(fit.calibration))
    scores = {name: fit.scores[name] for name in record.calibrated.predictives}
    write_tensors(folder / SCORES, score_tensors(scores))
    if fit.answering.heads:
        write_heads(folder, fit.answering, fit.kept_rows(), keep=fit.settings.experts.keep_rows)
    if fit.familiar:
        write_tensors(folder / FAMILIARITY, familiarity_tensors(fit.familiar.familiarity))
    precisions = block_precisions(fit.served.prior, blocks)
    summary = {
        **record.model_dump(mode="json"),
        "log_likelihood": fit.log_likelihood,
        "train_rows": fit.posterior.rows,
        "squared_distances": dict(zip((b.name for b in blocks), fit.squared_distances.tolist(), strict=True)),
        "effective_dimension": float(fit.posterior.effective_dimension(precisions).sum()),
        **notes,
    }
    write_json(folder / FIT, summary)


def write_heads(folder: Path, served: ServedExperts, rows: KeptRows, *, keep: bool) -> None:
    """Write heads into a folder, and the labelled rows that they learn on from where those are to be kept.

    Warns of rows that are too large: the heads learn no more then.
    """
    write_tensors(folder / EXPERTS, expert_tensors(served.heads, served.familiar))
    if keep and (size := tensor_bytes(rows)) > MOST_ROW_BYTES:
        warn(
            f"the labelled rows' features are {size / 2**30:.1f} GiB, more than an artifact keeps: whoever has further "
            "labels fits all of them anew"
        )
    elif keep:
        write_tensors(folder / ROWS, row_tensors(rows))


def read_fit(folder: Path) -> FitRecord:
    """Return what ``write_fit`` wrote beside the tensors."""
    return FitRecord.model_validate_json((folder / FIT).read_bytes())


@dataclass(frozen=True)
class Parts:
    """The folders that an artifact is made of.

    Attributes:
        fitted: where ``write_fit`` wrote; adapter: the trained one, in PEFT's layout, or a head alone; None of heads on
            a model as it is.
        report: tables and plots of an evaluation; None without.
    """

    fitted: Path
    adapter: Path | None = None
    report: Path | None = None


def prior_record(choice: PriorChoice, centred: bool) -> PriorRecord:
    """Return a prior choice as an artifact records it."""
    return PriorRecord(
        method=choice.method,
        granularity=choice.prior.granularity,
        precision=choice.prior.precision,
        objective=choice.objective,
        centre="initial_adapter" if centred else "zero",
    )


@contextmanager
def artifact_parts(target: Path, parts: Parts) -> Iterator[Path]:
    """Yield a temporary folder with an artifact's tensors, which takes the place of ``target`` when the block ends."""
    with new_artifact(target) as folder:
        if parts.adapter is not None and (parts.adapter / HEAD).is_file():
            shutil.copy(parts.adapter / HEAD, folder / HEAD)
        elif parts.adapter is not None:
            shutil.copytree(parts.adapter, folder / ADAPTER_FOLDER)
        for name in (POSTERIOR, SCORES, FAMILIARITY, EXPERTS, ROWS):
            if (parts.fitted / name).is_file():
                shutil.copy(parts.fitted / name, folder / name)
        if parts.report:
            ignored = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(parts.report, folder / "report", ignore=ignored)
        (folder / "report").mkdir(exist_ok=True)
        shutil.copy(parts.fitted / FIT, folder / "report" / FIT)
        yield folder


def write_artifact(
    target: Path,
    parts: Parts,
    manifest: Manifest,
    golden_inputs: tuple[Sequence[Mapping[str, Any]], GoldenSource],
    *,
    device: str | Spread,
    say: Callable[[str], None],
    answers: Answers | None = None,
    compare: Answers | None = None,
) -> None:
    """Write an artifact and prove that it answers; what is there stays if it does not.

    Args:
        manifest: its files not yet listed; golden_inputs: whose answers are recorded, and where they are from.
        device: that it is loaded on, as of ``Predictor.load``.
        answers: gives them; None: the artifact, loaded for it. compare: gives what they must be, but for rounding.

    Raises:
        ArtifactWriteError: no room, or something that is no artifact in its place.
        ArtifactError, ModelError: an artifact that does not load, or answers otherwise.
    """
    dtype, (inputs, source) = manifest.dtype, golden_inputs
    with artifact_parts(target, parts) as folder:
        write_json(folder / GOLDEN, {"tolerance": TOLERANCE[dtype], "answers": []})
        write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))
        if answers is None:
            answers = loaded_answers(Predictor.load(folder, device=device, verify_golden=False, progress=say))
        golden = {
            "tolerance": TOLERANCE[dtype],
            "variance_tolerance": VARIANCE_TOLERANCE[dtype],
            "familiarity_tolerance": min(0.9, FAMILIARITY_TOLERANCE[dtype] + 2 / (manifest.calibration.rows + 1)),
            "source": source,
            "answers": [golden_entry(i, a) for i, a in zip(inputs, answers(inputs), strict=True)],
        }
        if compare is not None:
            verify_answers(compare(inputs), Golden.model_validate(golden))
        write_json(folder / GOLDEN, golden)
        write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))
    say(f"artifact: {target}: {what_leaves(target)}")


def loaded_answers(predictor: Predictor, run: Any = lambda one: one()) -> Answers:
    """Return what gives a predictor's answers, each alone, with every predictive's probabilities; ``run`` runs each."""

    def answers(inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        rows = [predictor.encode(one, truncate=True) for one in inputs]
        passes = [partial(predictor.predict, [row], also=predictor.predictives) for row in rows]
        return [answer for one in passes for answer in run(one)]

    return answers
