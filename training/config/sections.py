"""The sections of a run's configuration that the library does not have, or has otherwise."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from laplora.errors import ConfigError
from laplora.features.outputs import HeadSource
from laplora.models.spread import Sharing, Spread
from laplora.settings import CalibrationSettings, ExpertSettings, LaplaceSettings, ManyClasses, Section


class BaseConfig(Section):
    """The base model."""

    model: str = Field(
        "smollm2-135m-instruct",
        description="offline model name, folder, hub id, or an address: hf://, s3://, gs://, https://",
    )
    revision: str | None = Field(None, description="hub revision; null: the default branch")
    quantization: Literal["nf4", "none"] = Field("nf4", description="nf4: 4-bit NormalFloat, double quantization")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="activations and unquantized weights")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    device_map: Sharing | dict[str, int | str] | None = Field(
        None,
        description="spreads the base over several GPUs of one process: one of accelerate's ways, or the GPU of each "
        "module by its path, the input embedding's first; null: it is on the one device",
    )
    max_memory: dict[int | str, int | str] | None = Field(
        None, description="most weights on each GPU with device_map, as {0: 20GiB, 1: 20GiB}; null: what is free there"
    )
    dequantize: bool | None = Field(
        None,
        description="turn 4-bit weights into plain ones of the same values at load; null: on a CPU with the memory "
        "for it",
    )

    @property
    def spread(self) -> Spread | None:
        """How the base is spread over several devices; None: it is on one."""
        return Spread.of(self.device_map, self.max_memory)

    @model_validator(mode="after")
    def _lies_somewhere(self) -> BaseConfig:
        try:
            spread = self.spread
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if spread is not None and self.device != "auto":
            raise ValueError(
                f"device_map says where the base is, and so does device, {self.device!r}: leave it at auto"
            )
        return self


class AdapterConfig(Section):
    """The LoRA adapter; defaults as in Yang et al. (arXiv 2308.13111)."""

    rank: int = Field(8, ge=1, description="LoRA rank r")
    alpha: int = Field(16, ge=1, description="LoRA alpha; the update is scaled by alpha / r, or as rslora says")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the adapters' input, in training only")
    targets: tuple[str, ...] = Field(("q_proj", "v_proj", "lm_head"), min_length=1, description="module names to adapt")
    save_dtype: Literal["bfloat16", "float32"] = Field(
        "float32", description="number format of the saved adapter; curvature is measured after the rounding"
    )
    rslora: bool = Field(
        False, description="rank-stabilised LoRA: the update is scaled by alpha / sqrt(r) in place of alpha / r"
    )


class CutConfig(Section):
    """The part that is cut from a prompt that is too long."""

    field: str = Field(description="of the template, a text; or prompt")
    side: Literal["left", "right"] = Field("right", description="at which its text is cut")


class LaplaceConfig(LaplaceSettings):
    """The posterior and its prior."""

    many_classes: ManyClasses = ManyClasses()

    @property
    def settings(self) -> LaplaceSettings:
        """Its settings for the library's fit."""
        return LaplaceSettings(**{name: getattr(self, name) for name in LaplaceSettings.model_fields})


class CalibrationConfig(CalibrationSettings):
    """Which rows calibrate, and what is fitted on them."""

    rows: Literal["held_out", "cross_fit"] = Field(
        "held_out",
        description="held_out: the calibration split, which no adapter is trained on; cross_fit: every training and "
        "calibration row, answered by an adapter of the folds without it, and the served adapter is trained on all",
    )

    @model_validator(mode="after")
    def _promised(self) -> CalibrationConfig:
        if self.rows == "cross_fit" and self.guarantee == "upper_bound":
            raise ValueError(
                "guarantee: upper_bound counts mistakes of the served adapter on rows that it has not seen. With rows: "
                "cross_fit there are none: it was trained on all of them, and the folds' adapters made the mistakes. "
                "Use rows: held_out, or guarantee: empirical"
            )
        return self

    @property
    def cross_fits(self) -> bool:
        """Whether every label trains the served adapter."""
        return self.rows == "cross_fit"

    @property
    def settings(self) -> CalibrationSettings:
        """Its settings for the library's fit."""
        return CalibrationSettings(**{name: getattr(self, name) for name in CalibrationSettings.model_fields})


class ExpertsConfig(ExpertSettings):
    """Heads on the base as it is, which every label trains."""

    names: tuple[HeadSource, ...] = Field(
        (), description="frozen, encoder or options; none: those that suit the template"
    )
    beside: bool = Field(
        True,
        description="whether they are fitted beside an adapter too and pooled with it: answers then take their passes",
    )


class EvaluationConfig(Section):
    """Measurements on the test split beside every predictive."""

    report_texts: bool = Field(
        False,
        description="whether the report that the artifact takes along shows the texts of its worst and most uncertain "
        "rows; the one in the run's folder always does",
    )
