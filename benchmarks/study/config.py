"""The study's configuration: tasks, seeds, and what every run of it shares."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from laplora.errors import ConfigError
from training.config import (
    AdapterConfig,
    BaseConfig,
    OptimizerConfig,
    RunConfig,
    Section,
    bad_fields,
)
from training.data.section import DataConfig


class StudyTask(Section):
    """One task of the study."""

    data: DataConfig


class StudyConfig(Section):
    """Tasks x seeds x alternatives."""

    name: str = Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="folder of its results")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="of training rows, initial adapter and order")
    base: BaseConfig = BaseConfig()
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    max_tokens: int = Field(256, ge=8, description="longest prompt, in tokens")
    rank: int = Field(5, ge=1, description="kept eigenvectors k of each wide factor, the mean of the joint core's")
    joint_rank: int = Field(50, ge=1, description="directions of the joint posteriors")
    exact_rows: int = Field(
        700,
        ge=1,
        description="the exact posterior is left out where training rows x (classes - 1) are more: its memory",
    )
    batch_size: int = Field(16, ge=1, description="rows a forward pass; does not change the result")
    tasks: dict[str, StudyTask] = Field(min_length=1)
    runs: Path = Field(Path("runs"), description="folder for intermediate results")

    @model_validator(mode="after")
    def _checkpoints(self) -> StudyConfig:
        if self.optimizer.steps is None or self.optimizer.learning_rate is None:
            raise ValueError(
                "optimizer.steps and optimizer.learning_rate must be given: the study compares runs of one"
            )
        return self

    def folder(self, task: str, seed: int) -> Path:
        """Return where the results of one task and seed lie."""
        return self.runs / self.name / task / str(seed)

    def run_config(self, task: str, seed: int) -> RunConfig:
        """Return the configuration of one fine-tuning run."""
        return RunConfig(
            name=f"{task}-{seed}",
            seed=seed,
            base=self.base,
            data=self.tasks[task].data,
            max_tokens=self.max_tokens,
            adapter=self.adapter,
            optimizer=self.optimizer,
            runs=self.folder(task, seed) / "run",
        )


def load_study(path: Path) -> StudyConfig:
    """Return the study in a YAML file.

    Raises:
        ConfigError: no such file, bad YAML, or bad fields, all of them named at once.
    """
    try:
        return StudyConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a study's configuration: {error}") from None
    except ValidationError as error:
        raise bad_fields(path, error) from None
