"""From an artifact to answers: what the server answers with, and what training measures with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

import torch

from laplora.answers.golden import not_recorded, read_golden, verify_answers
from laplora.answers.prediction import Prediction, build_predictions
from laplora.answers.review_scores import ReviewScores, read_scores
from laplora.answers.several_labels import build_several
from laplora.artifact.adapted import attach, base_pin, check_base, load_adapted
from laplora.artifact.encoders import check_sizes, sentence_encoder
from laplora.artifact.fetched import DEFAULT_RULES, FetchRules, local_artifact
from laplora.artifact.folder import Artifact, read_artifact
from laplora.artifact.head_files import read_experts
from laplora.artifact.manifest import EXPERTS, SCORES
from laplora.artifact.readout_records import LabelSequencesRecord
from laplora.classifier import batches
from laplora.encoder import Encoder
from laplora.errors import ArtifactCorruptError, InvalidInputError
from laplora.experts.of_head import LAST
from laplora.features.outputs import Outputs
from laplora.features.passes import FeaturePasses
from laplora.features.sentence_encoder import SentenceEncoder
from laplora.head import HeadError
from laplora.jacobians.contrasts import ReversePass, reverse_pass
from laplora.linearised import class_log_probs
from laplora.models.base import LoadedBase, load_tokenizer, locate_base, resolve_device
from laplora.models.beginning import read_beginning
from laplora.models.checkpoints import keep_copy
from laplora.models.held_weights import HeldWeights, tensor_bytes
from laplora.models.shared_base import SharedBases
from laplora.models.spread import Spread, first_device, input_device
from laplora.pool.served import NO_EXPERTS, ServedExperts
from laplora.posterior.base import Posterior
from laplora.predictive.batch_outputs import AdaptedModel, BatchOutputs, batch_outputs, check_evaluating
from laplora.predictive.kinds import PredictiveName, has_jacobians
from laplora.prompts.rows import Batch, EncodedRow, collate
from laplora.prompts.templates import beginning_tokens
from laplora.readouts.contexts import shares_prompt
from laplora.readouts.label_sequences import model_tokens
from laplora.remote.address import is_address

#: Labels from which on each row of a batch counts as more tokens, where several may be right. As many contrasts has a
#: task of the most classes that are all computed (``laplora.jacobians.many_classes``).
MANY_LABELS = 16
#: Padded tokens of a batch beyond which a CPU gains nothing, as the server has it.
CPU_BATCH_TOKENS = 512


class Predictor(Encoder):
    """A loaded artifact: an encoder with the weights. ``predict`` may be called from one thread at a time.

    Attributes:
        base: its base model, which other predictors may share.
        experts: its heads, and the weights of their pool.
        device: where inputs and logits are; passes: what heads read inputs by.
    """

    def __init__(
        self,
        artifact: Artifact,
        adapted: AdaptedModel,
        tokenizer: Any,
        device: torch.device,
        base: LoadedBase,
        review_scores: Mapping[str, ReviewScores],
        experts: ServedExperts = NO_EXPERTS,
        encoder: SentenceEncoder | None = None,
    ) -> None:
        """Take what was loaded; ``experts``: its heads; ``encoder``: that they read."""
        super().__init__(artifact, tokenizer, review_scores, encoder)
        self.device, self.base, self.experts = device, base, experts
        self._adapted = adapted
        manifest = artifact.manifest
        self.passes = FeaturePasses(
            adapted.model,
            adapted.readout,
            tokenizer.pad_token_id,
            len(manifest.labels),
            manifest.template.template().ends_alike,
            manifest.sources,
            encoder,
            answers=not (manifest.has_adapter or manifest.template.answered) and "map" in manifest.predictives,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | Spread = "auto",
        cache_dir: Path | None = None,
        verify_golden: bool = True,
        dequantize: bool | None = None,
        progress: Callable[[str], None] | None = None,
        bases: SharedBases | None = None,
        rules: FetchRules = DEFAULT_RULES,
    ) -> Predictor:
        """Return the predictor of an artifact, its base model loaded and everything verified.

        Args:
            path: its folder, or as text an address where it lies, such as ``s3://BUCKET/FOLDER#sha256=...``
                (``laplora.remote.address``).
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, or how the base is spread over several devices.
            cache_dir: of offline models and what lies elsewhere.
            verify_golden: whether to replay the recorded answers; dequantize: see ``load_base_model``.
            progress: called with the name of each stage; bases: shares the base model with other predictors.
            rules: what may be fetched for an address, such as which base models.

        Raises:
            ArtifactError: not found, corrupt, replaced meanwhile, of another base, or answers not reproduced.
            ModelError: a base or adapter that the method does not cover.
            DownloadError: the artifact or its base could not be fetched. ConfigError: an address that is none, or one
                whose artifact has a base model that nobody allowed.
        """
        say = progress or (lambda _stage: None)
        path = local_artifact(path, cache=cache_dir, progress=progress, rules=rules)
        say("verifying artifact")
        artifact = read_artifact(path)
        manifest = artifact.manifest
        place = device if isinstance(device, Spread) else resolve_device(device)
        if isinstance(place, Spread):
            first_device(place)  # refuses GPUs that are not there, before the base is fetched
        say("locating base model")
        pin = base_pin(manifest)
        check_sizes(path, manifest, rules.most_base_bytes)
        location = locate_base(manifest.base, cache_dir, progress, most_bytes=rules.most_base_bytes, pin=pin)
        tokenizer = load_tokenizer(location, manifest.revision)
        check_base(manifest, location, tokenizer, cache_dir)
        if is_address(manifest.base_model):
            keep_copy(manifest.base_model, "base", Path(location), cache=cache_dir, pin=pin)
        base = (bases or SharedBases()).get(
            location,
            manifest.base,
            manifest.base_weights_hash,
            device=place,
            dequantize=dequantize,
            on_load=lambda: say("loading base model"),
        )
        say("attaching adapter and posterior" if manifest.has_adapter else "attaching heads")
        model, where = attach(path, manifest, base, tokenizer), input_device(base.model)
        if manifest.has_adapter:
            reverse_pass(model, manifest.readout.readout())  # decided now, so that no request waits for it
        if isinstance(manifest.readout, LabelSequencesRecord):
            shares_prompt(model, 1)  # likewise
        adapted = load_adapted(path, manifest, model, where)
        if adapted.readout.side == "left" and adapted.readout.reads_last_token:
            begins = beginning_tokens(tokenizer, manifest.template.template())
            adapted = replace(adapted, beginning=read_beginning(model, begins, max_tokens=manifest.max_tokens))
        scores = read_scores(path / SCORES, manifest.servable, manifest.calibration.rows)
        experts = read_experts(path / EXPERTS, manifest) if manifest.experts else NO_EXPERTS
        encoder = sentence_encoder(manifest, where, cache_dir, progress)
        predictor = cls(artifact, adapted, tokenizer, where, base, scores, experts, encoder)
        if read_artifact(path).digest != artifact.digest:  # replaced meanwhile: tensors may be of either
            raise ArtifactCorruptError(f"artifact {artifact.name!r} was replaced while it was loaded: load it again")
        if verify_golden:
            say("replaying golden answers")
            predictor.verify_golden()
        return predictor

    def as_version(
        self, artifact: Artifact, experts: ServedExperts, review_scores: Mapping[str, ReviewScores]
    ) -> Predictor:
        """Return the predictor of another version of the artifact, whose heads alone differ; it shares the model."""
        given = (self._tokenizer, self.device, self.base, review_scores, experts, self.passes.encoder)
        adapted = replace(self._adapted, readout=artifact.manifest.readout.readout())  # of other labels perhaps
        return Predictor(artifact, adapted, *given)

    @property
    def adapted(self) -> AdaptedModel:
        """Its model with everything that the predictives average over."""
        return self._adapted

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices of its base: ``device`` first, then those that it is spread over."""
        others = {parameter.device for parameter in self._adapted.model.parameters()} - {self.device}
        return self.device, *sorted(others, key=str)

    @property
    def weights(self) -> HeldWeights:
        """How the base's weights are held, and why."""
        return self.base.weights

    @property
    def reverse_pass(self) -> ReversePass | None:
        """How its Jacobians are computed, and why; None without an adapter, whose heads need none."""
        return reverse_pass(self._adapted.model, self._adapted.readout) if self.artifact.manifest.has_adapter else None

    @property
    def own_bytes(self) -> int:
        """Bytes of the tensors of adapters, posteriors and heads; not those of the base."""
        return tensor_bytes(self._adapted, self.experts)

    @property
    def batch_tokens(self) -> int | None:
        """Padded tokens that a batch should have at most on its device; None: as many as fit."""
        return CPU_BATCH_TOKENS if self.device.type == "cpu" else None

    def predict(
        self,
        rows: Sequence[EncodedRow],
        predictive: str | None = None,
        *,
        also: Sequence[str] = (),
        covariance: bool = False,
    ) -> list[Prediction]:
        """Return an answer per row, in order; the rows run as one padded batch.

        Args:
            predictive: one of ``predictives``; None is the recommended one.
            also: further ones, whose probabilities come in ``calibrated_probs``; with ``laplace`` the answer has logit
                variances. Those that need no further pass through the model come in any case.
            covariance: whether answers that have variances have ``logit_covariance`` too: classes x classes numbers a
                row.

        Raises:
            ConfigError: a predictive that the artifact does not have.
            NonFiniteError: NaN or infinity in a logit or variance.
        """
        name = self.named(predictive or self.recommended)
        if not rows:
            return []
        outputs, read = self._outputs(rows, [name, *map(self.named, also)])
        return self._answers(rows, outputs, read, name, covariance=covariance)

    def predict_all(
        self,
        rows: Sequence[EncodedRow],
        predictive: str | None = None,
        *,
        batch_size: int,
        most_tokens: int | None = None,
        also: Sequence[str] = (),
        track: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
    ) -> list[Prediction]:
        """Return an answer per row, in order; the rows, however many, run in batches of like length.

        Args:
            batch_size, most_tokens: rows and padded tokens of a batch, at most; None is no limit of tokens.
            also: as of ``predict``; track: watches the batches.

        The others, and errors, are those of ``predict``.
        """
        most = None if most_tokens is None else (most_tokens, self.device_tokens)
        answers: dict[int, Prediction] = {}
        for index in track(batches(rows, batch_size, most)):
            answers.update(zip(index, self.predict([rows[i] for i in index], predictive, also=also), strict=True))
        return [answers[i] for i in range(len(rows))]

    def predict_each(self, rows: Sequence[EncodedRow]) -> dict[PredictiveName, list[Prediction]]:
        """Return every predictive's answers to at least one row."""
        outputs, read = self._outputs(rows, self.predictives)
        return {name: self._answers(rows, outputs, read, name) for name in self.predictives}

    def _answers(
        self,
        rows: Sequence[EncodedRow],
        outputs: BatchOutputs,
        read: Outputs,
        name: PredictiveName,
        *,
        covariance: bool = False,
    ) -> list[Prediction]:
        manifest, heads = self.artifact.manifest, None
        if self.experts.heads:
            heads = self.experts.answered(name, read)
        if not manifest.has_adapter:
            outputs = replace(outputs, familiarity=self.experts.familiarity(self._comparing(name), read))
        build = build_several if manifest.likelihood == "bernoulli" else build_predictions
        return build(manifest, rows, outputs, name, heads, covariance=covariance)

    @property
    def posterior(self) -> Posterior:
        """The trained adapter's, on the device."""
        assert self._adapted.posterior is not None
        return self._adapted.posterior

    @property
    def precisions(self) -> torch.Tensor:
        """The prior precision of each block of the posterior, (blocks,) float64, on the device."""
        assert self._adapted.precisions is not None
        return self._adapted.precisions

    def _batch(self, rows: Sequence[EncodedRow]) -> Batch:
        return collate(
            rows,
            class_count=self.class_count,
            pad_token_id=self._tokenizer.pad_token_id,
            side=self._adapted.readout.side,
        ).to(self.device)

    def _comparing(self, name: PredictiveName) -> PredictiveName:
        """Return the predictive whose heads say how familiar inputs are: its own, else those of another one."""
        names = (name, self.recommended, *self.predictives)
        return next((one for one in names if self.experts.heaviest(one)), self.recommended)

    def outputs(self, rows: Sequence[EncodedRow], names: Sequence[PredictiveName] | None = None) -> Outputs:
        """Return what experts read of rows, which run as one padded batch.

        Args:
            names: of predictives whose passes are wanted; None: all.
        """
        return self._outputs(rows, self.predictives if names is None else names)[1]

    def _outputs(self, rows: Sequence[EncodedRow], names: Sequence[PredictiveName]) -> tuple[BatchOutputs, Outputs]:
        """Return the outputs for a batch, and what heads read of it."""
        if not self.artifact.manifest.has_adapter:
            check_evaluating(self._adapted.model)
            read = self._passes_for([*names, *map(self._comparing, names)]).of_batch(rows)
            nothing = torch.zeros(read.class_mask.shape, dtype=torch.float64)
            return BatchOutputs(read.log_probs.get("zero_shot", nothing), None, read.class_mask, None), read
        batch = batch_outputs(self._adapted, self._batch(rows), covariance=any(map(has_jacobians, names)))
        assert batch.hidden is not None
        one = self._adapted.readout.likelihood == "categorical"
        logits = class_log_probs(batch.logits, batch.class_mask) if one else batch.logits
        mine = Outputs(
            batch.class_mask, {"adapter": logits}, {"last_state": {LAST: batch.hidden}}, covariance=batch.covariance
        )
        passes = self._passes_for(names)
        if not passes.sources:
            return batch, mine
        beside = passes.of_batch(rows)
        return batch, replace(mine, features={**mine.features, **beside.features})

    def _passes_for(self, names: Sequence[PredictiveName]) -> FeaturePasses:
        """Return the passes that the heads of predictives read."""
        wanted = self.experts.sources(names)
        return replace(self.passes, sources=tuple(one for one in self.passes.sources if one in wanted))

    def device_tokens(self, row: EncodedRow) -> int:
        """Return the tokens that a row counts as where batches are kept small: those that the model runs on for it.

        They are its own and, where labels are texts, those of the labels. If several labels may be right, each has
        Jacobians of its own: above ``MANY_LABELS`` of them a row counts as more.
        """
        readout = self._adapted.readout
        tokens = model_tokens(self._adapted.model, readout, len(row.token_ids))
        return tokens if readout.likelihood == "categorical" else tokens * max(1, -(-self.class_count // MANY_LABELS))

    def verify_golden(self, run: Callable[[Callable[[], list[Prediction]]], list[Prediction]] = call) -> None:
        """Replay the artifact's recorded answers, those of every predictive; ``run`` runs each pass, one answer in it.

        Raises:
            ArtifactCorruptError: a golden file that does not hold answers to valid inputs.
            GoldenMismatchError: as ``laplora.answers.golden.verify_answers``.
        """
        golden = read_golden(self.artifact.path)
        try:
            rows = [self.encode(answer.inputs, truncate=True) for answer in golden.answers]
        except InvalidInputError as error:
            raise not_recorded(type(error).__name__) from None
        passes = [partial(self.predict, [row], also=self.predictives) for row in rows]
        try:
            answers = [answer for one in passes for answer in run(one)]
        except HeadError as error:
            raise ArtifactCorruptError(f"{EXPERTS} has a head of other features than the base gives: {error}") from None
        verify_answers(answers, golden)
