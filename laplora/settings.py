"""The settings of a fit: the posterior and its prior, the calibration, and the predictives. Frozen and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laplora.decisions.conformal import ConformalScore
from laplora.decisions.wanted import Costs, Risks, Wanted, by_label
from laplora.features.outputs import HeadSource
from laplora.head import FOLDS
from laplora.predictive.kinds import PredictiveName
from laplora.prompts.questions import Question


class Section(BaseModel):
    """A frozen part of a configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LaplaceSettings(Section):
    """The posterior and its prior."""

    structure: Literal["joint_core", "ekfac", "kfac_reduce"] = Field(
        "joint_core", description="form of the curvature: over all blocks together, or by block"
    )
    subset: str = Field(
        "all",
        description="matrices that the posterior covers: all, values_b (lora_B of v_proj), last_layer, last_4_layers, "
        "or regex: and an expression",
    )
    rank: int = Field(
        5,
        ge=1,
        description="kept eigenvectors k of each matrix's wide side; for joint_core their mean over the matrices",
    )
    oversampling: int = Field(10, ge=0, description="extra sketch columns beyond k")
    joint_rank: int = Field(50, ge=1, description="directions of joint_core over all blocks together")
    batch_size: int = Field(8, ge=1, description="rows a batch; does not change the result")
    factor_dtype: Literal["bfloat16", "float32"] = Field(
        "float32", description="number format of stored bases and directions"
    )
    prior: Literal["validation", "evidence"] = Field(
        "validation",
        description="how the served prior is chosen: by the calibration rows' likelihood, or the training rows' "
        "evidence",
    )
    granularity: Literal["scalar", "group"] = Field(
        "scalar", description="one prior precision in all, or per lora_A / lora_B"
    )

    @property
    def requested(self) -> tuple[str, str]:
        """Method and granularity of the prior that is served."""
        return self.prior, self.granularity


class CalibrationSettings(Section):
    """Thresholds taken from the calibration split."""

    folds: int = Field(
        FOLDS,
        ge=2,
        description="of the cross-fitting: what judges a row is fitted on the other folds; with rows: cross_fit also "
        "the number of adapters, each trained on all folds but one",
    )
    target_risk: Risks = Field(
        0.05, description="error rate allowed among accepted answers, or by answered label; *: all other labels"
    )
    costs: Costs | None = Field(
        None, description="in place of the target risk, what a wrong answer and a person's look cost"
    )
    guarantee: Literal["empirical", "upper_bound"] = Field(
        "empirical",
        description="of the target risk: empirical, what the calibration rows, one mistake more and a smooth curve of "
        "errors say stays within it; upper_bound, with the given confidence, of new rows with MAP entropy up to the "
        "threshold at most target_risk are accepted and wrong; among the accepted alone the rate may be higher by what "
        "flags and disagreement take out (takes many calibration rows)",
    )
    confidence: float = Field(0.9, gt=0, lt=1, description="of the guarantee upper_bound")
    coverage: float = Field(0.9, gt=0, lt=1, description="of the split-conformal prediction sets")
    ordered: bool = Field(
        False,
        description="whether the labels are in an order, such as grades: prediction sets are intervals, answers have "
        "an expected label, and metrics the distance from the right one",
    )
    unfamiliar_rate: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="share of rows like the calibration rows that the flag unfamiliar is raised on, at most; n rows "
        "tell none below 1 / (n + 1); 0: no familiarity is fitted",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> CalibrationSettings:
        if self.costs is not None and "target_risk" in self.model_fields_set:
            raise ValueError("costs stand in place of target_risk: state one of them")
        return self

    def check(self, labels: Sequence[str]) -> None:
        """Raise ConfigError where the target risks or costs are not of these labels."""
        if self.costs is not None:
            self.costs.matrix(labels)
        by_label(self.target_risk, labels, "target_risk")

    @property
    def wanted(self) -> Wanted:
        """The target risk, those by label, or the costs that decide whether an answer is accepted."""
        return self.target_risk if self.costs is None else self.costs

    @property
    def highest_risk(self) -> float:
        return self.target_risk if isinstance(self.target_risk, float) else max(self.target_risk.values())

    @property
    def score(self) -> ConformalScore:
        """The score of the prediction sets, as an artifact records it."""
        return "interval" if self.ordered else "lac"


class PredictiveSettings(Section):
    """Ways to turn a row into probabilities, beside ``map`` and ``laplace``; one switch each."""

    temperature: bool = Field(True, description="temperature scaling of MAP")
    conditioned: bool = Field(
        True,
        description="MAP with a temperature, corrected by a head on its last states that the calibration rows' labels "
        "train",
    )
    serve: Literal["auto", PredictiveName] = Field(
        "auto", description="which one answers by default; auto: what the calibration split recommends"
    )

    @property
    def names(self) -> tuple[PredictiveName, ...]:
        """Every predictive that is on, in the order of the report."""
        switches: dict[PredictiveName, bool] = {
            "map": True,
            "temperature": self.temperature,
            "conditioned": self.conditioned,
            "laplace": True,
        }
        return tuple(name for name, on in switches.items() if on)

    @model_validator(mode="after")
    def _fits(self) -> PredictiveSettings:
        if self.serve in ("temperature", "conditioned") and self.serve not in self.names:
            raise ValueError(f"serve: {self.serve} is off; on are {list(self.names)}")
        return self


class ExpertSettings(Section):
    """Heads on what a model says without its adapter, and on a sentence encoder; every labelled row trains them."""

    names: tuple[HeadSource, ...] = Field(
        (),
        description="heads to fit: frozen (states of the base without adapter), encoder (embeddings), options (each "
        "option's own states). Empty: of a model as it is those that suit its template, of a trained one none",
    )
    encoder: str | None = Field(
        "all-minilm-l6-v2",
        description="sentence encoder: an offline name, a folder of sentence-transformers, or a hub id; null: off",
    )
    keep_rows: bool = Field(
        True,
        description="whether an artifact keeps the labelled rows' features, from which heads learn further labels; "
        "they tell nearly as much of the rows as their texts",
    )


class ManyClasses(Section):
    """Fewer directions than contrasts, for tasks of many classes (``laplora.jacobians.many_classes``)."""

    limit: int = Field(16, ge=2, description="above so many classes a fit and an answer compute fewer directions")
    leading: int = Field(2, ge=0, description="of a fit: leading eigenvectors of each training row's curvature")
    samples: int = Field(
        2, ge=0, description="of a fit: labels drawn beside them, for the rest; with leading at least 1"
    )
    directions: int = Field(3, ge=1, description="of an answer: directions whose Jacobians are computed")
    reference_rows: int = Field(
        24,
        ge=1,
        description="training rows with Jacobians of every contrast, from which an answer's others are filled in",
    )

    @model_validator(mode="after")
    def _some(self) -> ManyClasses:
        if self.leading + self.samples < 1:
            raise ValueError("leading and samples are both 0: a fit would compute nothing")
        return self


class FitSettings(Section):
    """Everything that a fit takes beside the model and the rows."""

    laplace: LaplaceSettings = LaplaceSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    predictives: PredictiveSettings = PredictiveSettings()
    experts: ExpertSettings = ExpertSettings()
    many_classes: ManyClasses = Field(
        ManyClasses(), description="from how many classes on fewer directions than contrasts are computed"
    )
    question: Question | None = Field(
        None,
        description="{type, instructions, options, yes_label, state}: the question that the artifact answers in POST "
        "/v1/systemone; null: a choice among the labels, with the template's text as instructions",
    )
    seed: int = Field(0, ge=0, description="of splits, sketches, folds and made-up inputs")
