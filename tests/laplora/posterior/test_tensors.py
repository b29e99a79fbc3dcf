"""Jacobians in, covariance out, beside a dense float64 Laplace approximation of a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from documents import blocks as page_blocks
from torch import nn
from torch.func import functional_call, jacrev, vmap

import laplora
from laplora.errors import ConfigError, DataError, NonFiniteError, PriorError
from laplora.linearised import contrasts
from laplora.posterior.passes import StructureSettings
from laplora.posterior.tensors import (
    JacobianBatch,
    _block,
    _rank_one,
    fit_jacobians,
    jacobian_covariance,
    project_jacobians,
)

CLASSES, FEATURES = 3, 5
EXACT = StructureSettings(structure="exact", basis_dtype=torch.float64)
PRECISION = 0.7


class Problem:
    """A random network on random rows, all float64."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.model = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()
            self.rows = torch.randn(24, FEATURES, dtype=torch.float64)
            self.labels = torch.randint(CLASSES, (24,))
            self.model[2].weight.data *= 8  # surer than it is right, so that some variance helps
        self.weights = {name: weight.detach() for name, weight in self.model.named_parameters()}

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits and their Jacobians by weight."""

        def logits(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
            return functional_call(self.model, weights, (row,))  # type: ignore[no-any-return]

        found = vmap(jacrev(logits), (None, 0))(self.weights, rows)
        return self.model(rows).detach(), {name: jacobian.detach() for name, jacobian in found.items()}

    def batches(self, size: int = 7) -> list[JacobianBatch]:
        return [self.batch(rows) for rows in self.rows.split(size)]

    def flat(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities (rows, classes) and Jacobians of the logits (rows, classes, parameters)."""
        logits, jacobians = self.batch(rows)
        return logits.softmax(1), torch.cat([j.flatten(2) for j in jacobians.values()], 2)

    def covariance(self, rows: torch.Tensor, precision: float) -> torch.Tensor:
        """Return the covariance of the centred logits by the whole matrix over all parameters."""
        probs, jacobians = self.flat(self.rows)
        curvature = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
        hessian = torch.einsum("ncp,ncd,ndq->pq", jacobians, curvature, jacobians)
        inverse = torch.linalg.inv(hessian + precision * torch.eye(len(hessian), dtype=torch.float64))
        _, tested = self.flat(rows)
        centring = torch.eye(CLASSES, dtype=torch.float64) - 1 / CLASSES
        return centring @ tested @ inverse @ tested.mT @ centring  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def in_contrasts(batch: Any) -> JacobianBatch:
    """Return a batch with Jacobians of the contrasts in the place of those of the logits."""
    logits, jacobians = batch
    basis = contrasts(CLASSES)
    return logits, {name: torch.einsum("ck,nc...->nk...", basis, j) for name, j in jacobians.items()}


