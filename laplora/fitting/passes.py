"""The curvature over the training rows, by passes whose state is kept as it grows: a fit can be stopped in them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import accumulate, chain, count, takewhile
from typing import Any

import torch

from laplora.classifier import Classifier, batches
from laplora.execution.progress import Progress
from laplora.execution.workers import Workers
from laplora.features.store import Store
from laplora.fitting.projected import project_split, split_of, split_tensors
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians
from laplora.jacobians.many_classes import fisher_directions
from laplora.linearised import log_likelihood
from laplora.models.classifier_head import with_head_blocks
from laplora.models.readout import head_name
from laplora.posterior.base import Posterior, ProjectedJacobians
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.posterior.passes import State, StructureSettings
from laplora.posterior.structures import fit_posterior, needs_sums
from laplora.predictive.lora_weights import lora_parameters
from laplora.prompts.examples import Example, label_tensor
from laplora.readouts.label_tokens import LabelTokens
from laplora.settings import FitSettings, ManyClasses

#: How often a state is kept, seconds.
SAVE_EVERY_S = 30.0


class RowPass:
    """Passes over labelled rows by a classifier; ``laplora.posterior.passes.Pass``.

    A pass that the store holds to its end is read back and runs no model. The classifier's workers share the batches
    and add up what they have; what is kept on the way is the state of all, which any number of workers continues.

    Attributes:
        log_likelihood: of the rows, summed, nats, once a pass has ended.
    """

    def __init__(
        self,
        classifier: Classifier,
        examples: Sequence[Example],
        blocks: tuple[Block, ...],
        settings: FitSettings,
        store: Store,
        progress: Progress,
    ) -> None:
        self._classifier, self._blocks, self._store, self._progress = classifier, blocks, store, progress
        self._rows = classifier.encode_examples(examples)
        self._labels = label_tensor(examples, classifier.class_count).to(classifier.device)
        self._size = settings.laplace.batch_size
        self._sums = needs_sums(settings.laplace.structure)
        self._many, self._seed = many_classes(settings, classifier), settings.seed
        self.log_likelihood = 0.0

    def __call__(
        self, title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> State:
        """Return the state after every training row."""
        workers = self._classifier.workers
        # Eigenvectors that were computed twice may differ by a sign: all take the first process's.
        empty, add = workers.broadcast(lambda: (empty, add))
        kept, self.log_likelihood = self._read(title, empty)
        whole, local_state, likelihood = kept, empty, 0.0
        if workers.first:
            local_state, likelihood = kept, self.log_likelihood
        plan = batches(self._rows, self._size)
        done = sum(rows <= kept.rows for rows in accumulate(map(len, plan)))
        saved_at = time.monotonic()
        for place in self._progress.track(range(done, len(plan), workers.count), f"curvature: {title}"):
            if (mine := place + workers.rank) < len(plan):
                local_state, of_rows = self._added(local_state, plan[mine], add)
                likelihood += of_rows
            last = place + workers.count >= len(plan)
            if last or workers.broadcast(partial(_is_over, saved_at + SAVE_EVERY_S)):
                whole = state_of_all(workers, local_state)
                self.log_likelihood = float(workers.summed([torch.tensor(likelihood, dtype=torch.float64)])[0])
                tensors, numbers = state_parts(whole)
                self._store.write(title, tensors, numbers | {"log_likelihood": repr(self.log_likelihood)})
                saved_at = time.monotonic()
        return whole

    def _added(
        self, state: State, index: list[int], add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> tuple[State, float]:
        """Return the state with a batch, and the log-likelihood of its rows."""
        classifier = self._classifier
        batch = classifier.collate([self._rows[i] for i in index])
        many, choose = self._many, None
        if many is not None:
            choose = fisher_directions(many.leading, many.samples, index, self._seed)
        jacobians = contrast_jacobians(
            classifier.model, batch, classifier.readout, self._blocks, sums=self._sums, choose=choose
        )
        of_rows = log_likelihood(jacobians.likelihood, jacobians.logits, self._labels[index], batch.class_mask)
        return add(state, jacobians, batch.class_mask), float(of_rows.sum())

    def _read(self, title: str, empty: State) -> tuple[State, float]:
        kept = self._store.read(title)
        if kept is None:
            return empty, 0.0
        tensors, notes = kept
        return state_from_parts(empty, tensors, notes), float(notes["log_likelihood"])


def _is_over(time_s: float) -> bool:
    return time.monotonic() > time_s


def many_classes(settings: FitSettings, classifier: Classifier) -> ManyClasses | None:
    """Return how a task of many classes is fitted and answered; None where every contrast is computed."""
    many, readout = settings.many_classes, classifier.readout
    return many if readout.class_count > many.limit and readout.likelihood == "categorical" else None


def state_parts(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a state's tensors and numbers by field name; ``<field>.<i>`` for the tensors of a tuple.

    Fields of any other kind belong to the empty state and are not kept.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, str] = {}
    for name, value in _named(state):
        if isinstance(value, int):
            numbers[name] = str(value)
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, tuple) and all(isinstance(v, torch.Tensor) for v in value):
            tensors |= {f"{name}.{i}": v for i, v in enumerate(value)}
    return tensors, numbers


def state_from_parts(empty: State, tensors: dict[str, torch.Tensor], numbers: dict[str, str]) -> State:
    """Return the state whose ``state_parts`` were kept, on top of the empty one."""
    kept: dict[str, Any] = {}
    for name, value in _named(empty):
        if isinstance(value, int):
            kept[name] = int(numbers[name])
        elif name in tensors:
            kept[name] = tensors[name]
        elif f"{name}.0" in tensors:
            places = takewhile(tensors.__contains__, (f"{name}.{i}" for i in count()))
            kept[name] = tuple(tensors[place] for place in places)
    return replace(empty, **kept)  # type: ignore[type-var]


def _named(state: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(state, field.name)) for field in fields(state))


def state_of_all(workers: Workers, local_state: State) -> State:
    """Return the state of all rows, the same in every process; collective.

    Args:
        local_state: of this process's batches; in the first process, with the rows of earlier passes too.
    """
    if workers.count == 1:
        return local_state
    sums: dict[str, tuple[torch.Tensor, ...]] = {}
    for field in fields(local_state):  # type: ignore[arg-type]
        value = getattr(local_state, field.name)
        if isinstance(value, torch.Tensor):
            sums[field.name] = (value,)
        elif isinstance(value, tuple) and all(isinstance(part, torch.Tensor) for part in value):
            sums[field.name] = value
    flat = iter(workers.summed([torch.tensor(local_state.rows), *chain.from_iterable(sums.values())]))
    totals: dict[str, Any] = {"rows": int(next(flat))}
    for name, parts in sums.items():
        whole = tuple(next(flat) for _ in parts)
        totals[name] = whole if isinstance(getattr(local_state, name), tuple) else whole[0]
    return replace(local_state, **totals)  # type: ignore[type-var]


def fit_curvature(
    classifier: Classifier,
    examples: Sequence[Example],
    blocks: tuple[Block, ...],
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> tuple[Posterior, float]:
    """Return the curvature over the rows, and their log-likelihood (summed, nats)."""
    laplace = settings.laplace
    structure = StructureSettings(
        structure=laplace.structure,
        rank=laplace.rank,
        oversampling=laplace.oversampling,
        joint_rank=laplace.joint_rank,
        seed=settings.seed,
        basis_dtype=getattr(torch, laplace.factor_dtype),
    )
    run_pass = RowPass(classifier, examples, blocks, settings, store, progress)
    fitted = fit_posterior(structure, blocks, run_pass)
    posterior = classifier.workers.broadcast(lambda: fitted)  # directions that were computed twice may differ by a sign
    if many := many_classes(settings, classifier):
        reference = _reference(classifier, posterior, examples, many, settings.seed, store, progress)
        posterior = ManyClassPosterior(posterior, reference, many.directions)
    return posterior, run_pass.log_likelihood


def _reference(
    classifier: Classifier,
    posterior: Posterior,
    examples: Sequence[Example],
    many: ManyClasses,
    seed: int,
    store: Store,
    progress: Progress,
) -> ProjectedJacobians:
    """Return a few training rows with Jacobians of all their contrasts, one row at a time."""
    mark = repr((many, seed))
    if kept := store.read("reference", mark):
        return split_of(kept[0]).projected
    draw = random.Random(f"{seed}/reference")
    rows = [examples[i] for i in sorted(draw.sample(range(len(examples)), min(many.reference_rows, len(examples))))]
    split = project_split(classifier, posterior, rows, progress, "rows with every contrast", batch_size=1)
    store.write("reference", split_tensors(split), {}, mark)
    return split.projected


def block_weights(classifier: Classifier) -> dict[str, torch.Tensor]:
    """Return the trained weights that the posterior is around, by block name, as ``label_rows``."""
    weights = {name: weight.detach() for name, weight in lora_parameters(classifier.model).items()}
    return label_rows(weights, classifier)


def label_rows(weights: Mapping[str, torch.Tensor], classifier: Classifier) -> dict[str, torch.Tensor]:
    """Return weights by block name: of the output embedding's ``lora_B`` the labels' rows, of a head with its bias."""
    readout = classifier.readout
    if readout.trained:
        return with_head_blocks(weights, readout.trained)
    if not isinstance(readout, LabelTokens):
        return dict(weights)
    head = head_name(classifier.model) + ".lora_B"
    rows = list(readout.token_ids)
    return {name: weight[rows] if name == head else weight for name, weight in weights.items()}
