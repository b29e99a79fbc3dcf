"""The one configuration of a training run: YAML in, frozen and checked values out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from laplora.answers.golden import MAX_ANSWERS
from laplora.decisions.conformal import ConformalScore
from laplora.errors import ConfigError
from laplora.posterior.structures import granularities
from laplora.predictive.kinds import PredictiveName
from training.data.corruptions import CorruptionKind
from training.data.section import DataConfig
from training.workspace.folders import folder_of

#: A plain folder or file.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


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

    structure: Literal[
        "ekfac", "kfac_reduce", "kfac_expand", "kfac_last", "diagonal", "joint_core", "joint", "exact", "ella"
    ] = Field("joint_core", description="form of the curvature: by block, by parameter, or over all blocks together")
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
    laplace_temperature: bool = Field(True, description="the Laplace predictive with a temperature of its own")
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


class CorruptionConfig(Section):
    """One way to corrupt the test rows."""

    kind: CorruptionKind = Field(
        description="typos, word_drop, word_shuffle, truncated_context, choice_noise or gibberish"
    )
    severity: float = Field(0.1, gt=0, le=1, description="share of the letters or words that are touched")

    @property
    def name(self) -> str:
        """What its rows are called, for example ``typos-0.1``."""
        return f"{self.kind}-{self.severity:g}"


class StrangerConfig(Section):
    """Texts of another data set, which are no questions to the artifact and have no answer."""

    data: DataConfig = Field(description="the data set, as for the run itself; its test split is used")
    field: str = Field(description="which field of its rows is the text")


class ShiftConfig(Section):
    """Rows of other distributions than the training rows', on which the finished artifact is measured."""

    rows: int = Field(200, ge=2, description="rows of each of these sets, at most; drawn by the run's seed")
    sets: dict[str, DataConfig] = Field(
        {}, description="other data sets by a name; their test splits are asked with the artifact's own template"
    )
    strangers: dict[str, StrangerConfig] = Field(
        {}, description="texts without an answer by a name, in the place of the artifact's only field"
    )
    corruptions: tuple[CorruptionConfig, ...] = Field((), description="of the run's own test rows")

    @model_validator(mode="after")
    def _fits(self) -> ShiftConfig:
        names = [*self.sets, *self.strangers, *(c.name for c in self.corruptions)]
        if not names:
            raise ValueError("name at least one set, stranger or corruption")
        for name in names:
            if not re.fullmatch(_NAME, name) or name == "test" or names.count(name) > 1:
                raise ValueError(
                    f"{name!r}: each set and corruption needs a name of its own, of letters, digits, '.', '_' and '-', "
                    "other than test, which is the run's own test split"
                )
        return self


class EvaluationConfig(Section):
    """What is measured on the test split beside every predictive."""

    order_average: bool = Field(
        False,
        description="MAP and the served predictive averaged over the orders of the choices too: as many prompts a row "
        "as orders (2 of two choices, 6 of three, else one for each choice)",
    )


class RunConfig(Section):
    """One run: fine-tune, fit, evaluate, package."""

    name: str = Field(pattern=_NAME, max_length=55, description="of the run and its artifact")
    seed: int = Field(0, ge=0, description="of splits, initial adapter, dropout and row order")
    base: BaseConfig = BaseConfig()
    data: DataConfig
    max_tokens: int = Field(512, ge=8, description="longest prompt, in tokens; longer ones are cut on the left")
    adapter: AdapterConfig = AdapterConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    laplace: LaplaceConfig = LaplaceConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    predictives: PredictivesConfig = PredictivesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    golden_inputs: tuple[dict[str, Any], ...] = Field(
        (),
        max_length=MAX_ANSWERS,
        description="inputs whose answers the artifact records and the server replays; empty: four of calibration",
    )
    shift: ShiftConfig | None = Field(None, description="what the job shift measures the artifact on; null: nothing")
    runs: Path = Field(Path("runs"), description="folder for intermediate results")
    artifacts: Path = Field(Path("artifacts"), description="folder for finished artifacts")

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        wanted = self.predictives
        if wanted.mc_dropout and not self.adapter.dropout:
            raise ValueError("predictives.mc_dropout needs dropout to average over: set adapter.dropout above 0")
        if wanted.ensemble and self.optimizer.steps < 2 * (wanted.ensemble - 1):
            raise ValueError(
                f"predictives.ensemble: {self.optimizer.steps} steps have no {wanted.ensemble} different adapters in "
                "their second half: train longer or keep fewer"
            )
        if wanted.laplace_ensemble and self.laplace.prior == "leave_one_out":
            raise ValueError("predictives.laplace_ensemble takes laplace.prior validation or evidence")
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run's intermediate results; no other configuration's (``training.workspace.folders``)."""
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
    for item in overrides or []:
        _override(raw, item)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise bad_fields(path, error) from None


def bad_fields(path: Path, error: ValidationError) -> ConfigError:
    """Return the error that names every bad field of a configuration, each on a line of its own."""
    lines = []
    for problem in error.errors():
        # A problem of several sections together has no place, and its message names them.
        where = f"{'.'.join(str(part) for part in problem['loc'])}: " if problem["loc"] else ""
        lines.append(f"  {where}{problem['msg'].removeprefix('Value error, ')}")
    return ConfigError(f"{path}: {len(lines)} bad field(s)\n" + "\n".join(lines))


def _override(raw: dict[str, Any], item: str) -> None:
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
    """Return the configuration as JSON values, without what does not change the artifact: folders, and later tests."""
    return config.model_dump(mode="json", exclude={"runs", "artifacts", "shift"})
