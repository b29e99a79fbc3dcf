"""Every alternative of one task and seed, from its store: predictives, uncertainty scores, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.study.compute.alternatives import (
    Gaussians,
    Outcome,
    Rows,
    fixed_prior_outcome,
    gaussian_outcome,
    point_outcome,
    rows_of,
)
from benchmarks.study.compute.posteriors import fit_stored, project_stored
from benchmarks.study.config import StudyConfig
from benchmarks.study.store import StoredSplit, read_store
from benchmarks.study.structures.diagonal import DiagonalPosterior
from benchmarks.study.structures.ella import EllaPosterior
from laplora.errors import PriorError
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Granularity, Posterior
from laplora.posterior.file import posterior_tensors
from laplora.posterior.passes import StructureSettings
from laplora.posterior.subset import select_blocks
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.leave_one_out import choose_by_leave_one_out
from laplora.prior.validation import choose_by_validation


@dataclass(frozen=True)
class Method:
    """One row of the study's tables.

    Attributes:
        title: what the tables say.
        family: ``point``, ``ensemble``, ``structure``, ``prior`` or ``combined``.
        outcome: its predictives and losses.
        seconds: of fitting and predicting, without the model.
        size_bytes: of what an artifact would store beside the adapter, in its default number format.
    """

    title: str
    family: str
    outcome: Outcome
    seconds: float
    size_bytes: int


@dataclass(frozen=True)
class Stores:
    """What was gathered of one task and seed."""

    folder: Path
    blocks: tuple[Block, ...]
    train: StoredSplit
    calibration: StoredSplit
    test: StoredSplit
    squared_distances: torch.Tensor

    def rows(self, split: str, members: list[torch.Tensor] | None = None) -> Rows:
        """Return a split's contrasts, of the trained adapter or of members."""
        stored: StoredSplit = getattr(self, split)
        logits = [stored.logits] if members is None else members
        return rows_of(logits, stored.class_mask, stored.labels)

    @property
    def log_likelihood(self) -> float:
        """Of the training rows, summed, nats."""
        logits = self.train.logits.double().masked_fill(~self.train.class_mask, -torch.inf)
        return float(logits.log_softmax(1).gather(1, self.train.labels[:, None]).sum())


#: Structures that are fitted, with the title of their table row; each at its own validated scalar prior.
STRUCTURE_ROWS: Mapping[str, tuple[str, str, str]] = {
    # method: (title, structure, subset)
    "laplace": ("Laplace, joint core", "joint_core", "all"),
    "laplace_ekfac": ("Laplace, EKFAC", "ekfac", "all"),
    "laplace_kfac_reduce": ("Laplace, KFAC-reduce", "kfac_reduce", "all"),
    "laplace_kfac_expand": ("Laplace, KFAC-expand", "kfac_expand", "all"),
    "laplace_kfac_last": ("Laplace, KFAC, last token", "kfac_last", "all"),
    "laplace_diagonal": ("Laplace, diagonal", "diagonal", "all"),
    "laplace_joint": ("Laplace, joint rank 50", "joint", "all"),
    "laplace_exact": ("Laplace, exact GGN (dual)", "exact", "all"),
    "laplace_ella": ("ELLA", "ella", "all"),
    "laplace_values_b": ("Laplace, lora_B of the values", "joint_core", "values_b"),
    "laplace_last_layer": ("Laplace, last layer", "joint_core", "last_layer"),
}


@dataclass(frozen=True)
class MemberKind:
    """A kind of average over forward passes.

    Attributes:
        method: its name in the tables, ``_temperature`` after it when tempered.
        title: what the tables say, with a place for the number of members.
        own: whether the trained adapter's own logits are one of the members.
        stored: whether each further member is stored weights, of the adapter's size.
    """

    method: str
    title: str
    own: bool
    stored: bool


