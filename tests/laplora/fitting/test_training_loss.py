"""The loss with a pull to the base's answers as a fit sees it: likelihood, curvature, every structure, the prior."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from telling import Noted
from tiny_classifiers import adapted_classifier, batch_of, plain_logits, random_rows
from tiny_models import Task, add_lora, tiny_model, tiny_task
from tiny_runs import save_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.classifier import base_probs
from laplora.errors import ConfigError
from laplora.fitting.curvature import fit_curvature
from laplora.fitting.progress import Silent
from laplora.fitting.rows import read_rows
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Forgetful
from laplora.fitting.training_loss import TrainingLoss, check_kl_to_base, recorded_kl_to_base
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks, find_blocks
from laplora.linearised import contrast_hessian, contrasts, expected_log_likelihood, log_likelihood
from laplora.posterior.base import Posterior
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.posterior.structures import STRUCTURES
from laplora.readouts.classification_head import classification_head
from laplora.readouts.label_tokens import LabelTokens

KL = 1.5
WEIGHTS = (0.5, 2.0, 1.25)
LABELS = ("down", "up", "flat", "gone", "odd")


def of_base(model: Any, task: Task) -> torch.Tensor:
    """Return the base's probabilities over each row's possible labels, row by row, from whole-vocabulary logits."""
    found = torch.zeros(len(task.rows), task.classes, dtype=torch.float64)
    with model.disable_adapter(), torch.no_grad():
        for i, row in enumerate(task.rows):
            logits = model(input_ids=torch.tensor([row.token_ids])).logits[0, -1]
            possible = task.label_ids[: row.class_count]
            found[i, : len(possible)] = logits[possible].double().softmax(0)
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "lm_head"], ["v_proj", "embed_tokens"]])
def test_the_base_answers_without_the_adapter(tied: bool, targets: list[str]) -> None:
    """Also where it is on the output embedding or on the input's, in float64 to rounding; trained weights stay so."""
    model, task = tiny_model("llama", tied=tied, targets=targets), tiny_task()
    trainable = [p.requires_grad for p in model.parameters()]
    readout = LabelTokens(tuple(task.label_ids))
    found = base_probs(model, readout, task.batch())
    torch.testing.assert_close(found, of_base(model, task), rtol=1e-10, atol=1e-12)
    assert [p.requires_grad for p in model.parameters()] == trainable
    adapted = readout.scores(model, task.batch()).logits.detach()
    assert (adapted.masked_fill(~task.batch().class_mask, -torch.inf).softmax(1) - found).abs().max() > 0.01


@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["labels", "class weights"])
def test_curvature_and_likelihood_are_those_of_the_whole_loss(weights: tuple[float, ...]) -> None:
    """By automatic differentiation of cross-entropy plus divergence, written out, in the contrasts."""
    model, task = tiny_model("llama"), tiny_task()
    batch, blocks = task.batch(), find_blocks(model, task.classes)
    readout = LabelTokens(tuple(task.label_ids))
    jacobians = contrast_jacobians(model, batch, readout, blocks)
    of_rows, found = TrainingLoss(FitSettings(kl_to_base=KL, class_weights=weights), model, readout)(
        jacobians, task.labels, batch
    )
    pulled, q = of_base(model, task), contrasts(task.classes)
    shift, scale = torch.zeros(task.classes, dtype=torch.float64), torch.ones(task.classes, dtype=torch.float64)
    if weights:
        scale = torch.tensor(weights, dtype=torch.float64)
        shift = scale.log()
    for row, label in enumerate(task.labels.tolist()):
        possible = batch.class_mask[row]
        share = pulled[row][possible]

        def loss(
            z: torch.Tensor, label: int = label, possible: torch.Tensor = possible, share: torch.Tensor = share
        ) -> torch.Tensor:
            weighted = ((q @ z + shift)[possible]).log_softmax(0)[label] * scale[label]
            divergence = (share * (share.log() - (q @ z)[possible].log_softmax(0))).sum()
            return -weighted + KL * divergence

        z = jacobians.logits[row].double() @ q
        hessian = torch.autograd.functional.hessian(loss, z)
        torch.testing.assert_close(found.curvature(batch.class_mask)[row], hessian, rtol=1e-9, atol=1e-12)
        entropy = -(share * share.log()).sum()
        assert float(of_rows[row]) == pytest.approx(-float(loss(z)) - KL * float(entropy), rel=1e-9)
    if not weights:
        plain = (1 + KL) * contrast_hessian(jacobians.logits, batch.class_mask)
        torch.testing.assert_close(found.curvature(batch.class_mask), plain, rtol=1e-9, atol=1e-12)


