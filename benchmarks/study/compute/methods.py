"""Every alternative of one task and seed, from its store: predictives, uncertainty scores, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.study.compute.alternatives import (
    Gaussians,
    Outcome,
    fixed_prior_outcome,
    gaussian_outcome,
    point_outcome,
    stored_rows,
)
from benchmarks.study.compute.posteriors import fit_stored, posterior_bytes, project_stored
from benchmarks.study.config import StudyConfig
from benchmarks.study.store import Stores
from laplora.errors import PriorError
from laplora.posterior.base import Granularity
from laplora.posterior.passes import StructureSettings
from laplora.posterior.subset import select_blocks
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.leave_one_out import choose_by_leave_one_out


@dataclass(frozen=True)
class Method:
    """One row of the study's tables.

    Attributes:
        family: ``point``, ``ensemble``, ``structure``, ``prior`` or ``combined``.
        seconds: of fitting and predicting, without the model.
        size_bytes: of what an artifact would store beside the adapter, in its default number format.
    """

    title: str
    family: str
    outcome: Outcome
    seconds: float
    size_bytes: int


#: Structures that are fitted, each at its validated scalar prior: method -> (title, structure, subset).
STRUCTURE_ROWS: Mapping[str, tuple[str, str, str]] = {
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


def compute(config: StudyConfig, stores: Stores, seed: int, say: Callable[[str], None]) -> dict[str, Method]:
    """Return every alternative that the store has the inputs of, in the tables' order."""
    calibration, test = stored_rows(stores.calibration), stored_rows(stores.test)
    methods = {
        "map": _timed("MAP", "point", 0, partial(point_outcome, calibration, test, tempered=False)),
        "temperature": _timed(
            "temperature scaling", "point", 8, partial(point_outcome, calibration, test, tempered=True)
        ),
    }
    gaussians: dict[str, Gaussians] = {}
    gradients = len(stores.train.labels) * (stores.train.logits.shape[1] - 1)
    for name, (title, structure, subset) in STRUCTURE_ROWS.items():
        if structure == "exact" and gradients > config.exact_rows:
            continue
        settings = StructureSettings(structure, rank=config.rank, joint_rank=config.joint_rank, seed=seed)
        started = time.monotonic()
        posterior = fit_stored(stores, settings, select_blocks(stores.blocks, subset))
        view = Gaussians.of(stores, posterior)
        outcome = _by_validation(view)
        seconds = time.monotonic() - started
        methods[name] = Method(title, "structure", outcome, seconds, posterior_bytes(posterior))
        say(f"{stores.folder.parent.name} {seed}: {title}, {seconds:.0f} s")
        if name in ("laplace", "laplace_ekfac", "laplace_exact"):
            gaussians[name] = view
    return methods | prior_methods(stores, gaussians, say)


def prior_methods(stores: Stores, gaussians: Mapping[str, Gaussians], say: Callable[[str], None]) -> dict[str, Method]:
    """Return the same posteriors under priors chosen in other ways, and with a temperature on top.

    A precision per module is for the block-diagonal posterior: blocks that vary together share one.
    """
    served, ekfac = gaussians["laplace"], gaussians["laplace_ekfac"]
    size = posterior_bytes(served.posterior)
    distances = torch.tensor(stores.gathered["squared_distances"], dtype=torch.float64)
    train = stores.train
    logits = train.logits.double().masked_fill(~train.class_mask, -torch.inf)
    log_likelihood = float(logits.log_softmax(1).gather(1, train.labels[:, None]).sum())

    def by_evidence(view: Gaussians, granularity: Granularity) -> Outcome:
        choice = choose_by_evidence(view.posterior, distances, log_likelihood, granularity)
        return fixed_prior_outcome(view, choice.prior)

    methods = {
        "laplace_validation_group": _timed(
            "Laplace, validation per group", "prior", size, partial(_by_validation, served, "group")
        ),
    }
    evidence_rows: tuple[tuple[str, str, Gaussians, Granularity], ...] = (
        ("evidence_scalar", "evidence, scalar", served, "scalar"),
        ("evidence_group", "evidence, group", served, "group"),
        ("ekfac_evidence_scalar", "EKFAC, evidence, scalar", ekfac, "scalar"),
        ("ekfac_evidence_module", "EKFAC, evidence, module", ekfac, "module"),
    )
    for name, title, view, granularity in evidence_rows:
        methods[f"laplace_{name}"] = _timed(
            f"Laplace, {title}", "prior", posterior_bytes(view.posterior), partial(by_evidence, view, granularity)
        )
    exact = gaussians.get("laplace_exact")
    if exact is None:
        return methods

    def by_leave_one_out() -> Outcome:
        projected = project_stored(stores, exact.posterior, train)
        # The core's evidence: the exact posterior's takes a solve with all gradients for every precision.
        evidence = choose_by_evidence(served.posterior, distances, log_likelihood, "scalar")
        choice = choose_by_leave_one_out(
            exact.posterior, projected, train.labels, train.class_mask, "scalar", trained_under=evidence.prior
        )
        return fixed_prior_outcome(exact, choice.prior)

    try:
        methods["laplace_loo"] = _timed(
            "Laplace, exact GGN, leave-one-out prior", "prior", posterior_bytes(exact.posterior), by_leave_one_out
        )
    except PriorError as error:  # the tables show that it is missing here
        say(f"{stores.folder.parent.name}: no leave-one-out prior: {error}")
    return methods


def _by_validation(view: Gaussians, granularity: Granularity = "scalar", *, tempered: bool = False) -> Outcome:
    """Return a posterior's predictive at the prior that the calibration split chooses."""
    return gaussian_outcome(view, view.validated(granularity).prior, tempered=tempered)


def _timed(title: str, family: str, size_bytes: int, make: Callable[[], Outcome]) -> Method:
    started = time.monotonic()
    outcome = make()
    return Method(title, family, outcome, time.monotonic() - started, size_bytes)
