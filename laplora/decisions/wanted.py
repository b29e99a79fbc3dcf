"""The aims of decisions: target risks, by answered label if they differ, or costs of wrong answers and of a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from laplora.errors import ConfigError

if TYPE_CHECKING:
    import torch

#: Stands for every label that is not named.
OTHERS = "*"
Value = TypeVar("Value")
Cost = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Risk = Annotated[float, Field(gt=0, lt=1)]


def _kind(value: object) -> str:
    return "(by label)" if isinstance(value, Mapping) else "(number)"


#: Errors are told of what was meant, a number or names with numbers. Places of errors have the tags.
_BY_KIND = Discriminator(_kind)
Costly = Annotated[Annotated[Cost, Tag("(number)")] | Annotated[dict[str, Cost], Tag("(by label)")], _BY_KIND]
Risks = Annotated[
    Annotated[Risk, Tag("(number)")] | Annotated[dict[str, Risk], Field(min_length=1), Tag("(by label)")], _BY_KIND
]


class Costs(BaseModel):
    """Costs in any one unit, such as euros or minutes. A right answer costs nothing.

    Answers are those of Bayes' rule with a reject option (Chow 1970): the label of least expected cost answers, and it
    is accepted if it is expected to cost at most what a person's look costs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    review: Cost = Field(description="Of a person's look, who then knows the right label, in any unit.", examples=[2.0])
    wrong: Annotated[Annotated[Cost, Tag("(number)")] | Annotated[dict[str, Costly], Tag("(by label)")], _BY_KIND] = (
        Field(
            description="Of an accepted answer that is wrong, in the same unit: a number; or by right label a number, "
            "or by right label and answered label. * stands for all labels that are not named.",
            examples=[{"fraud": 50.0, "*": 5.0}],
        )
    )

    def matrix(self, labels: Sequence[str]) -> torch.Tensor:
        """Return (classes, classes) float64, the cost at each right label (row) of each answered one (column).

        Raises:
            ConfigError: a name that is none of the labels, or a label without a cost.
        """
        import torch  # a server reads its settings without

        costs = torch.empty(len(labels), len(labels), dtype=torch.float64)
        of_right: list[Any] = by_label(self.wrong, labels, "costs.wrong")
        for place, (label, of) in enumerate(zip(labels, of_right, strict=True)):
            if isinstance(of, Mapping):
                if label in self.wrong and of.get(label):  # type: ignore[operator]  # a mapping, as one of it is
                    raise ConfigError(
                        f"costs.wrong states a cost of {label!r} for {label!r}: a right answer costs nothing"
                    )
                of = torch.tensor(by_label({label: 0.0, **of}, labels, f"costs.wrong of {label!r}"))
            costs[place] = of
        return costs.fill_diagonal_(0)


#: The aim of decisions: a target risk, one by answered label, or what mistakes cost.
Wanted = float | Mapping[str, float] | Costs


def by_label(values: Value | Mapping[str, Value], labels: Sequence[str], what: str) -> list[Value]:
    """Return what each label has, in order: one value for all, or by name, with ``OTHERS`` for those not named.

    Args:
        what: says in errors what it is.

    Raises:
        ConfigError: a name that is none of the labels, or a label without a value.
    """
    if not isinstance(values, Mapping):
        return [values] * len(labels)
    if OTHERS in labels:
        raise ConfigError(f"{what} is by label, and a label is named {OTHERS!r}, which stands for all others")
    if unknown := sorted(values.keys() - {*labels, OTHERS}):
        raise ConfigError(f"{what} names {unknown[0][:64]!r}, which is none of the labels {list(labels)[:8]}")
    if missing := [label for label in labels if not values.keys() & {label, OTHERS}]:
        raise ConfigError(f"{what} says nothing of the label {missing[0]!r}: name it, or give {OTHERS!r} for the rest")
    return [values[label if label in values else OTHERS] for label in labels]
