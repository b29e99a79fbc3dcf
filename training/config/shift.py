"""The section ``shift``: the rows of other distributions that a finished artifact is measured on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from laplora.settings import Section
from training.config.folders import NAME
from training.data.corruptions import CorruptionKind
from training.data.section import DataConfig

_Name = Annotated[str, Field(pattern=NAME)]


class CorruptionConfig(Section):
    """One way to corrupt the test rows."""

    kind: CorruptionKind = Field(
        description="typos, word_drop, word_shuffle, truncated_context, choice_noise or gibberish"
    )
    severity: float = Field(0.1, gt=0, le=1, description="share of the letters or words that are touched")

    @property
    def name(self) -> str:
        """The name of its rows, for example ``typos-0.1``."""
        return f"{self.kind}-{self.severity:g}"


class OutsideConfig(Section):
    """Texts of another data set, which are no questions to the artifact and have no answer."""

    data: DataConfig = Field(description="the data set, as for the run itself; its test split is used")
    field: str = Field(description="which field of its rows is the text")


class ShiftConfig(Section):
    """Rows of other distributions than the training rows', on which the finished artifact is measured."""

    rows: int = Field(200, ge=2, description="rows of each of these sets, at most; drawn by the run's seed")
    sets: dict[_Name, DataConfig] = Field(
        {}, description="other data sets by a name; their test splits, through the artifact's template"
    )
    out_of_distribution: dict[_Name, OutsideConfig] = Field(
        {}, description="texts without an answer by a name, in the place of the artifact's only field"
    )
    corruptions: tuple[CorruptionConfig, ...] = Field((), description="of the run's test rows")

    @model_validator(mode="after")
    def _names_differ(self) -> ShiftConfig:
        names = [*self.sets, *self.out_of_distribution, *(corruption.name for corruption in self.corruptions)]
        if not names or len({"test", *names}) <= len(names):
            expected = "sets, out_of_distribution or corruptions of different names other than test"
            raise ValueError(f"expected {expected}, got {names}")
        return self
