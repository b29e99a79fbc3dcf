"""From an artifact to answers: the one path that measures in training and answers in the service."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from laplora import prompts
from laplora.artifact import ADAPTER_FOLDER, GOLDEN, POSTERIOR, Artifact, Manifest, read_artifact
from laplora.calibration import prediction_sets, temperature_probs
from laplora.errors import (
    ArtifactCorruptError,
    ArtifactIncompatibleError,
    GoldenMismatchError,
    InvalidInputError,
    NonFiniteError,
)
from laplora.jacobians import contrast_jacobians, find_blocks
from laplora.model import (
    attach_adapter,
    label_logits,
    label_mass,
    last_hidden,
    load_base_model,
    load_tokenizer,
    locate_base,
    resolve_device,
    tokenizer_hash,
    weights_hash,
)
from laplora.posterior import Posterior, block_precisions
from laplora.posterior_file import read_posterior
from laplora.predictive import class_probs, contrasts, posterior_predictive
from laplora.prompts import Batch, EncodedRow
from laplora.uncertainty import decide, decompose, entropy, raise_flags, review_score

Mode = Literal["laplace", "map"]


@dataclass(frozen=True)
class Prediction:
    """The answer to one row; every list has one entry per possible label of the row, in label order.

    Attributes:
        labels: the possible labels.
        label_index: of the most probable one under ``probs``.
        map_probs: softmax of the logits at the trained weights.
        probs: posterior predictive mean; in mode ``map`` the same as ``map_probs``.
        probs_std: standard deviation of each probability under the posterior; None in mode ``map``, as are
            the other posterior quantities.
        logit_mean: centred logits, nats.
        logit_variance: of the centred logits, nats squared.
        logit_covariance: the whole matrix.
        total, aleatoric, epistemic: nats; total is the entropy of ``probs``.
        label_mass: probability of the possible labels under the full-vocabulary softmax.
        score: what the artifact's review rule compares, nats.
        prediction_set: split-conformal set of labels.
        flags: see ``laplora.uncertainty.FLAGS``.
        decision: ``accept`` or ``review``.
        calibrated_probs: by the name of each other calibrator in the artifact.
        tokens: length of the prompt; truncated: whether it was cut.
    """

    labels: tuple[str, ...]
    label_index: int
    map_probs: list[float]
    probs: list[float]
    probs_std: list[float] | None
    logit_mean: list[float]
    logit_variance: list[float] | None
    logit_covariance: list[list[float]] | None
    total: float | None
    aleatoric: float | None
    epistemic: float | None
    label_mass: float
    score: float
    prediction_set: list[str]
    flags: list[str]
    decision: Literal["accept", "review"]
    calibrated_probs: dict[str, list[float]]
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class RawAnswer:
    """What the model says of a batch, before any threshold; on the CPU.

    Attributes:
        logits: (batch, classes); contrast_covariance: (batch, classes - 1, classes - 1) float64 or None.
        label_mass: (batch,); class_mask: (batch, classes) bool.
    """

    logits: torch.Tensor
    contrast_covariance: torch.Tensor | None
    label_mass: torch.Tensor
    class_mask: torch.Tensor


class Predictor:
    """A loaded artifact. ``encode`` may be called from any thread, ``predict`` from one at a time."""

    def __init__(
        self,
        artifact: Artifact,
        model: nn.Module,
        tokenizer: Any,
        posterior: Posterior,
        device: torch.device,
    ) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.device = device
        self._model = model
        self._tokenizer = tokenizer
        self._template = manifest.template.template()
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        self._posterior = posterior.to(device, dtype)
        self._precisions = block_precisions(manifest.prior.prior(), posterior.blocks).to(device)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "auto",
        cache_dir: Path | None = None,
        verify_golden: bool = True,
        dequantize: bool | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Predictor:
        """Return the predictor of an artifact, its base model loaded and everything verified.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            cache_dir: of offline models.
            verify_golden: replay the recorded answers.
            dequantize: see ``laplora.model.load_base_model``.
            progress: called with the name of each stage.

        Raises:
            ArtifactError: not found, corrupt, replaced while it was loaded, of another base or tokenizer, or
                answers not reproduced.
            ModelError: a base or adapter that the method does not cover.
            DownloadError: the offline base could not be fetched.
        """
        say = progress or (lambda _stage: None)
        say("verifying artifact")
        artifact = read_artifact(path)
        manifest = artifact.manifest
        where = resolve_device(device)
        say("locating base model")
        location = locate_base(manifest.base, cache_dir, progress)
        tokenizer = load_tokenizer(location, manifest.revision)
        check_base(manifest, location, tokenizer, cache_dir)
        say("loading base model")
        base = load_base_model(location, manifest.base, device=where, dequantize=dequantize)
        say("attaching adapter and posterior")
        model = attach_adapter(base, path / ADAPTER_FOLDER)
        posterior = read_posterior(path / POSTERIOR, find_blocks(model, len(manifest.labels)))
        predictor = cls(artifact, model, tokenizer, posterior, where)
        if read_artifact(path).digest != artifact.digest:  # a new one took its place, and tensors may be the new one's
            raise ArtifactCorruptError(f"artifact {artifact.name!r} was replaced while it was loaded: load it again")
        if verify_golden:
            say("replaying golden answers")
            predictor.verify_golden()
        return predictor

    @property
    def class_count(self) -> int:
        """Number of labels."""
        return len(self.artifact.manifest.labels)

    @property
    def max_tokens(self) -> int:
        """Longest prompt, in tokens."""
        return self.artifact.manifest.max_tokens

    @property
    def fields(self) -> tuple[str, ...]:
        """The template's input fields."""
        return self._template.fields

    def encode(self, inputs: Mapping[str, object], *, truncate: bool) -> EncodedRow:
        """Return one input as a row.

        A question with choices fits every template that takes choices.

        Raises:
            InvalidInputError: fields that the template does not take, or text that cannot be used.
            TooManyTokensError: too long, with ``truncate`` off.
        """
        manifest = self.artifact.manifest
        prompt, class_count = prompts.render(self._template, inputs, manifest.labels)
        return prompts.encode(self._tokenizer, prompt, class_count, max_tokens=manifest.max_tokens, truncate=truncate)

    def predict(self, rows: Sequence[EncodedRow], *, mode: Mode = "laplace") -> list[Prediction]:
        """Return an answer per row, in order; the rows run as one padded batch.

        Args:
            mode: ``laplace``, or ``map`` for a forward pass only.

        Raises:
            NonFiniteError: NaN or infinity in a logit or variance.
        """
        if not rows:
            return []
        batch = prompts.collate(rows, class_count=self.class_count, pad_token_id=self._tokenizer.pad_token_id)
        return self._answer(rows, self.raw_answer(batch.to(self.device), mode), mode)

    def raw_answer(self, batch: Batch, mode: Mode) -> RawAnswer:
        """Return logits, their covariance and the label mass of a batch on the predictor's device."""
        label_ids = self.artifact.manifest.label_token_ids
        covariance = None
        if mode == "laplace":
            jacobians = contrast_jacobians(self._model, batch, label_ids, self._posterior.blocks)
            covariance = self._posterior.covariance_of(jacobians, self._precisions).cpu()
            logits, hidden = jacobians.logits, jacobians.hidden
        else:
            with torch.no_grad():
                hidden = last_hidden(self._model, batch)
                logits = label_logits(self._model, hidden, label_ids)
        mass = label_mass(self._model, hidden, label_ids, batch.class_mask)
        answer = RawAnswer(logits.double().cpu(), covariance, mass.double().cpu(), batch.class_mask.cpu())
        finite = bool(answer.logits.isfinite().all()) and bool(answer.label_mass.isfinite().all())
        if not finite or (covariance is not None and not bool(covariance.isfinite().all())):
            raise NonFiniteError("the model gave NaN or infinity for this input")
        return answer

    def verify_golden(self) -> None:
        """Replay the artifact's recorded answers.

        Raises:
            ArtifactCorruptError: a golden file that does not hold answers to valid inputs.
            GoldenMismatchError: a probability further from the recorded one than the tolerance.
        """
        rows, expected, tolerance = self._read_golden()
        for number, (answer, wanted) in enumerate(zip(self.predict(rows), expected, strict=True)):
            for name, want in wanted.items():
                got = getattr(answer, name)
                gaps = [abs(g - w) for g, w in zip(got, want, strict=False)]
                if len(got) != len(want) or not all(gap <= tolerance for gap in gaps):  # NaN is no match either
                    gap = max(gaps, default=math.nan)
                    raise GoldenMismatchError(
                        f"golden answer {number}: {name} differs by {gap:.4f}, more than {tolerance}: the loaded model "
                        "is not the one that was measured (other weights, quantization or package versions)"
                    )

    def _read_golden(self) -> tuple[list[EncodedRow], list[dict[str, list[float]]], float]:
        try:
            golden = json.loads((self.artifact.path / GOLDEN).read_text(encoding="utf-8"))
            tolerance = float(golden["tolerance"])
            rows = [self.encode(entry["inputs"], truncate=True) for entry in golden["answers"]]
            expected = [
                {k: [float(p) for p in entry[k]] for k in ("map_probs", "probs")} for entry in golden["answers"]
            ]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, InvalidInputError) as error:
            raise ArtifactCorruptError(
                f"{GOLDEN} does not hold recorded answers ({type(error).__name__}): package the run again"
            ) from None
        if not rows or not 0 <= tolerance < 1:
            raise ArtifactCorruptError(
                f"{GOLDEN} has {len(rows)} answers and the tolerance {tolerance}: expected one answer or more and a "
                "tolerance below 1, otherwise a replay proves nothing"
            )
        return rows, expected, tolerance

    def _answer(self, rows: Sequence[EncodedRow], raw: RawAnswer, mode: Mode) -> list[Prediction]:
        calibration = self.artifact.manifest.calibration
        thresholds = calibration.thresholds.for_mode(mode)
        map_probs = class_probs(raw.logits, raw.class_mask)
        probs, std, split = map_probs, None, None
        if raw.contrast_covariance is not None:
            mean = raw.logits @ contrasts(self.class_count, torch.float64)
            predictive = posterior_predictive(mean, raw.contrast_covariance, raw.class_mask)
            probs, std, split = predictive.probs, predictive.std, decompose(predictive)
        epistemic = split.epistemic if split else None
        sets = prediction_sets(probs, calibration.conformal[mode], raw.class_mask)
        flags = raise_flags(
            thresholds,
            probs=probs,
            label_mass=raw.label_mass,
            set_sizes=sets.sum(1),
            truncated=[r.truncated for r in rows],
            epistemic=epistemic,
        )
        score = review_score(thresholds, map_probs=map_probs, probs=probs if split else None, epistemic=epistemic)
        decisions = decide(thresholds, score, flags)
        tempered = temperature_probs(raw.logits, calibration.temperature, raw.class_mask)
        total = split.total if split else entropy(probs)
        answers = []
        for i, row in enumerate(rows):
            count = row.class_count
            labels = self.artifact.manifest.labels[:count]
            logits = raw.logits[i, :count]
            covariance = None if raw.contrast_covariance is None else self._centred(raw.contrast_covariance[i], count)
            answers.append(
                Prediction(
                    labels=labels,
                    label_index=int(probs[i].argmax()),
                    map_probs=map_probs[i, :count].tolist(),
                    probs=probs[i, :count].tolist(),
                    probs_std=None if std is None else std[i, :count].tolist(),
                    logit_mean=(logits - logits.mean()).tolist(),
                    logit_variance=None if covariance is None else covariance.diagonal().clamp_min(0).tolist(),
                    logit_covariance=None if covariance is None else covariance.tolist(),
                    total=float(total[i]),
                    aleatoric=float(split.aleatoric[i]) if split else None,
                    epistemic=float(split.epistemic[i]) if split else None,
                    label_mass=float(raw.label_mass[i]),
                    score=float(score[i]),
                    prediction_set=[label for k, label in enumerate(labels) if sets[i, k]],
                    flags=list(flags[i]),
                    decision=decisions[i],
                    calibrated_probs={"temperature": tempered[i, :count].tolist()},
                    tokens=len(row.token_ids),
                    truncated=row.truncated,
                )
            )
        return answers

    def _centred(self, contrast_covariance: torch.Tensor, count: int) -> torch.Tensor:
        """Return the covariance of the first ``count`` logits less their mean, (count, count)."""
        transform = contrasts(self.class_count, torch.float64)[:count]
        transform = transform - transform.mean(0)
        return transform @ contrast_covariance @ transform.T


def check_base(manifest: Manifest, location: str, tokenizer: Any, cache_dir: Path | None) -> None:
    """Raise ArtifactIncompatibleError where base weights, tokenizer or label tokens are not the artifact's."""
    weights = weights_hash(location, manifest.revision, cache_dir)
    if weights != manifest.base_weights_hash:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r} belongs to base weights {manifest.base_weights_hash[:19]}..., "
            f"{manifest.base_model!r} has {weights[:19]}...: load the same revision, or fit again"
        )
    if tokenizer_hash(tokenizer) != manifest.tokenizer_hash:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r} was made with another tokenizer than {manifest.base_model!r} has now"
        )
    found = prompts.resolve_label_tokens(tokenizer, manifest.template.template(), manifest.labels)
    if tuple(found) != manifest.label_token_ids:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r}: its labels are tokens {found} here, {list(manifest.label_token_ids)} there"
        )
