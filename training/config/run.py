"""The configuration of one run: YAML in, frozen and checked values out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from laplora.answers.golden import MAX_ANSWERS
from laplora.errors import ConfigError
from laplora.prompts.questions import Question
from laplora.readouts.choice import ReadOutName
from laplora.settings import FitSettings, PredictiveSettings, Section
from training.config.folders import NAME, folder_of
from training.config.optimizer import OptimizerConfig
from training.config.sections import (
    AdapterConfig,
    BaseConfig,
    CalibrationConfig,
    CutConfig,
    EvaluationConfig,
    ExpertsConfig,
    LaplaceConfig,
)
from training.data.section import DataConfig

#: Fields that do not change the artifact, which records none of them: folders to write in.
UNRECORDED = frozenset({"runs", "artifacts"})
#: Two ways to say how long training is.
_ALTERNATIVES = ("optimizer.steps", "optimizer.epochs")


class RunConfig(Section):
    """One run: a frozen fit, then, if asked for, fine-tuning with fit, evaluation and packaging."""

    name: str = Field(pattern=NAME, max_length=55, description="of the run and its artifact")
    seed: int = Field(0, ge=0, description="of splits, initial adapter, dropout and row order")
    base: BaseConfig = BaseConfig()
    data: DataConfig
    max_tokens: int = Field(512, ge=8, description="longest prompt, in tokens; longer ones are cut as cut says")
    cut: CutConfig | None = Field(
        None,
        description="{field, side}: which field of a prompt that is too long is cut, and whether at its right or left; "
        "{field: prompt}: the prompt, on the left, instruction and all; null: the longest text of a row, at its right",
    )
    readout: ReadOutName = Field(
        "label_tokens",
        description="how labels are read after the prompt: label_tokens, each one token; label_sequences, each a text "
        "of one or more tokens by its mean log probability (no lm_head among "
        "adapter.targets)",
    )
    question: Question | None = Field(None, description=FitSettings.model_fields["question"].description)
    fine_tune: bool | Literal["auto"] = Field(
        False,
        description="whether an adapter is trained after the frozen fit; auto: if the heads' NLL and the rows say that "
        "it is likely to pay",
    )
    experts: ExpertsConfig = ExpertsConfig()
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    laplace: LaplaceConfig = LaplaceConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    predictives: PredictiveSettings = PredictiveSettings()
    evaluation: EvaluationConfig = EvaluationConfig()
    golden_inputs: tuple[dict[str, Any], ...] | Literal["calibration"] | None = Field(
        None,
        description="inputs whose answers the artifact records and the server replays: their texts leave with it; "
        f"at most {MAX_ANSWERS}; null: made of the template and the labels; calibration: four calibration rows",
    )
    runs: Path = Field(Path("runs"), description="folder for intermediate results")
    artifacts: Path = Field(Path("artifacts"), description="folder for finished artifacts")

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.readout == "label_sequences" and "lm_head" in self.adapter.targets:
            raise ValueError("readout: label_sequences reads all of lm_head: leave lm_head out of adapter.targets")
        return self

    @property
    def fine_tuned(self) -> RunConfig:
        """The configuration with fine-tuning asked for, as a single step of it does."""
        return self.model_copy(update={"fine_tune": True})

    @property
    def fit(self) -> FitSettings:
        """The settings of the library's fit, from a configuration that is filled in."""
        return FitSettings(
            laplace=self.laplace.settings,
            calibration=self.calibration.settings,
            predictives=self.predictives,
            many_classes=self.laplace.many_classes,
            seed=self.seed,
        )

    @property
    def run_dir(self) -> Path:
        """Folder of this run's intermediate results; no other configuration's (``training.workspace.folders``).

        Raises:
            ConfigError: a configuration that leaves its training open: a job fills it in when it opens the run.
        """
        if self.optimizer.steps is None or self.optimizer.learning_rate is None:
            raise ConfigError(f"{self.name}: which folder is its run's is known with optimizer.steps and learning_rate")
        return folder_of(self.runs, self.name, config_hash_fields(self))

    @property
    def artifact_dir(self) -> Path:
        """Folder of the finished artifact, called as the run's folder is: a trial does not replace what is served."""
        return self.artifacts / self.run_dir.name


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Return the configuration in a YAML file.

    Args:
        overrides: ``section.key=value`` strings, the value in YAML.

    Raises:
        ConfigError: no such file, bad YAML, or bad fields, all of them named at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}; the ready ones are in training/configs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections")
    override_all(raw, overrides or [])
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise bad_fields(path, error, RunConfig) from None


def bad_fields(path: Path, error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """Return the error that names every bad field of a configuration of this model, one a line."""
    lines = problems_of(error, model)
    return ConfigError(f"{path}: {len(lines)} bad field(s)\n" + "\n".join(f"  {line}" for line in lines))


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return a line for each bad field of a configuration of this model."""
    lines = []
    for problem in error.errors():
        place, hint = list[str](), ""
        section: type[BaseModel] | None = model
        for part in map(str, problem["loc"]):
            # No field: the name of a kind that a field may have, which pydantic puts into the place, or a typo.
            if section and part not in section.model_fields:
                if part == section.__name__:
                    continue
                if problem["type"] != "extra_forbidden":
                    if isinstance(problem["input"], dict):
                        break  # what is wrong in the section is said of its fields
                    continue
                near = difflib.get_close_matches(part, section.model_fields, n=1)
                hint = f": did you mean {near[0]!r}?" if near else ""
            place.append(part)
            section = _section_of(section, part)
        else:
            # A problem of several sections together has no place, and its message names them.
            where = f"{'.'.join(place)}: " if place else ""
            lines.append(f"{where}{problem['msg'].removeprefix('Value error, ')}{hint}")
    return lines


def _section_of(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """Return the section that a field may be; None: it is a value."""
    field = model.model_fields.get(name) if model else None
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def override_all(raw: dict[str, Any], items: Sequence[str]) -> None:
    """Set fields of raw sections from ``section.key=value``; errors as of ``override``.

    If two fields say the same in two ways, an override of one replaces the other.
    """
    for item in items:
        override(raw, item)
    named = {item.partition("=")[0] for item in items}
    for one, other in (_ALTERNATIVES, _ALTERNATIVES[::-1]):
        section, _, key = other.partition(".")
        if one in named and other not in named and isinstance(raw[section], dict):
            raw[section].pop(key, None)


def override(raw: dict[str, Any], item: str) -> None:
    """Set one field of raw sections from ``section.key=value``; ConfigError where that is none."""
    key, separator, value = item.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes section.key=value, got {item!r}")
    *sections, last = key.split(".")
    place = raw
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise ConfigError(f"--set {key}: {section} is a single value, it has no fields")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: the value is not valid YAML") from None


def config_hash_fields(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, without what does not change the artifact (``UNRECORDED``)."""
    return config.model_dump(mode="json", exclude=set(UNRECORDED))