#: By the name of the file that holds their logits.
MEMBER_KINDS: Mapping[str, MemberKind] = {
    "members": MemberKind("ensemble", "ensemble of {} checkpoints", own=True, stored=True),
    "dropout": MemberKind("mc_dropout", "MC dropout, {} masks", own=False, stored=False),
    "orders": MemberKind("order_average", "MAP averaged over {} option orders", own=True, stored=False),
}


def read_stores(
    folder: Path, blocks: tuple[Block, ...], squared_distances: list[float], *, jacobians: bool = True
) -> Stores:
    """Return what was gathered in a folder, its Jacobians too unless they are not wanted."""
    train, calibration, test = (
        read_store(folder, s, with_jacobians=jacobians) for s in ("train", "calibration", "test")
    )
    return Stores(
        folder,
        blocks,
        train,
        calibration,
        test,
        torch.tensor(squared_distances, dtype=torch.float64),
    )


def compute(config: StudyConfig, stores: Stores, seed: int, say: Callable[[str], None]) -> dict[str, Method]:
    """Return every alternative that the store has what it takes for, in the tables' order."""
    methods: dict[str, Method] = {}
    calibration, test = stores.rows("calibration"), stores.rows("test")
    for name, tempered, title in (("map", False, "MAP"), ("temperature", True, "temperature scaling")):
        methods[name] = _timed(
            title, "point", 8 * tempered, partial(point_outcome, calibration, test, tempered=tempered)
        )
    methods |= member_methods(stores)
    gaussians: dict[str, Gaussians] = {}
    gradients = len(stores.train.labels) * (stores.train.logits.shape[1] - 1)
    for name, (title, structure, subset) in STRUCTURE_ROWS.items():
        if structure == "exact" and gradients > config.exact_rows:
            continue
        only = select_blocks(stores.blocks, subset)
        settings = StructureSettings(structure, rank=config.rank, joint_rank=config.joint_rank, seed=seed)
        started = time.monotonic()
        posterior = fit_stored(settings, stores.train, stores.blocks, only)
        gaussians[name] = Gaussians(
            posterior,
            project_stored(posterior, stores.calibration, stores.blocks),
            project_stored(posterior, stores.test, stores.blocks),
        )
        fitted = time.monotonic() - started
        method = validated(title, "structure", gaussians[name], calibration, test)
        methods[name] = replace(method, seconds=method.seconds + fitted)
        say(f"{stores.folder.parent.name} {seed}: {title}, {methods[name].seconds:.0f} s")
        if name not in ("laplace", "laplace_ekfac", "laplace_exact"):
            del gaussians[name]
    methods |= prior_methods(stores, gaussians, calibration, test, say)
    return methods


def member_methods(stores: Stores) -> dict[str, Method]:
    """Return the averages over checkpoints, dropout masks and option orders, where their logits were gathered."""
    adapter = 2 * sum(b.wide * b.narrow for b in stores.blocks)
    methods = {}
    for file, kind in MEMBER_KINDS.items():
        if not (stores.folder / f"{file}.test.safetensors").is_file():
            continue
        rows = {}
        for split in ("calibration", "test"):
            logits = list(load_file(stores.folder / f"{file}.{split}.safetensors").values())
            rows[split] = stores.rows(split, logits + [getattr(stores, split).logits] * kind.own)
        count = len(rows["test"].means)
        for tempered in (False, True):
            methods[kind.method + "_temperature" * tempered] = _timed(
                kind.title.format(count) + ", temperature" * tempered,
                "ensemble",
                adapter * (count - 1) * kind.stored + 8 * tempered,
                partial(point_outcome, rows["calibration"], rows["test"], tempered=tempered),
            )
    return methods


def validated(title: str, family: str, gaussians: Gaussians, calibration: Rows, test: Rows) -> Method:
    """Return a posterior's predictive at the scalar prior that the calibration split chooses."""
    started = time.monotonic()
    choice = choose_by_validation(
        gaussians.posterior, gaussians.calibration, calibration.labels, calibration.class_mask, "scalar"
    )
    outcome = gaussian_outcome(gaussians, calibration, test, choice.prior)
    return Method(title, family, outcome, time.monotonic() - started, posterior_bytes(gaussians.posterior))


