"""The data section of a job's config, and the splits it describes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from laplora.data.labelled import Task
from laplora.errors import ConfigError
from training.data.examples import Role, Splits
from training.data.files import InlineTemplate, SplitPaths, file_template, read_files
from training.data.hub_tables import PREFIX, HubSplits, read_hub_splits
from training.data.sources import read_benchmark
from training.data.splitting import split, without_long_prompts

#: Config fields that only rows of the user's own choice have, of a file or of the hub.
OWN_FIELDS = frozenset({"name", "template", "labels", "label_field", "label_map", "columns", "groups"})

Dataset = Literal[
    "winogrande_xs",
    "winogrande_s",
    "winogrande_m",
    "winogrande_l",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "commonsenseqa",
    "boolq",
    "mmlu",
    "fields",
    "sst2",
    "rte",
    "file",
]
_HUB_NAME = re.compile(r"hub:[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class DataConfig(BaseModel):
    """Which examples a job trains on, calibrates on and tests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Dataset | str = Field(
        description="a known data set, 'file' for your own rows, or hub:owner/name for a data set of the hub with a "
        "template and labels of yours"
    )
    subjects: tuple[str, ...] = Field(default=(), description="MMLU's subjects, as the data names them")
    source: Literal["wheel"] = Field(
        default="wheel",
        description="where a known data set comes from: the data wheel of the package index. Of sst2 and rte it has "
        "the validation rows alone, which are split three ways; hub:nyu-mll/glue has the others",
    )
    train: int | None = Field(
        default=None,
        ge=1,
        description="training rows; null: those that the other splits leave (several nulls share them 4:1:2 as "
        "train, calibration, test)",
    )
    calibration: int | None = Field(
        default=None,
        ge=0,
        description="rows that choose the prior, the calibrators and the thresholds; null: as for train, except "
        "WinoGrande: as many as training rows, at most 1000, from train_xl's rows after the chosen size",
    )
    test: int | None = Field(default=None, ge=0, description="rows to measure on; null: all, or as for train")
    split_seed: int | None = Field(
        default=None,
        ge=0,
        description="seed of which rows are calibration and test; null: the run's seed. With it, runs of several seeds "
        "differ in their training rows and are measured on the same ones",
    )
    stratify: bool = Field(
        default=False,
        description="whether every split that is drawn has the labels in the proportion of the rows it is drawn from",
    )
    max_prompt_characters: int | None = Field(
        default=None, ge=1, description="rows with a longer prompt are left out of every split; null: none"
    )
    path: Path | SplitPaths | None = Field(
        default=None,
        description="dataset file: one JSON Lines, CSV or Parquet file to be split, or {train, calibration, test} "
        "files; relative to the working directory",
    )
    hub: HubSplits | None = Field(
        default=None,
        description="dataset hub: {config, revision, train, calibration, test}, the hub's subset, revision and splits; "
        "null: its split train",
    )
    columns: dict[str, str] = Field(
        default={},
        description="dataset file or hub: by field of the template the column that has it, where it is called "
        "otherwise, for example {text: sentence}",
    )
    name: str | None = Field(
        default=None, description="dataset file or hub: the task's name; null: that of the first file or the data set"
    )
    template: str | InlineTemplate | None = Field(
        default=None,
        description="dataset file or hub: a known template's name, or {name, text, choice, choice_separator}",
    )
    labels: tuple[str, ...] | dict[str, str] = Field(
        default=(),
        description="dataset file or hub: the label words in class order, each one token after the prompt (or a "
        "text, as readout says); or names that the rows and the answers have, each with the text that stands for it "
        'after the prompt, its leading space included: {refund request: " A", complaint: " B"}',
    )
    label_field: str = Field(default="label", description="dataset file or hub: the field that holds the answer")
    label_map: dict[str, str] = Field(
        default={},
        description="dataset file or hub: from the answer as the rows have it to a label word, for example "
        "{0: negative, 1: positive} (numbers and true or false as they are written there); an answer that it does not "
        "name is a label word already",
    )

    groups: str | None = Field(
        default=None,
        description="dataset file or hub: the field whose value rows share that belong together, such as near-"
        "duplicates or turns of a conversation: no split and no fold parts them; null: none",
    )

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        known = get_args(Dataset)
        if value not in known and not _HUB_NAME.fullmatch(value):
            raise ValueError(f"no data set is called {value[:64]!r}: known are {', '.join(known)}, and hub:owner/name")
        return value

    @field_validator("source", mode="before")
    @classmethod
    def _from_the_wheel(cls, value: Any) -> Any:
        if value != "wheel":
            raise ValueError(
                "Input should be 'wheel'; rows of the hub are a data set of their own, such as "
                "dataset: hub:nyu-mll/glue with a template and labels (docs/training.md, Known data sets)"
            )
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and value and all(isinstance(pair, (list, tuple)) for pair in value):
            value = dict(value)  # as a configuration is written, so that the order of the classes counts
        names = [*value, *value.values()] if isinstance(value, dict) else value
        return _without_booleans(value, names)

    @field_serializer("labels")
    def _in_order(self, labels: tuple[str, ...] | dict[str, str]) -> Any:
        return [list(pair) for pair in labels.items()] if isinstance(labels, dict) else labels

    @field_validator("label_map", mode="before")
    @classmethod
    def _mapped(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        _without_booleans(value, value.values())
        # YAML gives numbers and booleans where a data file has them as values
        return {str(k).lower() if isinstance(k, bool) else str(k): word for k, word in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dataset == "mmlu" and not self.subjects:
            raise ValueError("dataset mmlu needs subjects: name at least one, for example [anatomy]")
        if self.dataset != "mmlu" and self.subjects:
            raise ValueError(f"subjects belong to dataset mmlu, not to {self.dataset}")
        if len(set(self.subjects)) != len(self.subjects):
            raise ValueError("subjects names one twice")
        allowed = OWN_FIELDS if self.own_rows else frozenset()
        allowed |= {"path"} if self.dataset == "file" else {"hub"} if self.hub_id else frozenset()
        # Not those that are set: a recorded configuration sets each, and is read again.
        given = sorted(
            name
            for name in OWN_FIELDS | {"path", "hub"}
            if name not in allowed and getattr(self, name) != type(self).model_fields[name].default
        )
        if given:
            which = "dataset file or hub:" if set(given) <= OWN_FIELDS else "another dataset"
            raise ValueError(f"{given} belong to {which}, not to {self.dataset}")
        if self.own_rows:
            self._check_own()
        return self

    @property
    def hub_id(self) -> str | None:
        """Which data set of the hub it names; None: another kind."""
        return self.dataset.removeprefix(PREFIX) if self.dataset.startswith(PREFIX) else None

    @property
    def own_rows(self) -> bool:
        """Whether template and labels are the user's."""
        return self.dataset == "file" or self.hub_id is not None

    def _check_own(self) -> None:
        needed = ("path", "template", "labels") if self.dataset == "file" else ("template", "labels")
        if missing := [name for name in needed if not getattr(self, name)]:
            raise ValueError(f"dataset {self.dataset} needs {missing}")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be at least two different words, got {list(self.labels)}")
        if any(not word or word != word.strip() for word in self.labels):
            raise ValueError("labels holds an empty word, or one with a space around it")
        if isinstance(self.labels, dict) and not all(self.labels.values()):
            raise ValueError("labels holds a name without a text that stands for it after the prompt")
        words = set(self.label_map.values())
        if unknown := sorted(words - set(self.labels)):
            raise ValueError(f"label_map leads to {unknown}, which are not among the labels {list(self.labels)}")
        if unreachable := sorted(set(self.labels) & set(self.label_map) - words):
            raise ValueError(f"no value of label_map leads to the labels {unreachable}, it leads from them to others")
        try:
            self.own_task()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def own_task(self) -> Task:
        """Return the task of the user's own rows; ConfigError where its template is unknown or has no placeholder."""
        assert self.template is not None
        if self.hub_id is not None:
            name = self.hub_id.rpartition("/")[2]
        else:
            assert self.path is not None
            name = (self.path.train if isinstance(self.path, SplitPaths) else self.path).stem
        texts = tuple(self.labels.values()) if isinstance(self.labels, dict) else None
        return Task(self.name or name, file_template(self.template), tuple(self.labels), texts)


def _without_booleans(value: Any, words: Any) -> Any:
    if isinstance(words, Iterable) and any(isinstance(word, bool) for word in words):
        raise ValueError("YAML reads unquoted Yes, No, true and false as true or false: put the words in quotes")
    return value


def load_splits(
    config: DataConfig,
    *,
    seed: int,
    hold_out: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Splits:
    """Return the disjoint, deduplicated splits that a config describes; the same on every machine.

    Args:
        hold_out: whether calibration rows are kept apart; else they are training rows.
        progress: takes one line per step and per warning; without it, lines about fetching go to standard error.

    Raises:
        ConfigError: a file's template and labels cannot work together.
        DataError: a file, row, field or split that cannot be used; the message names it.
        DownloadError: the data could not be fetched.
    """
    if config.dataset == "file":
        assert config.path is not None
        source = read_files(
            config.path, config.own_task(), config.label_field, config.label_map, config.columns, config.groups
        )
    elif config.hub_id is not None:
        source = read_hub_splits(
            config.hub_id,
            config.hub or HubSplits(),
            config.own_task(),
            config.label_field,
            config.label_map,
            config.columns,
            config.groups,
        )
    else:
        source = read_benchmark(config.dataset, config.subjects, progress=progress)
    if config.max_prompt_characters is not None:
        source = without_long_prompts(source, config.max_prompt_characters)
    counts: dict[Role, int | None] = {"train": config.train, "calibration": config.calibration, "test": config.test}
    seeds = {"seed": seed} if config.split_seed is None else {"seed": config.split_seed, "train_seed": seed}
    splits = split(source, counts, **seeds, hold_out=hold_out, stratify=config.stratify)
    if progress is not None:
        for line in splits.report["warnings"]:
            progress(f"warning: {line}")
    return splits
