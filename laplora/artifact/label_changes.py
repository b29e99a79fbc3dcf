"""Changes of an artifact's labels in one step: what is asked for, the labels after them, and the record of them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laplora.decisions.wanted import OTHERS, Costs, Risks, Wanted
from laplora.errors import ConfigError

if TYPE_CHECKING:  # a server's schemas load no torch
    from laplora.artifact.manifest import Manifest


#: Labels that a prompt may have (``MAX_LABELS``, whose module loads torch).
_MOST = 4096
#: A new label and several, and what is of a new label or of one that there is.
_Name = Annotated[str, Field(max_length=256)]
_Names = Annotated[list[_Name], Field(max_length=_MOST)]
_Renamed = Annotated[dict[str, _Name], Field(max_length=_MOST)]
_Merged = Annotated[dict[_Name, Annotated[list[str], Field(max_length=_MOST)]], Field(max_length=_MOST)]
_Parted = Annotated[dict[str, _Names], Field(max_length=_MOST)]


class LabelChanges(BaseModel):
    """Changes of labels in one step, with the target risk or costs that the new labels need."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rename: _Renamed = Field({}, description="By label its new name.", examples=[{"neg": "negative"}])
    merge: _Merged = Field({}, description="By new label those that become it.", examples=[{}])
    split: _Parted = Field({}, description="By label its parts, two or more.", examples=[{}])
    add: _Names = Field([], description="New labels, which come last.", examples=[[]])
    target_risk: Risks | None = Field(None, description="As of a request; null: as before.", examples=[None])
    costs: Costs | None = Field(None, description="In its place, as of a request.", examples=[None])

    @classmethod
    def read(cls, given: str | Mapping[str, Any] | LabelChanges) -> LabelChanges:
        """Return changes from JSON or a mapping; ConfigError names what is none."""
        try:
            return cls.model_validate_json(given) if isinstance(given, str) else cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"changes: {'.'.join(map(str, first['loc']))[:64]}: {first['msg']}") from None


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
        own, merged = {*labels}, {name: new for new, names in changes.merge.items() for name in names}
        named = Counter([*changes.rename, *changes.split, *(name for of in changes.merge.values() for name in of)])
        if changes.target_risk is not None and changes.costs is not None:
            raise ConfigError("costs stand in place of target_risk: give one of them")
        if odd := [name for name, of in (*changes.merge.items(), *changes.split.items()) if len(set(of)) < 2]:
            raise ConfigError(f"{_said(odd)}: two or more different labels are merged, or are parts of a split")
        if odd := [name for name, count in named.items() if name not in own or count > 1]:
            raise ConfigError(f"{_said(odd)} is none of the labels {_said(labels, 8)}, or is in two changes")
        into = {name: name for name in labels} | merged | changes.rename
        after, stand = list[str](), set[str]()
        for label in labels:
            if merged.get(label) not in stand:  # what is merged stands where the first of it stood
                after += changes.split.get(label, [into[label]])
                stand |= {merged[label]} if label in merged else set()
        after += changes.add
        same, alike = Counter(after), Counter(map(_folded, after))
        if odd := [name for name in after if same[name] > 1 or (name not in own and alike[_folded(name)] > 1)]:
            raise ConfigError(f"{_said(odd)} would be two labels, or differs from another one in case or form alone")
        if odd := [name for name in after if name not in own and (name != name.strip() or not name.isprintable())]:
            raise ConfigError(f"{_said(odd)}: a label has no control or invisible character, and no space around it")
        if not 2 <= len(after) <= _MOST or not all(after) or OTHERS in after:
            raise ConfigError(f"2 to {_MOST} labels, none empty or {OTHERS!r}, have to be left, not {_said(after, 8)}")
        at = {name: place for place, name in enumerate(after)}
        places = [-1 if name in changes.split else at[into[name]] for name in labels]
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


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _said(names: Sequence[str], most: int = 1) -> str:
    """Return the first names, each cut, as a refusal quotes them."""
    return ", ".join(repr(name[:64]) for name in names[:most])
