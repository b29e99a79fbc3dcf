"""Changes of an artifact's labels in one step: what is asked for, the labels after them, and the record of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from laplora.decisions.wanted import OTHERS, Costs, Risks, Wanted
from laplora.errors import ConfigError

if TYPE_CHECKING:  # a server's schemas load no torch
    from laplora.artifact.manifest import Manifest


class LabelChanges(BaseModel):
    """Changes of labels in one step, with the target risk or costs that the new labels need."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rename: dict[str, str] = Field({}, description="By label its new name.", examples=[{"neg": "negative"}])
    merge: dict[str, list[str]] = Field({}, description="By new label those that become it.", examples=[{}])
    split: dict[str, list[str]] = Field({}, description="By label its parts, two or more.", examples=[{}])
    add: list[str] = Field([], description="New labels, which come last.", examples=[[]])
    target_risk: Risks | None = Field(None, description="As of a request; null: as before.", examples=[None])
    costs: Costs | None = Field(None, description="In its place, as of a request.", examples=[None])


@dataclass(frozen=True)
class Relabelling:
    """Labels before and after changes; ``places``: of former ones among ``after``, -1 of one that is split."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    places: tuple[int, ...]
    changes: LabelChanges

    @classmethod
    def of(cls, changes: LabelChanges, labels: Sequence[str], ordered: bool = False) -> Relabelling:
        """Return what changes make of labels, which may be ``ordered``; ConfigError: changes that they cannot have."""
        merged = {name: new for new, names in changes.merge.items() for name in names}
        named = [*changes.rename, *changes.split, *(name for names in changes.merge.values() for name in names)]
        if odd := [name for name, of in (*changes.merge.items(), *changes.split.items()) if len(set(of)) < 2]:
            raise ConfigError(f"{odd[0][:64]!r}: two or more different labels are merged, or are parts of a split")
        if odd := [name for name in named if name not in labels or named.count(name) > 1]:
            raise ConfigError(f"{odd[0][:64]!r} is none of the labels {list(labels)[:8]}, or is in two changes")
        after = list[str]()
        for label in labels:
            parts = changes.split.get(label, [merged.get(label, changes.rename.get(label, label))])
            after += [name for name in parts if name not in after or label not in merged]
        after += changes.add
        if not 2 <= len(set(after)) == len(after) or not all(map(str.strip, after)) or OTHERS in after:
            raise ConfigError(f"two or more different labels but {OTHERS!r} are needed, got {after[:8]}")
        into = {name: name for name in labels} | merged | changes.rename
        places = [-1 if name in changes.split else after.index(into[name]) for name in labels]
        if ordered and (changes.add or changes.merge):
            raise ConfigError("the labels have an order, in which these changes have no place: fit all rows anew")
        return cls(tuple(labels), tuple(after), tuple(places), changes)

    @property
    def new(self) -> tuple[str, ...]:
        """The labels that are added, and the parts of those that are split."""
        return (*self.changes.add, *(name for names in self.changes.split.values() for name in names))

    def wanted(self, rule: Wanted) -> Wanted:
        """Return the aim of decisions after the changes: what they state, or the former with new names."""
        return self.changes.costs or self.changes.target_risk or self._renamed(rule)

    def _renamed(self, aim: Any) -> Any:
        if isinstance(aim, Costs):
            return aim.model_copy(update={"wrong": self._renamed(aim.wrong)})
        if not isinstance(aim, Mapping):
            return aim
        return {self.changes.rename.get(name, name): self._renamed(value) for name, value in aim.items()}

    def manifest(self, former: Manifest, **step: Any) -> Manifest:
        """Return a manifest with the labels after; ``step``: what its history says beside the changes."""
        if former.question is not None and (former.question.options or former.question.yes_label):
            raise ConfigError("the artifact's own question names its labels: fit anew with another question")
        step |= {**self.changes.model_dump(exclude_defaults=True), "before": [*self.before], "after": [*self.after]}
        data = former.data | {"label_changes": [*history_of(former), step]}
        return former.model_copy(update={"labels": self.after, "data": data})


def history_of(manifest: Manifest) -> list[Any]:
    """Return the changes of an artifact's labels, oldest first, each with ``at``, ``rows``, ``before``, ``after``."""
    found = manifest.data.get("label_changes")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
