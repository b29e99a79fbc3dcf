"""Heads on disk, every shape and value checked: what answers, and the labelled rows that they learn on from.

``experts.safetensors`` has each head's tensors as ``NAME/head/...``, and by fold how familiar inputs are to its rows as
``NAME/familiar/FOLD/...``. ``rows.safetensors`` has the labelled rows' columns, the log probabilities of passes over
them, and by head the rows' features and the heads of its folds. It holds no text of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from laplora.artifact.head_tensors import head_of, head_tensors
from laplora.artifact.manifest import MAX_WEIGHT, EncoderRecord, ExpertName, ExpertRecord, Manifest
from laplora.errors import ArtifactCorruptError, DataError
from laplora.experts.answering import AnswersByHead, ServedHead
from laplora.experts.base import Labelled, LogProbSource
from laplora.experts.familiar import across, compared, reads_states
from laplora.experts.of_head import HeadExpert
from laplora.familiarity.file import checked_familiarity, familiarity_tensors
from laplora.familiarity.percentile import Familiarity
from laplora.head import HeadError
from laplora.head.errors import check
from laplora.head.fit import FittedHead
from laplora.head.head import Head
from laplora.head.rows import checked_rows
from laplora.linearised import Likelihood
from laplora.pool.pool import Pool
from laplora.pool.served import ServedExperts
from laplora.posterior.file import read_tensors

#: Most bytes of the labelled rows that an artifact keeps unless it is told to: beyond, fitting anew is what one does.
MOST_ROW_BYTES = 1 << 29

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class KeptRows:
    """The labelled rows of an artifact.

    Attributes:
        experts: its heads, with the rows that each was fitted on.
        labelled: the rows' labels and folds.
        log_probs: by source (rows, classes) float64 of the passes over them; NaN in rows that it was trained on.
        by_fold: by fold number, weights of the pool that know nothing of its rows.
    """

    experts: Mapping[str, HeadExpert]
    labelled: Labelled
    log_probs: Mapping[LogProbSource, torch.Tensor]
    by_fold: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    @staticmethod
    def of(
        experts: Mapping[str, HeadExpert],
        labelled: Labelled,
        log_probs: Mapping[LogProbSource, torch.Tensor],
        pool: Pool | None,
    ) -> KeptRows:
        """Return the rows of a fit; a fold whose weights name an expert that the pool left out gets those of all."""
        by_fold = {} if pool is None else pool.by_fold
        weights = {} if pool is None else pool.weights
        known = {fold: each if each.keys() <= weights.keys() else weights for fold, each in by_fold.items()}
        return KeptRows(experts, labelled, log_probs, known)


def expert_fields(served: ServedExperts, rows: Mapping[str, int], encoder: EncoderRecord | None) -> dict[str, Any]:
    """Return what a manifest says of heads; ``rows``: labelled ones by head; ``encoder``: that one of them may read."""
    return {
        "experts": {
            name: ExpertRecord(source=of.source, offset=of.offset, rows=rows[name])  # type: ignore[arg-type]
            for name, of in served.heads.items()
        },
        "pool": dict(served.weights),
        "encoder": encoder if any(of.source == "encoder" for of in served.heads.values()) else None,
    }


def expert_tensors(
    heads: Mapping[str, AnswersByHead], familiar: Mapping[str, tuple[Familiarity, ...]]
) -> dict[str, torch.Tensor]:
    """Return heads, and how familiar inputs are to their rows, as named tensors, for safetensors."""
    tensors = {
        f"{name}/head/{part}": each for name, one in heads.items() for part, each in head_tensors(one.head).items()
    }
    for name, folds in familiar.items():
        for number, fold in enumerate(folds):
            tensors |= {f"{name}/familiar/{number}/{part}": each for part, each in familiarity_tensors(fold).items()}
    return {name: each.contiguous().cpu() for name, each in tensors.items()}


def read_experts(path: Path, manifest: Manifest) -> ServedExperts:
    """Return the heads of an artifact with their pool; errors of ``read_heads``.

    Raises:
        ArtifactCorruptError: heads say how familiar inputs are, and the manifest does not, or the other way round.
    """
    weights = {str(name): weight for name, weight in manifest.pool.items()}
    heads = read_heads(path, manifest.experts, weights, manifest.likelihood, len(manifest.labels))
    compares = manifest.familiarity is not None and not manifest.familiarity.layers
    reading = {name for name, of in heads.heads.items() if reads_states(of.source)}
    if compares != bool(heads.familiar) or (heads.familiar and set(heads.familiar) != reading):
        raise ArtifactCorruptError(
            f"{path.name} and the manifest do not agree whether heads say how familiar inputs are"
        )
    return heads


def read_heads(
    path: Path,
    records: Mapping[ExpertName, ExpertRecord],
    weights: Mapping[str, float],
    likelihood: Likelihood,
    classes: int,
) -> ServedExperts:
    """Return the heads in a file with their pool.

    Args:
        records: of the heads that it should have; weights: of the pool.

    Raises:
        ArtifactCorruptError: an unreadable file, a head that is missing or left over, or one that is not what its
            record says; a familiarity that is none.
    """
    tensors, _ = read_tensors(path)
    by_head = _parted(tensors)
    if odd := sorted(set[str](by_head) ^ set[str](records)):
        raise ArtifactCorruptError(f"{path.name} and the manifest name different heads, such as {odd[0]!r}")
    heads, familiar = dict[str, ServedHead](), dict[str, tuple[Familiarity, ...]]()
    for name, record in records.items():
        parts = _parted(by_head[name])
        if unknown := sorted(set(parts) - {"head", "familiar"}):
            raise ArtifactCorruptError(f"{path.name}: {name} has {unknown[0]!r}, which no head has")
        with _as_corrupt(path, name):
            head = head_of(parts.get("head", {}))
        if head.likelihood != likelihood or (head.classes != classes and not head.conditional):
            raise ArtifactCorruptError(
                f"{path.name}: {name} answers {head.classes} classes ({head.likelihood}), the manifest says {classes} "
                f"({likelihood})"
            )
        if (head.inverse_temperature is None) != (record.offset is None) or head.spread is None:
            raise ArtifactCorruptError(f"{path.name}: {name} corrects something else than the manifest says")
        heads[name] = ServedHead(name, record.source, record.offset, head)
        if "familiar" in parts:
            folds = sorted(_parted(parts["familiar"]).items())
            familiar[name] = tuple(_familiarity(f"{path.name}: {name}", fold) for _, fold in folds)
            with _as_corrupt(path, f"how familiar inputs are to {name}"):
                across(familiar[name], compared(_nothing(head), torch.ones(1, 1, dtype=torch.bool)))
    return ServedExperts(heads, weights, familiar, likelihood)


def row_tensors(kept: KeptRows) -> dict[str, torch.Tensor]:
    """Return the labelled rows as named tensors, for safetensors."""
    tensors = {f"labelled/{name}": getattr(kept.labelled, name) for name in _COLUMNS}
    tensors |= {f"log_probs/{source}": values for source, values in kept.log_probs.items()}
    for fold, weights in kept.by_fold.items():
        tensors |= {f"pool/{fold}/{name}": torch.tensor(each, dtype=torch.float64) for name, each in weights.items()}
    for name, expert in kept.experts.items():
        fitted, mine = expert.fitted, f"expert/{name}"
        tensors |= {f"{mine}/block/{part}": block for part, block in fitted.rows.blocks.items()}
        tensors |= {f"{mine}/places": expert.places, f"{mine}/held_out": fitted.held_out}
        if fitted.rows.offset is not None:
            tensors[f"{mine}/offset"] = fitted.rows.offset
        for fold, head in fitted.outer.items():
            tensors |= {f"{mine}/outer/{fold}/{part}": each for part, each in head_tensors(head).items()}
    return {name: each.contiguous().cpu() for name, each in tensors.items()}


def read_kept_rows(path: Path, manifest: Manifest, served: ServedExperts) -> KeptRows:
    """Return the labelled rows of an artifact.

    Args:
        served: what ``read_experts`` returned.

    Raises:
        ArtifactCorruptError: an unreadable file, or columns and heads that do not fit each other.
    """
    tensors, _ = read_tensors(path)
    parts = _parted(tensors)
    with _as_corrupt(path, "the labelled rows"):
        labelled = Labelled(**parts["labelled"], likelihood=manifest.likelihood)  # type: ignore[arg-type]
        one, count, classes = manifest.likelihood == "categorical", len(labelled), len(manifest.labels)
        soft = one and labelled.labels.is_floating_point()
        shapes = {"labels": (count,) if one and not soft else (count, classes), "class_mask": (count, classes)}
        kinds = {"class_mask": torch.bool, "honest": torch.bool, "labels": torch.float64 if soft else torch.int64}
        for column in _COLUMNS:
            check(column, getattr(labelled, column), shapes.get(column, (count,)), kinds.get(column, torch.int64))
        if not bool(labelled.honest.any()):
            raise ValueError("no honest row")
        log_probs = parts.get("log_probs", {})
        if set(log_probs) - {"adapter", "zero_shot"} or (manifest.has_adapter and "adapter" not in log_probs):
            raise ValueError(f"log_probs of {sorted(log_probs)[:4]}")
        for name, values in log_probs.items():
            check(name, values, (count, classes), torch.float64)
            if bool(values[labelled.honest].isnan().any()):
                raise ValueError("log_probs that are no numbers")
        by_fold = {
            int(fold): {name: float(each[""]) for name, each in _parted(weights).items()}
            for fold, weights in _parted(parts.get("pool", {})).items()
        }
        weights = [weight for each in by_fold.values() for weight in each.values()]
        known = all(each.keys() <= set(manifest.pool) for each in by_fold.values())
        if not known or not all(0 < weight <= MAX_WEIGHT for weight in weights):
            raise ValueError("weights of another pool than the manifest's")
        if bool(manifest.pool) != (set(by_fold) == set(labelled.folds[labelled.honest].tolist())):
            raise ValueError("weights of other folds than the rows'")
        by_name = _parted(parts["expert"])
        if set(by_name) != set(manifest.experts):
            raise ValueError("other heads than the manifest's")
        experts = {name: _expert(name, _parted(by_name[name]), manifest, served, labelled) for name in manifest.experts}
    return KeptRows(experts, labelled, log_probs, by_fold)  # type: ignore[arg-type]


#: The columns of ``Labelled``.
_COLUMNS = ("labels", "class_mask", "groups", "folds", "honest")


def _expert(
    name: str, parts: Mapping[str, Tensors], manifest: Manifest, served: ServedExperts, labelled: Labelled
) -> HeadExpert:
    """Return a head with its rows; errors are those that ``_as_corrupt`` takes."""
    record, fitted_head = manifest.experts[name], served.heads[name]  # type: ignore[index]
    places, held_out = parts["places"][""], parts["held_out"][""]
    offset = parts["offset"][""] if "offset" in parts else None
    if (offset is None) != (record.offset is None):
        raise ValueError(f"{name}: offset")
    mine = torch.ones_like(labelled.honest) if offset is None else labelled.honest
    if not torch.equal(places, mine.nonzero()[:, 0]):
        raise ValueError(f"{name}: places of other rows than its own")
    some = labelled.take(places)
    labels = some.labels if labelled.likelihood == "categorical" else some.labels.double()
    rows = checked_rows(parts["block"], labels, offset, some.class_mask, some.groups, labelled.likelihood)
    widths = {block: len(mean) for block, mean in fitted_head.head.scaling.means.items()}
    if {block: each.shape[-1] for block, each in rows.blocks.items()} != widths:
        raise ValueError(f"{name}: blocks")
    check("held_out", held_out, tuple(some.class_mask.shape), torch.float64)
    outer = {int(fold): head_of(each) for fold, each in _parted(parts["outer"]).items()}
    if set(outer) != set(some.folds.tolist()):
        raise ValueError(f"{name}: folds")
    if any(_form(head) != _form(fitted_head.head) for head in outer.values()):
        raise ValueError(f"{name}: heads of folds that are unlike the one that answers")
    fitted = FittedHead(fitted_head.head, held_out, some.folds, rows, outer)
    return HeadExpert(name, record.source, fitted, places, len(labelled), record.offset)


def _form(head: Head) -> tuple[object, ...]:
    """Return what heads of the same features and labels have in common."""
    widths = {name: len(mean) for name, mean in head.scaling.means.items()}
    return head.likelihood, head.conditional, widths, head.classes, head.inverse_temperature is None


def _nothing(head: Head) -> dict[str, torch.Tensor]:
    """Return features of one row, all 0, as a head reads them."""
    return {name: torch.zeros(1, *[1] * head.conditional, len(mean)) for name, mean in head.scaling.means.items()}


def _familiarity(name: str, tensors: Tensors) -> Familiarity:
    layers = sorted({int(part.partition(".")[0]) for part in tensors if part.partition(".")[0].isdecimal()})
    centre = tensors.get(f"{layers[0]}.center") if layers else None
    if centre is None or centre.dim() != 1:
        raise ArtifactCorruptError(f"{name} has no states to compare")
    return checked_familiarity(name, tensors, layers=layers, hidden=len(centre), available=len(layers))


def _parted(tensors: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
    """Return tensors by the first part of their names; one that is a whole name is its part ''."""
    by_part: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition("/")
        by_part.setdefault(first, {})[rest] = tensor
    return by_part


@contextmanager
def _as_corrupt(path: Path, what: str) -> Iterator[None]:
    """Raise ArtifactCorruptError for what tensors that do not fit each other raise."""
    try:
        yield
    except (HeadError, DataError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ArtifactCorruptError(f"{path.name} does not hold {what}: {type(error).__name__} ({error})") from None
