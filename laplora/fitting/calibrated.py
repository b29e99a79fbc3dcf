"""The result of ``laplora.fit``: a classifier whose answers are calibrated, in memory."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laplora.answers.comparison import check_better
from laplora.answers.golden_inputs import GoldenInputs
from laplora.answers.golden_inputs import golden_inputs as inputs_and_source
from laplora.answers.prediction import Array, Prediction
from laplora.answers.review_scores import ReviewScores
from laplora.artifact.describing import describe, summary
from laplora.artifact.encoders import unsaved_encoder
from laplora.artifact.folder import Artifact, check_name, check_replaceable
from laplora.artifact.manifest import ADAPTER_FOLDER, HEAD, Manifest
from laplora.artifact.readout_records import readout_record
from laplora.artifact.report_page import REPORT_PAGE
from laplora.classifier import Classifier, batches
from laplora.errors import ConfigError, ModelError
from laplora.execution.progress import Progress
from laplora.experts.base import Expert, Outputs
from laplora.features.sentence_encoder import SentenceEncoder
from laplora.files.atomic import write_whole
from laplora.fitting.evaluation import Measured, evaluated, outputs_of_rows
from laplora.fitting.fit import Fit
from laplora.fitting.learning import learn, learned_fit
from laplora.fitting.rows import read_rows
from laplora.fitting.saving import (
    Parts,
    encoder_of,
    fitted_fields,
    loaded_answers,
    record_of,
    write_artifact,
    write_fit,
)
from laplora.models.adapters import save_adapter
from laplora.models.base import BaseSpec, LoadedBase, base_spec_of, locate_base
from laplora.models.classifier_head import is_adapted, save_head
from laplora.models.hashes import tokenizer_hash, weights_hash
from laplora.models.held_weights import HeldWeights
from laplora.models.lora import check_enabled
from laplora.models.readout import base_of
from laplora.pool.served import NO_EXPERTS, ServedExperts
from laplora.posterior.base import block_precisions
from laplora.predictive.batch_outputs import AdaptedModel, check_evaluating
from laplora.predictive.kinds import PredictiveName
from laplora.predictive.lora_weights import lora_parameters, weight_checksums
from laplora.predictor import Predictor
from laplora.selection.suggest import Suggestion, suggest
from laplora.settings import FitSettings

#: Fields, or a text where the template has one field; one of them, or many.
Inputs = Mapping[str, Any] | str | Iterable[Mapping[str, Any] | str]
_UNSAVED = "in-memory"
#: Held while a model runs: the hooks that note its activations are on its modules, and see the passes of every thread.
ONE_AT_A_TIME = threading.RLock()


def probabilities(answers: Sequence[Prediction], classes: int) -> Array:
    """Return (answers, classes) float64 their probabilities, 0 at labels that an input cannot have."""
    probs = np.zeros((len(answers), classes))
    for row, answer in zip(probs, answers, strict=True):
        row[: len(answer.labels)] = answer.arrays.probs
    return probs


class CalibratedPosterior:
    """A fitted posterior with its classifier: answers, metrics, and the artifact that serves the same.

    Attributes:
        classifier: whose model it keeps in use; do not train it further.
        fit: what was fitted.
        data: where training and calibration rows came from, as the artifact records it.
        predictor: what answers; the same class serves.
    """

    _fitted: CalibratedPosterior | None = None  # the fit, where later labels have moved this one

    def __init__(
        self,
        classifier: Classifier,
        fit: Fit,
        data: Mapping[str, Any],
        first_rows: tuple[Mapping[str, Any], ...],
        progress: Progress,
    ) -> None:
        self.classifier, self.fit, self.data = classifier, fit, dict(data)
        self._first_rows, self._progress = first_rows, progress
        self._measured: Measured | None = None
        scores = {str(name): one for name, one in fit.scores.items()}
        encoder = fit.heads.passes.encoder if fit.heads else None
        self._serve(self._predictor(_adapted(classifier, fit), scores, fit.answering, encoder))

    def _predictor(
        self,
        adapted: AdaptedModel,
        scores: Mapping[str, ReviewScores],
        experts: ServedExperts = NO_EXPERTS,
        encoder: SentenceEncoder | None = None,
    ) -> Predictor:
        """Return what answers in memory as a server would."""
        classifier = self.classifier
        manifest = self._describe(_UNSAVED, BaseSpec(_UNSAVED, None, "none", "float32"), _UNSAVED, _UNSAVED)
        base = LoadedBase(base_of(classifier.model), HeldWeights("plain", "as the model was given"))
        artifact, tokenizer = Artifact(Path(_UNSAVED), manifest, _UNSAVED), classifier.tokenizer
        return Predictor(artifact, adapted, tokenizer, classifier.device, base, scores, experts, encoder)

    def _serve(self, predictor: Predictor) -> None:
        self.predictor, self._parameters = predictor, predictor.adapted.parameters
        self._checksums = weight_checksums(self._parameters)
        self._weights = _weights_of(self.classifier.model)

    def __repr__(self) -> str:
        rows = self.data["rows"]
        return (
            f"CalibratedPosterior({self.fit.settings.laplace.structure}, {rows['train']} training rows, "
            f"{rows['calibration']} calibration rows, answers by {self.recommended})"
        )

    @property
    def recommended(self) -> PredictiveName:
        """The predictive that answers unless a call names another."""
        return self.predictor.recommended

    @property
    def predictives(self) -> tuple[PredictiveName, ...]:
        """The predictives that a call can name."""
        return self.predictor.predictives

    @property
    def experts(self) -> dict[str, Expert]:
        """By name the ways to answer, with their honest log probabilities of ``fit.labelled``.

        The heads that ``settings.experts`` named are trained on training and calibration rows, and honest in all.
        Answers that use the adapter are NaN in training rows. ConfigError for one that learned later labels.
        """
        if self._fitted is not None:
            raise ConfigError(
                "this posterior learned later labels, and experts are those of the fit: ask the fitted one"
            )
        return dict(self.fit.experts)

    def outputs(self, inputs: Inputs) -> Outputs:
        """Return what ``experts`` read of inputs; arguments and errors as of ``predict``."""
        self._check_model()
        examples = read_rows([inputs] if isinstance(inputs, Mapping | str) else inputs, self.classifier, None, "input")
        with ONE_AT_A_TIME:
            return outputs_of_rows(self.classifier, self.fit, examples, self._progress)

    def predict(
        self,
        inputs: Inputs,
        predictive: str | None = None,
        *,
        truncate: bool = True,
        batch_size: int = 8,
        covariance: bool = False,
    ) -> list[Prediction]:
        """Return an answer per input, in order.

        Args:
            inputs: the template's fields, or texts where it has one field; other fields, a label among them, are
                ignored. A data frame and a ``datasets.Dataset`` do as well.
            predictive: one of ``predictives``; None is the recommended one.
            truncate: whether a prompt beyond the limit is cut, which the answer says.
            batch_size: rows that run together; does not change the answers but for rounding.
            covariance: as of ``Predictor.predict``.

        Raises:
            DataError: an input without one of the fields, or with one that cannot be used.
            TooManyTokensError: too long, with ``truncate`` off.
            ConfigError: no such predictive.
            ModelError: a model in training mode, or that runs another adapter, or other weights of it, than was fitted.
            NonFiniteError: NaN or infinity in a logit or variance.
        """
        self._check_model()
        given = [inputs] if isinstance(inputs, Mapping | str) else inputs
        if isinstance(given, Sized) and not len(given):
            return []
        examples = read_rows(given, self.classifier, None, "input")
        rows = [self.predictor.encode(example.fields, truncate=truncate) for example in examples]
        answers: dict[int, Prediction] = {}
        for index in batches(rows, batch_size):
            with ONE_AT_A_TIME:
                batch = self.predictor.predict([rows[i] for i in index], self._named(predictive), covariance=covariance)
            answers.update(zip(index, batch, strict=True))
        return [answers[i] for i in range(len(rows))]

    def predict_proba(
        self, inputs: Inputs, predictive: str | None = None, *, truncate: bool = True, batch_size: int = 8
    ) -> Array:
        """Return (inputs, labels) float64 the probabilities, 0 at labels that an input cannot have, as of ``predict``.

        Columns are in the order of ``classifier.labels``. If several labels may be right, each is the probability that
        the label is present.
        """
        answers = self.predict(inputs, predictive, truncate=truncate, batch_size=batch_size)
        return probabilities(answers, self.classifier.class_count)

    def evaluate(self, rows: Any, label_field: str = "label", groups: str | None = None) -> Measured:
        """Return every predictive's metrics on labelled rows that nothing was fitted on; ``save`` records the last.

        Arguments and errors are those of ``laplora.fit``; intervals are over groups.
        """
        self._check_model()
        examples = read_rows(rows, self.classifier, label_field, "test row", groups)
        with ONE_AT_A_TIME:
            self._measured = evaluated(self.predictor, self.classifier, examples, self._progress)
        return self._measured

    def condition(
        self,
        rows: Any,
        label_field: str = "label",
        *,
        groups: str | None = None,
        force: bool = False,
    ) -> CalibratedPosterior:
        """Return the posterior that learned from further labels, without training; this one stays as it is.

        A conditioned one begins again at the fit: give all rows that it should learn from, also the earlier ones.

        Args:
            rows: labelled rows, 20 or more, of which none trained or calibrated the model.
            groups: as of ``laplora.fit``.
            force: whether to return one that answers worse.

        Raises:
            ConditioningError: the labels make the answers worse, without ``force``.
            DataError: rows that cannot be used; ConfigError: a posterior without a head, or more rows than heads learn.
        """
        self._check_model()
        first = self._fitted or self
        examples = read_rows(rows, self.classifier, label_field, groups=groups)
        with ONE_AT_A_TIME:
            learned = learn(first.predictor, first.fit.kept_rows(), examples, progress=self._progress)
        check_better(learned.comparison, force=force)
        self._progress.say(str(learned.comparison))
        data = first.data | {"labels": learned.comparison.model_dump(mode="json")}
        fit = learned_fit(first.fit, learned)
        posterior = CalibratedPosterior(self.classifier, fit, data, self._first_rows, self._progress)
        posterior._fitted = first
        return posterior

    def suggest(
        self,
        rows: Any,
        count: int = 100,
        *,
        least_familiarity: float = 0.0,
        batch_size: int = 8,
    ) -> Suggestion:
        """Return which of some unlabelled rows to label next, in the order to label them.

        Args:
            rows: as of ``laplora.fit``, without labels; a prompt that comes twice counts once.
            count: at most so many.
            least_familiarity: rows of less (``Prediction.familiarity``) are left out, where the posterior has one.

        Raises:
            DataError, ConfigError, ModelError, NonFiniteError: as ``laplora.selection.suggest.suggest``, and rows
                without the template's fields.
        """
        self._check_model()
        examples = read_rows(rows, self.classifier, None)
        encoded = [self.predictor.encode(example.fields, truncate=True) for example in examples]
        with ONE_AT_A_TIME:
            return suggest(
                self.predictor,
                encoded,
                count,
                least_familiarity=least_familiarity,
                batch_size=batch_size,
                track=self._progress.track,
            )

    def save(
        self,
        path: str | Path,
        *,
        base: str | None = None,
        revision: str | None = None,
        verify: bool = True,
        report: str | None = None,
        golden_inputs: GoldenInputs = None,
    ) -> Path:
        """Write the artifact, which ``laplora serve`` serves, and return its folder; what was there is replaced.

        It holds no text of a row, unless ``golden_inputs`` or ``report`` have one, and the process's umask says who may
        read it. The last line of the progress says what it holds.

        Args:
            path: the folder; its last part is the artifact's name.
            base: folder, hub id or offline name to load the base model from; None: where this one was loaded from.
            revision: of the hub.
            verify: whether to load the artifact, record what it answers, and compare that with this posterior. It takes
                the memory of a second base model. Without it the answers of the model in memory are recorded, which
                whoever serves it replays.
            report: an HTML page that the artifact brings along, such as of ``laplora.report``.
            golden_inputs: up to 64 inputs whose answers the artifact records and whoever loads it replays; their texts
                are in it. ``"calibration"``: four calibration rows. None: made of the template and the labels.

        Raises:
            ConfigError: a name that no artifact can have; golden inputs that the template does not take.
            ModelError: a model that is not as it was fitted; a base that cannot be loaded again, or is in a number
                format that no artifact has.
            ArtifactWriteError: no room, or something that is no artifact in its place.
            GoldenMismatchError: the loaded artifact answers otherwise than this posterior.
        """
        self._check_model()
        target, say = Path(path), self._progress.say
        check_name(target)
        check_replaceable(target)
        golden = inputs_and_source(golden_inputs, self.classifier.template, self.classifier.labels, self._first_rows)
        spec = base_spec_of(base_of(self.classifier.model), base)
        spec = spec if revision is None else replace(spec, revision=revision)
        location = locate_base(spec, progress=say)
        manifest = self._describe(
            target.name, spec, weights_hash(location, spec.revision), tokenizer_hash(self.classifier.tokenizer)
        )
        with tempfile.TemporaryDirectory() as folder:
            parts = self._write_parts(Path(folder), spec.model)
            if report is not None:
                page = Path(folder) / REPORT_PAGE
                write_whole(page, report)
                parts = replace(parts, report=page.parent)
            mine, device = loaded_answers(self.predictor), self.classifier.place
            given = {"compare": mine} if verify else {"answers": mine}
            with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):  # transformers and PEFT draw as they load
                write_artifact(target, parts, manifest, golden, device=device, say=say, **given)
        return target

    def _named(self, predictive: str | None) -> str | None:
        """Return a predictive as a call named it; ConfigError where a message of its own says why there is none."""
        return predictive

    def _check_model(self) -> None:
        """Raise ModelError where the model is not as it was fitted: the caller has it in their hands."""
        model = self.classifier.model
        if not self.predictor.artifact.manifest.has_adapter:
            check_evaluating(model)
            if _weights_of(model) != self._weights:
                raise ModelError(
                    "the model is not as it was fitted: it was trained, or an adapter was put into it. Load it again, "
                    "or fit anew"
                )
            return
        if is_adapted(model):
            check_enabled(model)
        now = lora_parameters(model)
        if any(now.get(name) is not parameter for name, parameter in self._parameters.items()):
            raise ModelError(
                "the model runs another adapter or head than this posterior was fitted on: make that one active again, "
                "by model.set_adapter(NAME), or fit anew"
            )
        checksums = weight_checksums(self._parameters)
        if changed := [name for name, number in self._checksums.items() if checksums[name] != number]:
            raise ModelError(
                f"the weights of {changed[0]} and of {len(changed) - 1} more blocks are not those that this posterior "
                "was fitted on: they were changed in place, as by more training. Load those weights again, or fit anew"
            )

    def _write_parts(self, folder: Path, base_model: str) -> Parts:
        """Write adapter and fit into a folder of their own."""
        model = self.classifier.model
        fitted, adapter = folder / "fitted", folder / ADAPTER_FOLDER
        write_fit(fitted, record_of(self.fit, encoder_of(self.fit)), self.fit, {})
        if is_adapted(model):
            save_adapter(model, adapter, base_model=base_model)
        else:
            adapter.mkdir()
            save_head(model, self.classifier.readout.trained, adapter / HEAD)
        return Parts(fitted, adapter)

    @property
    def _settings(self) -> FitSettings:
        return self.fit.settings

    @property
    def _head_alone(self) -> bool:
        return not is_adapted(self.classifier.model)

    def _fitted_fields(self, saved: bool) -> dict[str, Any]:
        """Return what the manifest says of the fit; ``saved``: on disk."""
        encoder = self.fit.heads.passes.encoder if self.fit.heads else None
        if encoder is None or saved:
            return fitted_fields(record_of(self.fit, encoder_of(self.fit)))
        return fitted_fields(record_of(self.fit, unsaved_encoder(encoder)))

    def _describe(self, name: str, base: BaseSpec, base_hash: str, tokenizer: str) -> Manifest:
        classifier, measured = self.classifier, self._measured
        return describe(
            self._fitted_fields(name != _UNSAVED),
            name=name,
            base=base,
            base_weights_hash=base_hash,
            tokenizer_hash=tokenizer,
            template=classifier.template,
            labels=classifier.labels,
            readout=readout_record(classifier.readout, classifier.verbalizers, alone=self._head_alone),
            max_tokens=classifier.max_tokens,
            question=self._settings.question,
            metrics=summary(measured.to_json()) if measured else {},
            config=self._settings.model_dump(mode="json", exclude={"question"}),
            data=self.data,
        )


def _weights_of(model: Any) -> tuple[tuple[int, int], ...]:
    """Return what changes when weights are changed in place, or others are put into a model."""
    return tuple((id(parameter), parameter._version) for parameter in model.parameters())


def _adapted(classifier: Classifier, fit: Fit) -> AdaptedModel:
    """Return everything that the predictives are made of, on the classifier's device or its blocks' devices."""
    names = [block.name for block in fit.posterior.blocks]
    model, device, by_block = classifier.model, classifier.device, classifier.block_devices(names)
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    precisions = block_precisions(fit.served.prior, fit.posterior.blocks).to(device)
    return AdaptedModel(
        model=model,
        parameters=lora_parameters(model),
        readout=classifier.readout,
        posterior=fit.posterior.to(device, dtype, by_block),
        precisions=precisions,
        familiarity=fit.familiar.familiarity if fit.familiar else None,
    )