def prior_methods(
    stores: Stores, gaussians: Mapping[str, Gaussians], calibration: Rows, test: Rows, say: Callable[[str], None]
) -> dict[str, Method]:
    """Return the same posteriors under priors chosen in other ways, and with a temperature on top.

    A precision per module is for the block-diagonal posterior: blocks that vary together share one.
    """
    methods: dict[str, Method] = {}
    served, ekfac = gaussians["laplace"], gaussians["laplace_ekfac"]
    size = posterior_bytes(served.posterior)
    labels, mask = calibration.labels, calibration.class_mask
    validation = choose_by_validation(served.posterior, served.calibration, labels, mask, "scalar").prior

    def tempered() -> Outcome:
        return gaussian_outcome(served, calibration, test, validation, tempered=True)

    methods["laplace_temperature"] = _timed("Laplace, then temperature", "combined", size + 8, tempered)

    def by_group() -> Outcome:
        choice = choose_by_validation(served.posterior, served.calibration, labels, mask, "group")
        return gaussian_outcome(served, calibration, test, choice.prior)

    methods["laplace_validation_group"] = _timed("Laplace, validation per group", "prior", size, by_group)
    rows: tuple[tuple[str, str, Gaussians, Granularity], ...] = (
        ("evidence_scalar", "evidence, scalar", served, "scalar"),
        ("evidence_group", "evidence, group", served, "group"),
        ("ekfac_evidence_scalar", "EKFAC, evidence, scalar", ekfac, "scalar"),
        ("ekfac_evidence_module", "EKFAC, evidence, module", ekfac, "module"),
    )
    for name, title, own, granularity in rows:

        def by_evidence(own: Gaussians = own, granularity: Granularity = granularity) -> Outcome:
            choice = choose_by_evidence(own.posterior, stores.squared_distances, stores.log_likelihood, granularity)
            return fixed_prior_outcome(own, calibration, test, choice.prior)

        methods[f"laplace_{name}"] = _timed(f"Laplace, {title}", "prior", posterior_bytes(own.posterior), by_evidence)

    exact = gaussians.get("laplace_exact")
    if exact is None:
        return methods

    def by_leave_one_out() -> Outcome:
        train = stores.train
        projected = project_stored(exact.posterior, train, stores.blocks)
        # The core's evidence: the exact posterior's takes a solve with all gradients for every precision.
        evidence = choose_by_evidence(served.posterior, stores.squared_distances, stores.log_likelihood, "scalar")
        choice = choose_by_leave_one_out(
            exact.posterior, projected, train.labels, train.class_mask, "scalar", trained_under=evidence.prior
        )
        return fixed_prior_outcome(exact, calibration, test, choice.prior)

    try:
        methods["laplace_loo"] = _timed(
            "Laplace, exact GGN, leave-one-out prior", "prior", posterior_bytes(exact.posterior), by_leave_one_out
        )
    except PriorError as error:  # the tables show that it is missing here
        say(f"{stores.folder.parent.name}: no leave-one-out prior: {error}")
    return methods


def posterior_bytes(posterior: Posterior) -> int:
    """Return the size of a posterior's file, bases in bfloat16."""
    if isinstance(posterior, DiagonalPosterior):
        return sum(4 * d.numel() for d in posterior.diagonal)
    if isinstance(posterior, EllaPosterior):
        return 4 * posterior.eigenvectors.numel() + sum(2 * d.numel() for d in posterior.directions)
    tensors, _ = posterior_tensors(posterior, "bfloat16")
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _timed(title: str, family: str, size_bytes: int, make: Callable[[], Outcome]) -> Method:
    started = time.monotonic()
    outcome = make()
    return Method(title, family, outcome, time.monotonic() - started, size_bytes)
