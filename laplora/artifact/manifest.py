"""The records of an artifact's manifest, and the names of its files.

``artifacts/FORMAT.md`` is the written format.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from laplora.artifact.readout_records import ClassificationHeadRecord, NoAnswerRecord, ReadOutRecord
from laplora.decisions.conformal import ConformalScore
from laplora.decisions.thresholds import PredictiveThresholds, ReviewRule
from laplora.errors import ArtifactCorruptError, ArtifactIncompatibleError, ConfigError
from laplora.familiarity.percentile import is_unfamiliar
from laplora.features.outputs import FeatureSource, HeadSource
from laplora.files.strict_json import is_nested_within, strict_json
from laplora.linearised import Likelihood
from laplora.models.base import BaseSpec
from laplora.posterior.base import Prior
from laplora.predictive.kinds import (
    PREDICTIVES,
    PredictiveName,
)
from laplora.prompts.questions import AnsweredQuestion, Question, answered_question, check_question
from laplora.prompts.rows import FEWEST_TOKENS, MAX_LABELS
from laplora.prompts.templates import Cut, PromptTemplate

FORMAT_VERSION = 8
MANIFEST = "manifest.json"
POSTERIOR = "posterior.safetensors"
GOLDEN = "golden.json"
SCORES = "scores.safetensors"
FAMILIARITY = "familiarity.safetensors"
EXPERTS = "experts.safetensors"
ROWS = "rows.safetensors"
ADAPTER_FOLDER = "adapter"
HEAD = "head.safetensors"
#: Heads that answer, by name.
ExpertName = Literal["conditioned", "frozen", "encoder", "options", "rescaled", "corrected"]
#: The possible members of a pool.
MemberName = Literal["adapter", "zero_shot", "conditioned", "frozen", "encoder", "options", "rescaled", "corrected"]
#: Most weight of an expert in a pool: no labels ask for as much, and its square is a number.
MAX_WEIGHT = 1e6
#: Most levels of a manifest: deeper ones can be read, and not be written or listed again.
MAX_NESTING = 64
#: The pattern of an artifact's name.
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
#: An adapter's files; never the pickled one that PEFT would fall back to.
ADAPTER_FILES = (f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Record):
    """One file of the artifact."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class CutRecord(_Record):
    """Which field of a prompt that is too long is cut, and on which side."""

    field: str | None = Field(description="null: the longest text of each input")
    side: Literal["left", "right"]


class TemplateRecord(_Record):
    """The prompt template, whole."""

    name: str
    version: int
    text: str
    choice: str
    choice_separator: str
    label_prefix: str
    cut: CutRecord | None = Field(None, description="null: a prompt that is too long is cut, no field of it")
    answered: str | None = Field(
        None, max_length=256, description="the model whose answer each input brings along as model_probs; null: none"
    )

    @model_validator(mode="after")
    def _whole(self) -> TemplateRecord:
        try:
            self.template()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def template(self) -> PromptTemplate:
        return self._made

    @cached_property
    def _made(self) -> PromptTemplate:
        """The template, which each request asks for."""
        cut = None if self.cut is None else Cut(self.cut.field, self.cut.side)
        return PromptTemplate(**self.model_dump(exclude={"cut"}), cut=cut)


class PriorRecord(_Record):
    """The served prior and how it was chosen."""

    method: Literal["validation", "evidence"]
    granularity: Literal["scalar", "group"]
    precision: dict[str, Annotated[float, Field(gt=0)]]
    objective: float = Field(description="nats: log evidence, or minus the mean held-out NLL")
    centre: Literal["initial_adapter", "zero"] = Field(
        "initial_adapter",
        description="zero where the adapter was trained elsewhere and nobody kept its initial weights",
    )

    def prior(self) -> Prior:
        return Prior(self.granularity, self.precision)


