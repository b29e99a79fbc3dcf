"""Bodies of POST /artifacts/{name}/condition and /condition/undo."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat

from laplora.artifact.label_changes import LabelChanges
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer, Probability, Strict
from service.http.schemas.inputs import LabelledInput

_DIGEST = "sha256:2c26b46b68ffc68f"
ExpectedDigest = Annotated[
    str | None,
    Field(
        max_length=128,
        description="Digest that the artifact must have, else 409: a try after a lost answer then changes nothing "
        "twice. Unset: whatever version is loaded.",
        examples=[_DIGEST],
    ),
]


class ConditionRequest(Strict):
    """Labelled rows that an artifact is to learn from."""

    changes: LabelChanges | None = Field(None, examples=[None])
    """Changes of the labels; those of the rows are the ones after. From then on rows stay, and need not come again."""
    rows: list[LabelledInput] = Field([])
    """Without changes every row that the new version is to know, 20 or more; those of an earlier call that are left out
    are forgotten, unless labels changed before. With changes new rows alone, 5 or more of each label that is added or
    part of a split. At most max_condition_rows (413 above), none of which trained or calibrated the artifact.
    """
    digest: ExpectedDigest = None
    force: bool = Field(False, examples=[False])
    """Whether to take the new version although it answers worse, instead of 409."""


class UndoRequest(Strict):
    """Which version of an artifact is to go."""

    digest: ExpectedDigest = None


class ConditionFigures(Answer):
    """One predictive on the new rows."""

    predictive: str = Field(description="Its name.", examples=["conditioned"])
    accuracy: Probability = Field(description="Share of right answers, 0 to 1.", examples=[0.89])
    nll: FiniteFloat = Field(description="Mean negative log-likelihood, nats.", examples=[0.29])
    ece: Probability = Field(description="Expected calibration error, 0 to 1.", examples=[0.04])
    brier: FiniteFloat = Field(description="Mean squared error summed over classes, 0 to 2.", examples=[0.18])


class ConditionResponse(Answer):
    """The version that answers from now on, and what the labels change, measured on the new rows. Each was answered
    without its fold, as packaged and with the labels of the other folds learned: never by its own label. After changes
    it is measured on the rows whose label stayed.
    """

    artifact: ArtifactRef = Field(description="The new version.")
    previous: str = Field(description="Digest of the version before.", examples=[_DIGEST])
    recommended: str = Field(examples=["conditioned"])
    """The predictive that answers unless a request names another: chosen anew among those that labels move and
    temperature scaling, unless the configuration named one."""
    rows: int = Field(description="Number of rows compared.", examples=[300])
    folds: int = Field(description="Number of folds.", examples=[5])
    before: ConditionFigures = Field(description="The predictive that the packaged artifact recommends.")
    after: ConditionFigures = Field(
        examples=[{"predictive": "conditioned", "accuracy": 0.89, "nll": 0.29, "ece": 0.04, "brier": 0.18}]
    )
    """The same predictive, or where no label moves it the pool, or conditioned; each row by the labels of the other
    folds.
    """
    difference: FiniteFloat = Field(description="NLL after less before, nats.", examples=[-0.05])
    standard_error: FiniteFloat = Field(examples=[0.02])
    """Standard error of the difference, nats. A difference above one of it, and above 1/2 nat over all rows together,
    is refused, unless force is set.
    """


class UndoResponse(Answer):
    """The version as it was packaged, which answers again."""

    artifact: ArtifactRef = Field(description="The packaged version.")
    previous: str = Field(description="Digest of the version that went.", examples=[_DIGEST])