def test_the_exact_covariance_is_the_dense_one(problem: Problem) -> None:
    """Both work in float64; 1e-9 leaves room for their orders of sums."""
    new = torch.randn(4, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, batch = problem.covariance(new, PRECISION), problem.batch(new)
    posterior = fit_jacobians(problem.batches(), EXACT)
    assert posterior.rows == 24
    found = jacobian_covariance(posterior, batch, PRECISION, of="logits")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    basis = contrasts(CLASSES)
    seen = jacobian_covariance(posterior, in_contrasts(batch), PRECISION)
    torch.testing.assert_close(seen, basis.T @ expected @ basis, rtol=1e-9, atol=1e-12)
    again = fit_jacobians(lambda: map(in_contrasts, problem.batches(5)), EXACT)
    torch.testing.assert_close(jacobian_covariance(again, batch, PRECISION), seen, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", ["joint_core", "joint", "ekfac"])
def test_a_structure_of_full_rank(structure: str, problem: Problem) -> None:
    """With nothing left out, the joint ones are exact; EKFAC keeps the trace of each weight's curvature."""
    settings = StructureSettings(structure=structure, rank=64, joint_rank=128, basis_dtype=torch.float64)
    posterior, batch = fit_jacobians(problem.batches(), settings), problem.batch(problem.rows[:6])
    found = jacobian_covariance(posterior, batch, PRECISION, of="logits")
    expected = problem.covariance(problem.rows[:6], PRECISION)
    if structure != "ekfac":
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        return
    assert bool((torch.linalg.eigvalsh(jacobian_covariance(posterior, batch, PRECISION)) > 0).all())
    ratio = found.diagonal(dim1=1, dim2=2).sum(1) / expected.diagonal(dim1=1, dim2=2).sum(1)
    assert 0.2 < float(ratio.min()) <= float(ratio.max()) < 5  # blocks on their own, and a diagonal in each
    probs, jacobians = problem.flat(problem.rows)
    curvature = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    trace = float(torch.einsum("ncp,ncd,ndp->", jacobians, curvature, jacobians))
    large = torch.full((len(posterior.blocks),), 1e9, dtype=torch.float64)
    assert float(posterior.log_determinant_ratio(large)) * 1e9 == pytest.approx(trace, rel=1e-5)


def test_the_bases_of_ekfac_are_those_of_the_linears(problem: Problem) -> None:
    """A linear that runs once on a row has a Jacobian of rank one: its input times its gradients."""
    _, jacobians = in_contrasts(problem.batch(problem.rows[:5]))[:2]
    for name, shape in (("2.weight", (CLASSES, 7)), ("0.weight", (7, FEATURES)), ("0.bias", (7,))):
        jacobian = jacobians[name].reshape(5, CLASSES - 1, shape[0], -1)  # (batch, contrasts, outputs, inputs)
        block = _block(name, shape)
        inputs, gradients = _rank_one(block, jacobian if block.group == "lora_B" else jacobian.mT)
        product = torch.einsum("ni,nco->ncoi", inputs, gradients)
        torch.testing.assert_close(product, jacobian, rtol=1e-9, atol=1e-12)


def test_the_prior_is_chosen_of_projected_rows(problem: Problem) -> None:
    posterior = fit_jacobians(problem.batches(), EXACT)
    projected, mask = project_jacobians(posterior, problem.batches())
    chosen = laplora.choose_by_validation(posterior, projected, problem.labels, mask)
    assert chosen.method == "validation"
    precisions = laplora.block_precisions(chosen.prior, posterior.blocks)
    whole = jacobian_covariance(posterior, problem.batch(problem.rows), chosen.prior)
    torch.testing.assert_close(posterior.covariance(projected, precisions), whole, rtol=1e-6, atol=1e-12)
    probs = laplora.posterior_predictive(projected.contrast_mean, whole, mask).probs
    best = laplora.evaluate_probs(probs, problem.labels).nll
    assert best == pytest.approx(-chosen.objective)
    for precision in (chosen.prior.precision["all"] * factor for factor in (0.01, 100.0)):
        other = jacobian_covariance(posterior, problem.batch(problem.rows), precision)
        there = laplora.posterior_predictive(projected.contrast_mean, other, mask).probs
        assert laplora.evaluate_probs(there, problem.labels).nll > best


@pytest.mark.parametrize("structure", ["exact", "joint_core", "joint", "ekfac"])
def test_several_labels_of_a_row_have_a_bernoulli_each(structure: str, problem: Problem) -> None:
    """The dense matrix is the sum of ``J^T diag(p (1 - p)) J`` over the rows, p the sigmoids of the logits."""
    settings = StructureSettings(structure=structure, rank=64, joint_rank=128, basis_dtype=torch.float64)
    posterior = fit_jacobians(problem.batches(), settings, likelihood="bernoulli")
    logits, jacobians = problem.batch(problem.rows)
    flat, p = torch.cat([j.flatten(2) for j in jacobians.values()], 2), logits.sigmoid()
    hessian = torch.einsum("ncp,nc,ncq->pq", flat, p * (1 - p), flat)
    inverse = torch.linalg.inv(hessian + PRECISION * torch.eye(len(hessian), dtype=torch.float64))
    expected = flat @ inverse @ flat.mT
    found = jacobian_covariance(posterior, (logits, jacobians), PRECISION, likelihood="bernoulli")
    assert found.shape == (24, CLASSES, CLASSES)
    if structure == "ekfac":  # blocks on their own, and a diagonal in each
        ratio = found.diagonal(dim1=1, dim2=2).sum(1) / expected.diagonal(dim1=1, dim2=2).sum(1)
        assert 0.2 < float(ratio.min()) <= float(ratio.max()) < 5
        return
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    of_logits = jacobian_covariance(posterior, (logits, jacobians), PRECISION, of="logits", likelihood="bernoulli")
    assert torch.equal(of_logits, found)
    projected, mask = project_jacobians(posterior, problem.batches(), likelihood="bernoulli")
    precisions = torch.full((len(posterior.blocks),), PRECISION, dtype=torch.float64)
    spread = posterior.covariance(projected, precisions)
    torch.testing.assert_close(
        2 * spread[:, 0, 0].view(24, CLASSES), expected.diagonal(dim1=1, dim2=2), rtol=1e-6, atol=0
    )
    probs = laplora.posterior_predictive(projected.contrast_mean, 0 * spread, mask).probs[:, 1]
    torch.testing.assert_close(probs.view(24, CLASSES), p)
    # Labels that the logits miss half of the time: a variance helps, and the choice of a prior sees that.
    told = (torch.rand(72, generator=torch.Generator().manual_seed(2)) < 0.5).long()
    chosen = laplora.choose_by_validation(posterior, projected, told, mask)
    assert chosen.prior.precision["all"] < 1e6


def test_bernoulli_takes_every_labels_jacobians_and_no_mask(problem: Problem) -> None:
    logits, jacobians = problem.batch(problem.rows[:4])
    with pytest.raises(DataError, match="must be \\(batch, classes, "):
        fit_jacobians([in_contrasts((logits, jacobians))], EXACT, likelihood="bernoulli")
    mask = torch.tensor([True, True, False]).expand(4, 3)
    with pytest.raises(DataError, match="leave the class mask out"):
        fit_jacobians([(logits, jacobians, mask)], EXACT, likelihood="bernoulli")


def test_rows_of_fewer_classes(problem: Problem) -> None:
    """A third class that no row can have changes nothing: its contrast has no curvature and the first is the same."""
    logits, jacobians = problem.batch(problem.rows)
    mask = torch.tensor([True, True, False]).expand(24, 3)
    masked = fit_jacobians([(logits, jacobians, mask)], EXACT)
    two = fit_jacobians([(logits[:, :2], {name: j[:, :2] for name, j in jacobians.items()})], EXACT)
    whole = jacobian_covariance(masked, (logits, jacobians, mask), PRECISION)[:, :1, :1]
    alone = jacobian_covariance(two, (logits[:, :2], {n: j[:, :2] for n, j in jacobians.items()}), PRECISION)
    torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-12)


def test_tensors_of_a_graph_are_taken_as_numbers(problem: Problem) -> None:
    batches = problem.batches()
    grown = [(logits.clone().requires_grad_(), jacobians) for logits, jacobians in batches]
    for structure in ("exact", "joint_core"):
        settings = StructureSettings(structure=structure)
        covariance = jacobian_covariance(fit_jacobians(grown, settings), grown[0], 1.0)
        assert not covariance.requires_grad
        assert covariance.equal(jacobian_covariance(fit_jacobians(batches, settings), batches[0], 1.0))


def test_what_cannot_be_fitted(problem: Problem) -> None:
    batches = problem.batches()
    logits, jacobians = problem.batch(problem.rows[:3])
    with pytest.raises(ConfigError, match="an iterator can be used once"):
        fit_jacobians(iter(batches))
    with pytest.raises(ConfigError, match="kfac_reduce needs the inputs"):
        fit_jacobians(batches, StructureSettings(structure="kfac_reduce"))
    with pytest.raises(DataError, match="there are no batches"):
        fit_jacobians([])
    with pytest.raises(DataError, match="no Jacobians"):
        fit_jacobians([(logits, {})])
    with pytest.raises(DataError, match="give a list of batches, got Tensor"):
        fit_jacobians(batches[0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a batch must be \(logits, Jacobians by weight\)"):
        fit_jacobians([(logits, jacobians["0.weight"])])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"got \(3, 1, 7, 5\)"):
        fit_jacobians([(logits, {"0.weight": jacobians["0.weight"][:, :1]})])
    with pytest.raises(DataError, match="both be"):
        fit_jacobians([(logits, jacobians, torch.ones(3, 2, dtype=torch.bool))])
    with pytest.raises(NonFiniteError):
        fit_jacobians([(logits, {name: j * torch.nan for name, j in jacobians.items()})], EXACT)
    posterior = fit_jacobians(batches, EXACT)
    with pytest.raises(DataError, match=r"\['0.bias'"):
        jacobian_covariance(posterior, (logits, {"2.weight": jacobians["2.weight"]}), 1.0)
    with pytest.raises(DataError, match="another shape"):
        jacobian_covariance(posterior, (logits, jacobians | {"2.weight": jacobians["2.weight"].mT}), 1.0)
    broken = {**jacobians, "2.weight": jacobians["2.weight"] * torch.nan}
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in 2\.weight"):
        jacobian_covariance(posterior, (logits, broken), 1.0)
    with pytest.raises(NonFiniteError, match="NaN or infinity in the logits"):
        project_jacobians(posterior, [(logits * torch.inf, jacobians)])
    with pytest.raises(PriorError):
        jacobian_covariance(posterior, (logits, jacobians), 0.0)


def test_the_pages_example_runs() -> None:
    (block,) = (block for block in page_blocks("python") if "fit_jacobians" in block.text)
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    torch.testing.assert_close(names["probs"].sum(1), torch.ones(len(names["probs"]), dtype=torch.float64))