class CalibrationRecord(_Record):
    """The calibration split, and what the settings fitted on it are for."""

    split: str = Field(description="its name: calibration, or out_of_fold where the rows trained the adapter")
    rows: int = Field(ge=0)
    folds: int = Field(ge=2, description="of the cross-fitting")
    coverage: float = Field(gt=0, lt=1, description="nominal, of the prediction sets")
    conformal: ConformalScore = Field(description="score of the prediction sets; interval: the labels have an order")
    scores: Literal["scores.safetensors"] = Field(description="file of the review scores on these rows, and mistakes")

    @property
    def ordered(self) -> bool:
        """Whether the labels are in an order."""
        return self.conformal == "interval"


class FamiliarityRecord(_Record):
    """The out-of-distribution score and its reference rows, in ``familiarity.safetensors``."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        description="whose states under the adapter are compared; none where each head compares its own features, in "
        "``experts.safetensors``"
    )
    tokens: int = Field(1, ge=1, le=1 << 20, description="last tokens that a decoder's states are averaged over")
    rows: int = Field(ge=2, description="training rows that they are compared with")
    false_alarms: float = Field(
        gt=0, lt=1, description="share of rows like the calibration rows that the flag unfamiliar is raised on, at most"
    )


class ExpertRecord(_Record):
    """A head that answers, in ``experts.safetensors``."""

    source: FeatureSource = Field(description="of its features: which pass")
    offset: Literal["adapter", "zero_shot"] | None = Field(
        description="whose log probabilities it corrects; null: it stands alone"
    )
    rows: int = Field(ge=1, description="labelled rows that it was fitted on")


class EncoderRecord(_Record):
    """The sentence encoder that heads read."""

    name: str = Field(max_length=1024, description="an offline name, a folder, or a hub id")
    weights_hash: str
    tokenizer_hash: str


class ManyClassesRecord(_Record):
    """How a task of many classes was fitted and is answered: from fewer Jacobians than contrasts."""

    limit: int = Field(ge=1, description="of classes: with more, fewer directions than contrasts are computed")
    leading: int = Field(ge=0, description="eigenvectors of a training row's curvature in the fit")
    samples: int = Field(ge=0, description="draws of a label beside them, of the rest of its curvature")
    directions: int = Field(ge=1, description="of an answer")
    reference_rows: int = Field(ge=1, description="training rows with Jacobians of every contrast")
    filled_in: float = Field(
        ge=0, le=1, description="share of the variance that is filled in, mean over the calibration rows"
    )
    largest_error: float | None = Field(
        None,
        ge=0,
        description="largest relative error of the variance over the reference rows, each answered with K of the "
        "others; null for a single one",
    )


class PredictiveRecord(_Record):
    """One way to turn a row into probabilities, and what was fitted for it on the calibration split."""

    temperature: float = Field(gt=0, description="divides the logits; 1 where none was fitted")
    reversed_temperature: float | None = Field(
        None,
        gt=0,
        description="read by nothing any more: of averages over two orders of the choices, by earlier versions",
    )
    nll: float = Field(description="nats, mean over the calibration rows, each under what was fitted without it")
    thresholds: PredictiveThresholds
    conformal: float = Field(description="threshold of its prediction sets")


class RecommendedRecord(_Record):
    """The predictive that answers unless a request names another."""

    predictive: PredictiveName
    reason: str
    chosen_by: Literal["calibration", "configuration", "labels"]
    table: dict[str, dict[str, float]] = Field(description="by predictive, cross-fitted on the calibration split")


class Manifest(_Record):
    """Everything about an artifact but its tensors."""

    format_version: int = Field(description="of the format, see artifacts/FORMAT.md")
    name: str = Field(pattern=f"^{NAME}$")
    created: str = Field(description="UTC, ISO 8601")
    base_model: str = Field(max_length=1024)
    revision: str | None = Field(max_length=256)
    base_weights_hash: str
    quantization: Literal["nf4", "none"]
    dtype: Literal["bfloat16", "float32"]
    tokenizer_hash: str
    template: TemplateRecord
    labels: tuple[str, ...] = Field(min_length=2, max_length=MAX_LABELS)
    readout: ReadOutRecord = Field(description="how the labels' logits are read from the model")
    max_tokens: int = Field(ge=FEWEST_TOKENS)
    question: Question | None = Field(
        None, description="that it answers in POST /v1/systemone; null: none was declared"
    )
    most_options: int | None = Field(
        None, ge=2, description="most choices that a row of the fit had; null: unknown, or the template takes none"
    )
    prior: PriorRecord | None = Field(description="of the adapter's weights; null: there is no adapter")
    experts: dict[ExpertName, ExpertRecord] = Field(default_factory=dict, description="heads that answer, by name")
    pool: dict[MemberName, Annotated[float, Field(gt=0, le=MAX_WEIGHT)]] = Field(
        default_factory=dict, description="weights of the experts that answer together as pooled, by name"
    )
    encoder: EncoderRecord | None = Field(None, description="null where no head reads one")
    familiarity: FamiliarityRecord | None = Field(None, description="null where none was fitted")
    many_classes: ManyClassesRecord | None = Field(None, description="null where every contrast is computed")
    calibration: CalibrationRecord
    predictives: dict[PredictiveName, PredictiveRecord]
    recommended: RecommendedRecord
    metrics: dict[str, Any] = Field(description="on the test split, by method")
    config: dict[str, Any] = Field(description="the run's configuration, resolved")
    data: dict[str, Any] = Field(description="source, sizes and seeds of the splits")
    versions: dict[str, str] = Field(description="of the packages that made it")
    files: dict[str, FileRecord] = Field(description="every other file, by path in the artifact")

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if not self.has_adapter and isinstance(self.readout, ClassificationHeadRecord):
            raise ValueError("a classification head is trained, and has a posterior")
        if self.readout.class_count != len(self.labels):
            raise ValueError(
                f"the read-out has {self.readout.class_count} classes, there are {len(self.labels)} labels"
            )
        if self.many_classes and len(self.labels) <= self.many_classes.limit:
            raise ValueError(f"many_classes is for more than {self.many_classes.limit} labels, not {len(self.labels)}")
        for name in (*(["map"] if self.has_adapter else []), self.recommended.predictive):
            if name not in self.servable:
                raise ValueError(f"the artifact must have the predictive {name!r}")
        if odd := [name for name, of in self.predictives.items() if "low_label_mass" not in of.thresholds.flags]:
            raise ValueError(f"{odd[0]} has no threshold of the flag low_label_mass")
        for of in self.predictives.values():
            self._check_rule(of.thresholds.review)
        self._check_experts()
        if self.question is not None:
            try:
                check_question(self.question, self.template.template(), self.labels, several=self._several)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self

    def _check_rule(self, rule: ReviewRule) -> None:
        """Raise ValueError where a rule's target risks by label or costs are not of the labels, or both are there."""
        stated = [one for one in (rule.by_label, rule.costs) if one is not None]
        if len(stated) > 1 or (stated and self._several):
            raise ValueError(
                "a review rule has target risks by label or costs, and one label of an input is right then"
            )
        if rule.by_label is not None and rule.by_label.keys() != {*self.labels}:
            raise ValueError("a review rule's target risks by label are not of the labels")
        if rule.costs is not None:
            try:
                rule.costs.matrix(self.labels)
            except ConfigError as error:
                raise ValueError(str(error)) from None

    def _check_experts(self) -> None:
        """Raise ValueError where experts, pool and predictives do not fit each other."""
        names: set[str] = set(self.servable)
        if odd := set[str](self.experts) - names:
            raise ValueError(f"the expert {sorted(odd)[0]!r} is no predictive of the artifact")
        alone = {"map"} if not self.has_adapter else set(PREDICTIVES)
        if odd := names - {*self.experts, *alone, *(["pooled"] if self.pool else [])}:
            raise ValueError(
                f"the predictive {sorted(odd)[0]!r} is of an adapter, or of a head or pool that is not there"
            )
        if self.template.answered is not None and self.question is None:
            raise ValueError("an artifact that corrects another model declares the question that it is asked")
        if self.template.answered is None and {"rescaled", "corrected"} & set(self.experts):
            raise ValueError("a head corrects another model's answer, which the template does not have")
        members = {*self.experts, *(["adapter"] if self.has_adapter else [])}
        members |= {"zero_shot"} if self.template.answered else set()
        if odd := set[str](self.pool) - members:
            raise ValueError(f"the pool weighs {sorted(odd)[0]!r}, which the artifact does not have")
        if bool(self.pool) != ("pooled" in self.servable):
            raise ValueError("pooled is a predictive where there is a pool, and nowhere else")
        if not self.has_adapter and (
            not self.experts
            or any(one.offset == "adapter" or one.source == "last_state" for one in self.experts.values())
        ):
            raise ValueError("without an adapter there must be heads, and none that reads it")
        sources = {one.source for one in self.experts.values()}
        if ("encoder" in sources) != (self.encoder is not None):
            raise ValueError("a sentence encoder is named where a head reads one, and nowhere else")

    @property
    def has_adapter(self) -> bool:
        """Whether it has trained weights with a posterior: an adapter's, or a head's alone."""
        return self.prior is not None

    @property
    def sources(self) -> tuple[HeadSource, ...]:
        """The sources of features that its heads need, beside the adapter."""
        used = {one.source for one in self.experts.values()}
        return tuple(source for source in get_args(HeadSource) if source in used)

    @property
    def head_alone(self) -> ClassificationHeadRecord | None:
        """The head that was trained without an adapter; None where there is an adapter."""
        record = self.readout
        return record if isinstance(record, ClassificationHeadRecord) and record.alone else None

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of a row's labels: ``bernoulli`` if several may be right."""
        return self.readout.readout().likelihood

    @property
    def _several(self) -> bool:
        return self.likelihood == "bernoulli"

    @property
    def answers(self) -> AnsweredQuestion | None:
        """The question that it answers, declared or derived; None: no one question of one label has its answers."""
        return answered_question(self.question, self.template.template(), self.labels, several=self._several)

    @property
    def required(self) -> tuple[str, ...]:
        """The files that it must have, next to its manifest."""
        trained = (HEAD,) if self.head_alone else ADAPTER_FILES
        of_adapter = (*trained, POSTERIOR) if self.has_adapter else ()
        compared = (FAMILIARITY,) if self.familiarity and self.familiarity.layers else ()
        return (*of_adapter, *((EXPERTS,) if self.experts else ()), *compared, GOLDEN, SCORES)

    @property
    def servable(self) -> tuple[PredictiveName, ...]:
        """The predictives that a request can ask for, in order."""
        return tuple(self.predictives)

    def unfamiliar(self, familiarity: torch.Tensor | None) -> torch.Tensor | None:
        """Return (batch,) bool which rows get the flag, by how familiar they are; None where nobody measured it."""
        if familiarity is None or self.familiarity is None:
            return None
        return is_unfamiliar(familiarity, self.familiarity.false_alarms)

    @property
    def base(self) -> BaseSpec:
        """The base model this artifact belongs to."""
        record = self.readout
        classes = record.class_count if isinstance(record, ClassificationHeadRecord) else None
        if isinstance(record, NoAnswerRecord) and record.side == "right":
            classes = 0
        return BaseSpec(self.base_model, self.revision, self.quantization, self.dtype, classes)


def parse_manifest(name: str, raw: bytes) -> Manifest:
    """Return the manifest in a file's bytes; ``name`` is what messages call the artifact.

    Raises ArtifactIncompatibleError for another format version, ArtifactCorruptError for what is no manifest.
    """
    try:
        fields = strict_json(raw)
        version = fields["format_version"]
        json.dumps(fields, ensure_ascii=False).encode()  # half of a surrogate pair could not be written again
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactCorruptError(
            f"{MANIFEST} of {name!r} is not a JSON manifest: expected an object with a format_version"
        ) from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactIncompatibleError(
            f"artifact {name!r} has format {str(version)[:32]}, this version reads {FORMAT_VERSION}: "
            + ("update laplora" if type(version) is int and version > FORMAT_VERSION else "package it again")
        )
    if not is_nested_within(fields, MAX_NESTING):
        raise ArtifactCorruptError(f"{MANIFEST} of {name!r} is nested more than {MAX_NESTING} levels deep")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:4])
        raise ArtifactCorruptError(f"{MANIFEST} of {name!r} has bad fields: {problems}") from None