# Every structure.


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> laplora.Classifier:
    base = save_tiny_base(tmp_path_factory.mktemp("base") / "base", tied=False)
    targets = ["q_proj", "v_proj", "lm_head"]
    model = add_lora(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), targets, dtype=None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    labels = {name: f" {letter}" for name, letter in zip(LABELS, "ABCDE", strict=True)}
    return laplora.Classifier(model, tokenizer, labels=labels, template="Message: {text}\nTopic:", max_tokens=48)


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [{"text": f"message number {i} of {i % 7}", "label": LABELS[i % len(LABELS)]} for i in range(count)]


def fitted(classifier: laplora.Classifier, **settings: Any) -> tuple[Posterior, float]:
    """Return the curvature over the rows, nothing of it cut, and their log-likelihood."""
    laplace = {"rank": 4, "joint_rank": 48, "oversampling": 4} | settings.pop("laplace", {})
    chosen = FitSettings.model_validate({"laplace": laplace} | settings)
    blocks = covered_blocks(classifier.model, classifier.readout)
    return fit_curvature(classifier, read_rows(rows(), classifier, "label"), blocks, chosen, Forgetful(), Silent())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("many", [False, True], ids=["every contrast", "few directions"])
def test_every_structure_is_of_so_many_times_the_curvature(
    classifier: laplora.Classifier, structure: str, many: bool
) -> None:
    """``((1 + kl) H + (1 + kl) lambda)^-1`` is ``(H + lambda)^-1 / (1 + kl)``; to float32's rounding of the bases."""
    few = {"limit": 2, "leading": 2, "samples": 2, "directions": 2, "reference_rows": 3} if many else {}
    settings: dict[str, Any] = {"laplace": {"structure": structure}, "many_classes": few}
    plain, _ = fitted(classifier, **settings)
    pulled, _ = fitted(classifier, kl_to_base=KL, **settings)
    assert isinstance(pulled, ManyClassPosterior) == many
    inner = [one.inner if isinstance(one, ManyClassPosterior) else one for one in (plain, pulled)]
    batch = classifier.collate(classifier.encode_examples(read_rows(rows(5), classifier, "label")))
    jacobians = contrast_jacobians(classifier.model, batch, classifier.readout, plain.blocks)
    precisions = torch.full((len(plain.blocks),), 3.0, dtype=torch.float64)
    before = inner[0].covariance_of(jacobians, precisions)
    after = inner[1].covariance_of(jacobians, precisions * (1 + KL))
    torch.testing.assert_close(after * (1 + KL), before, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(inner[1].covariance_of(jacobians, precisions), before, rtol=1e-2)
    if isinstance(inner[0], EigenPosterior):
        assert isinstance(inner[1], EigenPosterior)
        for one, other in zip(inner[0].scale, inner[1].scale, strict=True):
            torch.testing.assert_close(other.sum(), (1 + KL) * one.sum(), rtol=1e-3, atol=0)


def test_the_likelihood_of_the_evidence_has_the_bases_rows_too(classifier: laplora.Classifier) -> None:
    """Labels once, and ``kl`` labels of each row that are drawn from the base's answer."""
    _, found = fitted(classifier, kl_to_base=KL, laplace={})
    examples = read_rows(rows(), classifier, "label")
    batch = classifier.collate(classifier.encode_examples(examples))
    logits = classifier.readout.scores(classifier.model, batch).logits.detach()
    labels = torch.tensor([example.label for example in examples])
    with classifier.model.disable_adapter(), torch.no_grad():
        base = classifier.readout.scores(classifier.model, batch).logits.double().softmax(1)
    of_labels = log_likelihood("categorical", logits, labels, batch.class_mask).sum()
    of_answers = expected_log_likelihood(base, logits, batch.class_mask).sum()
    assert found == pytest.approx(float(of_labels + KL * of_answers), rel=1e-4)


def test_the_prior_of_the_loss_stands_beside_the_chosen_one(classifier: laplora.Classifier) -> None:
    """Of precision l2 times the rows, and it answers where the settings say so."""
    examples, told = rows(30), Noted()
    settings: dict[str, Any] = {"l2_to_initial": 0.25, "laplace": {"prior": "l2"}}
    off = {"temperature": False, "conditioned": False, "serve": "laplace"}
    chosen = FitSettings.model_validate(settings | {"predictives": off})
    with warnings.catch_warnings():  # random weights: a prior at the edge of the range is no fault
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = laplora.fit(classifier, examples[:20], examples[20:], settings=chosen, progress=told).fit
    assert any("the log evidence of prior l2 is not that of the training loss" in line for line in told.lines)
    assert fit.served.method == "l2"
    assert dict(fit.served.prior.precision) == {"all": pytest.approx(0.25 * 20)}
    assert {"validation", "evidence", "l2"} == {choice.method for choice in fit.choices}
    best = max(choice.objective for choice in fit.choices if choice.method == "evidence")
    assert fit.served.objective <= best + 1e-6, "the chosen one has the most evidence"


def test_the_pull_is_read_from_an_artifact_or_refused() -> None:
    for config, found in (({}, 0.0), ({"kl_to_base": 0.5}, 0.5), ({"optimizer": {"kl_to_base": 2}}, 2.0)):
        assert recorded_kl_to_base(config) == found  # type: ignore[arg-type]
    for value in (-1, float("nan"), float("inf"), "1", None, True):
        for optimizer in (value, {"kl_to_base": value}):
            with pytest.raises(ConfigError, match="kl_to_base that is no number from 0"):
                recorded_kl_to_base({"optimizer": optimizer})


# What has no answer to be pulled to.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "was trained with the adapter, and the base's own head"),
        ({"problem_type": "multi_label_classification"}, "right or wrong on their own"),
    ],
)
def test_a_head_that_was_trained_is_refused(options: dict[str, Any], message: str) -> None:
    model = adapted_classifier("roberta", **options)
    with pytest.raises(ConfigError, match=message):
        check_kl_to_base(FitSettings(kl_to_base=0.1), classification_head(model))
    check_kl_to_base(FitSettings(), classification_head(model))


def test_a_head_that_the_base_brought_has_an_answer() -> None:
    """LoRA alone was trained: the base's answer is its own head's, without the adapter."""
    model = adapted_classifier("llama", lora={"task_type": "FEATURE_EXTRACTION"})
    readout, examples = classification_head(model), random_rows()
    check_kl_to_base(FitSettings(kl_to_base=0.1), readout)
    found = base_probs(model, readout, batch_of(examples, "left"))
    for row, probs in zip(examples, found, strict=True):
        with model.disable_adapter():
            torch.testing.assert_close(probs, plain_logits(model, row).detach().softmax(0), rtol=1e-9, atol=1e-12)
        assert (plain_logits(model, row).softmax(0) - probs).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: v}, name) for name in ("kl_to_base", "l2_to_initial") for v in (-0.1, float("nan"), float("inf"))),
        ({"laplace": {"prior": "l2"}}, "set it above 0"),
        ({"l2_to_initial": 0.1, "laplace": {"prior": "l2", "granularity": "group"}}, "use granularity scalar"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitSettings.model_validate(settings)
