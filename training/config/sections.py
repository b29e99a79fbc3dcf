"""The sections of a run's configuration: base, adapter, optimizer, posterior, calibration, predictives, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laplora.decisions.conformal import ConformalScore
from laplora.posterior.structures import granularities
from laplora.predictive.kinds import PredictiveName


class Section(BaseModel):
    """A frozen part of a configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseConfig(Section):
    """The base model."""

    model: str = Field("smollm2-135m-instruct", description="offline model name, folder, or hub id")
    revision: str | None = Field(None, description="hub revision; null: the default branch")
    quantization: Literal["nf4", "none"] = Field("nf4", description="nf4: 4-bit NormalFloat, double quantization")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="activations and unquantized weights")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dequantize: bool | None = Field(
        None,
        description="turn 4-bit weights into plain ones of the same values at load; null: on a CPU with the memory "
        "for it",
    )


class AdapterConfig(Section):
    """The LoRA adapter; defaults as in Yang et al. (arXiv 2308.13111)."""

    rank: int = Field(8, ge=1, description="LoRA rank r")
    alpha: int = Field(16, ge=1, description="LoRA alpha; the update is scaled by alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the adapters' input, in training only")
    targets: tuple[str, ...] = Field(("q_proj", "v_proj", "lm_head"), min_length=1, description="module names to adapt")
    save_dtype: Literal["bfloat16", "float32"] = Field(
        "float32", description="number format of the saved adapter; curvature is measured after the rounding"
    )


class OptimizerConfig(Section):
    """The fine-tuning loop; defaults as in Yang et al. (arXiv 2308.13111)."""

    learning_rate: float = Field(5e-5, gt=0, description="peak AdamW step size")
    schedule: Literal["linear", "constant", "cosine"] = Field("linear", description="of the step size, to 0")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    steps: int = Field(2500, ge=1, description="optimizer steps")
    batch_size: int = Field(6, ge=1, description="rows a step")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints; a run resumes at the last")


class LaplaceConfig(Section):
    """The posterior and its prior."""

    structure: Literal["joint_core", "ekfac", "kfac_reduce", "joint", "exact"] = Field(
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
    joint_rank: int = Field(50, ge=1, description="directions of the structures over all blocks together")
    batch_size: int = Field(8, ge=1, description="rows a batch; does not change the result")
    factor_dtype: Literal["bfloat16", "float32"] = Field(
        "float32", description="number format of stored bases and directions"
    )
    prior: Literal["validation", "evidence", "leave_one_out"] = Field(
        "validation",
        description="how the served prior is chosen: by the calibration rows' likelihood, the training rows' evidence, "
        "or analytic leave-one-out of the training rows (structure exact)",
    )
    granularity: Literal["scalar", "group", "module"] = Field(
        "scalar", description="one prior precision in all, per lora_A / lora_B, or per matrix"
    )

    @model_validator(mode="after")
    def _fits(self) -> LaplaceConfig:
        if self.prior == "validation" and self.granularity == "module":
            raise ValueError("prior: validation cannot fix one precision per module; use scalar or group")
        if self.prior == "leave_one_out" and (self.structure != "exact" or self.granularity == "module"):
            raise ValueError("prior: leave_one_out needs structure: exact, and granularity scalar or group")
        if self.granularity not in granularities(self.structure):
            allowed = " or ".join(granularities(self.structure))
            raise ValueError(
                f"structure: {self.structure} takes no prior of granularity {self.granularity}; use {allowed}"
            )
        return self


class CalibrationConfig(Section):
    """Thresholds taken from the calibration split."""

    target_risk: float = Field(0.05, gt=0, lt=1, description="error rate allowed among accepted answers")
    guarantee: Literal["empirical", "upper_bound"] = Field(
        "empirical",
        description="of the target risk: empirical, the calibration rows and one mistake more stay within it; "
        "upper_bound, with the given confidence, of new rows with MAP entropy up to the threshold at most target_risk "
        "are accepted and wrong; among the accepted alone the rate may be higher by what flags and disagreement take "
        "out (takes many calibration rows)",
    )
    confidence: float = Field(0.9, gt=0, lt=1, description="of the guarantee upper_bound")
    coverage: float = Field(0.9, gt=0, lt=1, description="of the split-conformal prediction sets")
    conformal: ConformalScore = Field(
        "lac",
        description="score of the prediction sets: lac gives the smallest sets on average, aps sets that grow where "
        "the model is unsure",
    )


class PredictivesConfig(Section):
    """Ways to turn a row into probabilities, beside ``map`` and ``laplace``; one switch each."""

    temperature: bool = Field(True, description="temperature scaling of MAP, and of the ensemble where there is one")
    laplace_temperature: bool = Field(True, description="the Laplace predictive with a temperature")
    fast: int = Field(
        400,
        ge=0,
        description="inputs, beside the training and calibration rows, whose exact covariances are distilled into one "
        "that costs a forward pass; 0: off",
    )
    fast_inputs: Path | None = Field(
        None,
        description="JSON Lines or CSV of unlabelled inputs with the template's fields to take them from; null, or too "
        "few: variants of the training rows",
    )
    ensemble: int = Field(
        0, ge=0, description="adapters kept from the second half of training, the final one included; 0: off"
    )
    mc_dropout: int = Field(
        0, ge=0, description="dropout masks to average over (each one a forward pass); needs adapter.dropout; 0: off"
    )
    laplace_ensemble: bool = Field(False, description="a posterior for each adapter of the ensemble, averaged")
    serve: Literal["auto", PredictiveName] = Field(
        "auto", description="which one answers by default; auto: what the calibration split recommends"
    )

    @property
    def names(self) -> tuple[PredictiveName, ...]:
        """Every predictive that is on, in the order of the report."""
        switches: dict[PredictiveName, bool] = {
            "map": True,
            "temperature": self.temperature,
            "fast": self.fast > 0,
            "laplace": True,
            "laplace_temperature": self.laplace_temperature,
            "ensemble": self.ensemble > 0,
            "ensemble_temperature": self.ensemble > 0 and self.temperature,
            "laplace_ensemble": self.laplace_ensemble,
            "mc_dropout": self.mc_dropout > 0,
        }
        return tuple(name for name, on in switches.items() if on)

    @model_validator(mode="after")
    def _fits(self) -> PredictivesConfig:
        for name, count in (("ensemble", self.ensemble), ("mc_dropout", self.mc_dropout)):
            if count == 1:
                raise ValueError(f"{name}: 1 averages over one member, which is no average: use 2 or more, or 0")
        if self.laplace_ensemble and not self.ensemble:
            raise ValueError("laplace_ensemble needs an ensemble: set ensemble to the number of adapters to keep")
        if self.serve == "fast":
            raise ValueError("serve: fast stands in for laplace in requests that ask for it, and answers no others")
        if self.fast_inputs and not self.fast:
            raise ValueError("fast_inputs is given and fast is off: set fast to how many of them to use")
        if self.serve != "auto" and self.serve not in self.names:
            raise ValueError(f"serve: {self.serve} is off; on are {list(self.names)}")
        return self


class EvaluationConfig(Section):
    """What is measured on the test split beside every predictive."""

    order_average: bool = Field(
        False,
        description="MAP and the served predictive averaged over the orders of the choices too: as many prompts a row "
        "as orders (2 of two choices, 6 of three, else one for each choice)",
    )
