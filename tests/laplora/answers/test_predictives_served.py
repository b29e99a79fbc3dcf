"""Every predictive of an artifact, served: against plain peft, and with everything put back.

Tolerances as in ``plain_model``: float32 sums in another order.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from plain_model import FLOAT32, SENTIMENT_INPUTS, PlainModel, distance, encode, passes_seen
from tiny_runs import FinishedRun, reseal

from laplora.artifact.folder import read_artifact
from laplora.errors import ConfigError, NonFiniteError
from laplora.jacobians.blocks import Block
from laplora.metrics.scores import row_nll
from laplora.models.lora import lora_layers, lora_of
from laplora.predictive import member_outputs
from laplora.predictive.dropout import dropout_masks
from laplora.predictive.kinds import PREDICTIVES
from laplora.predictive.member_adapters import lora_parameters
from laplora.predictor import Predictor
from training.workspace.runtime import open_run

#: Without fast, which defers rows to laplace (test_fast_served).
NAMES = tuple(name for name in PREDICTIVES if name != "fast")
#: Members whose Jacobians a predictive needs, each a pass of its own.
JACOBIANS = {"single": 1, "laplace_conditioned": 1, "checkpoints": 3}


def averaged(parts: Sequence[Sequence[float]]) -> list[float]:
    return torch.tensor(parts, dtype=torch.float64).mean(0).tolist()  # type: ignore[no-any-return]


def test_the_artifact_carries_every_predictive(mixture_run: FinishedRun) -> None:
    manifest = read_artifact(mixture_run.artifact).manifest
    assert manifest.servable == tuple(PREDICTIVES)
    counts = {name: record.member_count for name, record in manifest.predictives.items()}
    sizes = {"single": 1, "distilled": 1, "conditioned": 1, "laplace_conditioned": 1, "checkpoints": 3, "dropout": 4}
    assert counts == {n: sizes[spec.members] for n, spec in PREDICTIVES.items()}
    assert [(m.folder, m.step) for m in manifest.members] == [("members/1", 20), ("members/2", 30)]
    assert manifest.recommended.chosen_by == "calibration"
    assert set(manifest.recommended.table) == set(NAMES)
    tempered = {n for n, record in manifest.predictives.items() if record.temperature != 1}
    assert tempered == {"temperature", "conditioned", "laplace_temperature", "ensemble_temperature"}


# The probabilities, by nothing of laplora's model code.


def test_probabilities_are_those_of_plain_peft(mixture_run: FinishedRun, mixture_predictor: Predictor) -> None:
    artifact = read_artifact(mixture_run.artifact)
    plain = [PlainModel(artifact, folder) for folder in ("adapter", "members/1/adapter", "members/2/adapter")]
    rows = encode(mixture_predictor, SENTIMENT_INPUTS)
    for name in ("temperature", "ensemble", "ensemble_temperature"):
        temperature = artifact.manifest.predictives[name].temperature  # type: ignore[index]
        models = plain[:1] if name == "temperature" else plain
        for inputs, answer in zip(SENTIMENT_INPUTS, mixture_predictor.predict(rows, name), strict=True):
            parts = [model.probs(inputs, temperature) for model in models]
            assert distance(answer.probs, averaged(parts)) < FLOAT32
            std = torch.tensor(parts).std(0, correction=0).tolist()
            assert answer.probs_std is None if name == "temperature" else distance(answer.probs_std or [], std) < 1e-4


def test_mc_dropout_is_dropout_with_tied_masks(mixture_run: FinishedRun, mixture_predictor: Predictor) -> None:
    """The recorded masks on the inputs of each lora_A, in plain peft."""
    plain, rows = PlainModel(read_artifact(mixture_run.artifact)), encode(mixture_predictor, SENTIMENT_INPUTS)
    record = plain.manifest.dropout
    assert record is not None
    assert (record.probability, record.members) == (0.2, 4)
    layers = {f"{name}.lora_A": lora_of(layer).down for name, layer in lora_layers(plain.model).items()}
    masks = dropout_masks(
        [Block(name, "lora_A", layer.in_features, layer.out_features) for name, layer in layers.items()],
        0.2,
        4,
        record.seed,
    )
    parts: list[list[list[float]]] = []
    for member in range(4):
        handles = [
            layer.register_forward_pre_hook(lambda _m, x, mask=masks[name][member]: (x[0] * mask,))
            for name, layer in layers.items()
        ]
        parts.append([plain.probs(i) for i in SENTIMENT_INPUTS])
        for handle in handles:
            handle.remove()
    for i, answer in enumerate(mixture_predictor.predict(rows, "mc_dropout")):
        assert distance(answer.probs, averaged([p[i] for p in parts])) < FLOAT32
        assert distance(answer.probs, answer.map_probs) > 1e-4
        assert answer.epistemic is not None
        assert answer.epistemic > 0


def test_the_laplace_ensemble_averages_its_members_predictives(
    mixture_run: FinishedRun, mixture_predictor: Predictor, tmp_path: Path
) -> None:
    """Each member on its own, as the trained adapter of an artifact with its posterior and its prior."""
    manifest = read_artifact(mixture_run.artifact).manifest
    rows = encode(mixture_predictor, SENTIMENT_INPUTS)
    parts = [[a.probs for a in mixture_predictor.predict(rows, "laplace")]]
    for member in manifest.members:
        path = Path(shutil.copytree(mixture_run.artifact, tmp_path / member.folder))
        for file in ("adapter/adapter_model.safetensors", "posterior.safetensors"):
            shutil.copy(path / member.folder / file, path / file)
        assert member.prior is not None
        reseal(path, prior=member.prior.model_dump(mode="json"))
        alone = Predictor.load(path, device="cpu", verify_golden=False)
        parts.append([a.probs for a in alone.predict(rows, "laplace")])
    assert distance(parts[0][0], parts[1][0]) > 1e-3
    for i, answer in enumerate(mixture_predictor.predict(rows, "laplace_ensemble")):
        assert distance(answer.probs, averaged([p[i] for p in parts])) < FLOAT32


# What was swapped in is out again.


@pytest.mark.parametrize("name", NAMES)
def test_another_predictive_in_between_changes_nothing(mixture_predictor: Predictor, name: str) -> None:
    rows = encode(mixture_predictor, SENTIMENT_INPUTS)
    before = {other: mixture_predictor.predict(rows, other) for other in ("map", "laplace")}
    first = mixture_predictor.predict(rows, name)
    assert {other: mixture_predictor.predict(rows, other) for other in before} == before
    assert mixture_predictor.predict(rows, name) == first
    assert {a.predictive for a in first} == {name}


def test_a_failed_member_leaves_the_trained_adapter_in_place(mixture_run: FinishedRun) -> None:
    predictor = Predictor.load(mixture_run.artifact, device="cpu", verify_golden=False)
    members = predictor._members
    rows = encode(predictor, SENTIMENT_INPUTS)
    own = {name: p.detach().clone() for name, p in lora_parameters(members.model).items()}
    before = predictor.predict(rows, "laplace")
    last = members.checkpoints[-1]
    broken = dataclasses.replace(last, weights={n: w * torch.nan for n, w in last.weights.items()})
    predictor._members = dataclasses.replace(members, checkpoints=(*members.checkpoints[:-1], broken))
    for name in ("ensemble", "laplace_ensemble"):
        with pytest.raises(NonFiniteError):
            predictor.predict(rows, name)
    assert all(torch.equal(own[name], p) for name, p in lora_parameters(members.model).items())
    assert predictor.predict(rows, "laplace") == before


# One pass for all members, or one for each whose Jacobians are needed.


@pytest.mark.parametrize("name", NAMES)
def test_passes(mixture_predictor: Predictor, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_outputs, "SIDE_BY_SIDE_TOKENS", 10**6)
    seen = passes_seen(monkeypatch)
    answers = mixture_predictor.predict(encode(mixture_predictor, SENTIMENT_INPUTS), name)
    spec = PREDICTIVES[name]  # type: ignore[index]
    jacobians = JACOBIANS[spec.members] if spec.covariance else 0
    assert seen == (["jacobians"] * jacobians or ["scores"])
    assert (answers[0].logit_variance is None) == (jacobians == 0)


def test_what_needs_no_further_pass_comes_along(mixture_predictor: Predictor) -> None:
    rows = encode(mixture_predictor, SENTIMENT_INPUTS[:2])

    def beside(name: str, *also: str) -> set[str]:
        (first, _) = mixture_predictor.predict(rows, name, also=also)
        assert first.calibrated_probs.keys() == first.calibrated_scores.keys()
        assert (first.logit_covariance is not None) == (PREDICTIVES[name].covariance or "laplace" in also)  # type: ignore[index]
        return set(first.calibrated_probs)

    forward, laplace = {"temperature", "conditioned"}, {"laplace_temperature", "laplace_conditioned"}
    assert beside("map") == forward
    assert beside("temperature") == {"conditioned"}
    assert beside("laplace") == forward | laplace
    assert beside("ensemble") == {*forward, "ensemble_temperature"}
    assert beside("mc_dropout", "laplace") == {*forward, "laplace", *laplace}
    assert beside("laplace", *NAMES) == {*NAMES} - {"map", "laplace"}


def test_what_comes_along_is_what_would_be_answered(mixture_predictor: Predictor) -> None:
    rows = encode(mixture_predictor, SENTIMENT_INPUTS)
    together = mixture_predictor.predict(rows, "map", also=NAMES)
    for name in NAMES[1:]:
        for answer, one in zip(mixture_predictor.predict(rows, name), together, strict=True):
            assert distance(answer.probs, one.calibrated_probs[name]) < FLOAT32
            assert answer.score == pytest.approx(one.calibrated_scores[name], abs=1e-4)
            assert answer.map_probs == pytest.approx(one.map_probs, abs=FLOAT32)


# What follows from the probabilities is the predictive's own.


def test_sets_and_uncertainty_are_the_predictives_own(mixture_predictor: Predictor) -> None:
    manifest, rows = mixture_predictor.artifact.manifest, encode(mixture_predictor, SENTIMENT_INPUTS)
    for name in NAMES:
        spread = PREDICTIVES[name].covariance or PREDICTIVES[name].members != "single"
        threshold = manifest.predictives[name].conformal
        for answer in mixture_predictor.predict(rows, name):
            assert answer.prediction_set == [
                label
                for label, p in zip(answer.labels, answer.probs, strict=True)
                if 1 - p <= threshold or "unfamiliar" in answer.flags
            ]
            assert answer.total == pytest.approx(float(torch.special.entr(torch.tensor(answer.probs)).sum()), abs=1e-6)
            assert (answer.epistemic is not None) == (answer.probs_std is not None) == spread


def test_a_predictive_that_is_not_there(mixture_predictor: Predictor, sentiment_predictor: Predictor) -> None:
    rows = encode(mixture_predictor, SENTIMENT_INPUTS[:1])
    with pytest.raises(
        ConfigError, match=r"no predictive 'Laplace': it has \['map', 'temperature', 'conditioned', 'fast'"
    ):
        mixture_predictor.predict(rows, "Laplace")
    with pytest.raises(ConfigError, match=r"no predictive 'ensemble': it has \['map', "):
        sentiment_predictor.predict(rows, "map", also=["ensemble"])


# Decisions for a stated risk.


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_scores_give_the_artifacts_decisions_at_its_risk(mixture_predictor: Predictor, name: str) -> None:
    texts = [{"text": f"The {noun} was {word}."} for noun in ("film", "lamp") for word in ("great", "dull", "of", "")]
    answers = mixture_predictor.predict(encode(mixture_predictor, texts), name)
    own = mixture_predictor.artifact.manifest.predictives[name].thresholds.review.target_risk  # type: ignore[index]
    assert mixture_predictor.decided(answers, own) == mixture_predictor.decided(answers, None) == (answers, own)
    sure, _ = mixture_predictor.decided(answers, 0.0001)
    assert {answer.decision for answer in sure} == {"review"}
    with pytest.raises(ConfigError):
        mixture_predictor.decided(answers, 1.5)


def test_an_empty_request_is_answered_and_decided_too(mixture_predictor: Predictor) -> None:
    assert mixture_predictor.predict([]) == []
    assert mixture_predictor.decided([], 0.2) == ([], 0.2)


# What is measured is what answers.


def test_the_report_measures_what_answers(mixture_run: FinishedRun, mixture_predictor: Predictor) -> None:
    run, manifest = open_run(mixture_run.config), mixture_predictor.artifact.manifest
    evaluation = json.loads((mixture_run.artifact / "report" / "evaluation.json").read_text())
    assert [n for n in evaluation if n in NAMES] == list(NAMES)
    rows, labels = run.encode(run.splits.test), torch.tensor([e.label for e in run.splits.test])
    for name in NAMES:
        answers = mixture_predictor.predict(rows, name)
        nll = row_nll(torch.tensor([a.probs for a in answers], dtype=torch.float64), labels).mean()
        assert evaluation[name]["nll"] == pytest.approx(float(nll), rel=1e-3)
        held = [a.labels[i] in a.prediction_set for a, i in zip(answers, labels.tolist(), strict=True)]
        sets = evaluation[name]["sets"]
        assert sets["coverage"] == pytest.approx(sum(held) / len(held), abs=0.05)
        assert sets["mean_size"] == pytest.approx(sum(len(a.prediction_set) for a in answers) / len(held), abs=0.05)
        assert manifest.metrics[name]["set_coverage"] == sets["coverage"]
    report = (mixture_run.artifact / "report" / "results.md").read_text()
    assert f"Served: {manifest.recommended.reason}." in report
    assert "| Laplace ensemble |" in report
