"""The section ``optimizer``: what is given as it stands, and what is filled in once rows and base are known."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from laplora.settings import Section


class OptimizerConfig(Section):
    """The fine-tuning loop; defaults as in Yang et al. (arXiv 2308.13111) and ``training.config.size_defaults``."""

    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak AdamW learning rate; null: by the base's number of parameters "
        "(below 1e9 5e-4, below 5e9 2e-4, else 5e-5)",
    )
    schedule: Literal["linear", "constant", "cosine"] = Field("linear", description="of the learning rate, to 0")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    steps: int | None = Field(None, ge=1, description="optimizer steps; null: as epochs says")
    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="passes over the training rows, in place of steps; both null: by the base's number of parameters "
        "(below 5e9 8 epochs in at most 2500 steps, else 2500 steps)",
    )
    batch_size: int = Field(6, ge=1, description="rows of a forward pass; with gradient_accumulation 1 rows a step")
    gradient_accumulation: int = Field(
        1, ge=1, description="batches a step, whose rows' mean gradient is taken: batch_size times as many rows a step"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again on the way back in place of keeping them: less memory, more time"
    )
    group_by_length: bool = Field(
        False,
        description="a step's rows are of like length, so that less is padded; the order stays random beyond that",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    loraplus_lr_ratio: float | None = Field(
        None,
        ge=1,
        description="LoRA+: the rate of every lora_B is so many times the learning rate; null: plain LoRA",
    )
    checkpoint_every: int = Field(
        500,
        ge=1,
        description="steps between checkpoints; a run resumes at the last; with evaluate_every they are its steps",
    )
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="steps between evaluations on selection rows, of whose steps the one with the least loss is kept; "
        "null: none, and the last step is kept",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without a better one after which training stops; null: it goes to its end",
    )
    selection_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="with evaluate_every: share of the training rows that choose the step, are not trained on, and "
        "neither calibrate nor test",
    )

    @model_validator(mode="after")
    def _one_length(self) -> OptimizerConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given: give one of them")
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts evaluations: set evaluate_every too")
        return self

    @property
    def step_count(self) -> int:
        """Optimizer steps, of a configuration that is filled in."""
        assert self.steps is not None, "the configuration is not filled in"
        return self.steps

    @property
    def peak_rate(self) -> float:
        """Peak learning rate, of a configuration that is filled in."""
        assert self.learning_rate is not None, "the configuration is not filled in"
        return self.learning_rate

    @property
    def step_rows(self) -> int:
        return self.batch_size * self.gradient_accumulation

    def steps_of(self, epochs: float, rows: int) -> int:
        """Return as many steps as so many epochs over rows take, a part of a step counted as one."""
        return max(1, math.ceil(epochs * math.ceil(rows / self.step_rows)))
