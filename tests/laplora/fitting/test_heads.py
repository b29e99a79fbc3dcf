"""``laplora.fit`` of a model as it is: answers by heads, honest ones of every row, labels that come and go."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from head_artifacts import letter_rows, letters
from sklearn.model_selection import cross_val_score
from tiny_classifiers import features_of
from tiny_models import add_lora, tiny_base
from tiny_tokenizer import tiny_tokenizer

import laplora
from laplora.answers.review_scores import ReviewScores
from laplora.decisions.costs import cheapest
from laplora.errors import ConfigError, DataError, DownloadError, LaploraWarning, ModelError
from laplora.execution.progress import Silent
from laplora.experts.familiar import compared
from laplora.familiarity.ood_score import fit_ood_score
from laplora.features import expert_passes
from laplora.fitting.cross_fitted import (
    accepted_rows,
    built_in_texts,
    cross_fitted_report,
    flagged_rows,
    unfamiliar_rows,
)
from laplora.fitting.rows import read_rows
from laplora.report.page import html
from laplora.report.verdict import in_words, judge
from laplora.sklearn import LaploraClassifier

LABELS = {"no": " w1", "yes": " w2"}
FROZEN = laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]}})
Rows = list[dict[str, Any]]


class Said(Silent):
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def labelled(count: int, seed: int = 0, first: int = 0) -> Rows:
    """Return rows of letters with ids."""
    return [{"id": f"row-{first + i}", **row} for i, row in enumerate(letter_rows(count, seed))]


def classifier(model: Any = None, around: str = "[CLS] $A", **options: Any) -> laplora.Classifier:
    given = tiny_base("llama") if model is None else model
    return laplora.Classifier(given, letters(around), "{text} z", LABELS, max_tokens=16, **options)


@pytest.fixture(scope="module")
def posterior() -> laplora.HeadsPosterior:
    found = laplora.fit(classifier(), labelled(60), settings=FROZEN, progress=False)
    assert isinstance(found, laplora.HeadsPosterior)
    return found


def test_a_row_is_accepted_by_what_does_not_know_it_and_the_report_says_how_many(
    posterior: laplora.HeadsPosterior,
) -> None:
    heads, folds, unlike = posterior.heads, posterior.heads.labelled.folds, unfamiliar_rows(posterior)
    score = torch.linspace(0.1, 0.6, 60, dtype=torch.float64)[torch.randperm(60)]
    decided = []
    for wrong in (score > 0.55, (score > 0.55) | (folds == 0)):  # in the second every row of one fold is wrong
        scores = {**heads.scores, "frozen": ReviewScores(score, wrong)}
        changed = copy.copy(posterior)
        changed.heads = replace(heads, scores=scores)
        decided.append(accepted_rows(changed, unlike))
    first, second = decided
    assert 20 < first.sum() < 60
    assert unlike.nonzero()[:, 0].tolist() == [farthest(posterior)]  # 2 % of 60
    assert not first[unlike].any()
    assert first[folds == 0].equal(second[folds == 0])  # its own mistakes move no threshold of its rows
    assert not second[folds != 0].any()
    report = cross_fitted_report(changed, "title", "rows.csv", {})
    assert report.rows.review.equal(~second)
    said = []
    for one in (report, cross_fitted_report(posterior, "title", "rows.csv", {})):
        served = int(re.findall("accepts ([0-9]+) of them", one.notes[0])[0])
        said.append(("far apart" in one.notes[0], abs(served - int((~one.rows.review).sum())) > 6))
    assert said == [(True, True), (False, False)]
    assert report.rows.probs.equal(heads.experts["frozen"].held_out.exp())
    assert list(report.methods) == ["map", "frozen"]
    assert (report.rows.texts or [])[0] == posterior.rows[0].fields["text"]
    assert "60 rows of rows.csv, each answered by heads and a threshold that do not know it" in html(
        report, judge(report)
    )


def test_costs_and_risks_by_label_are_the_artifacts_and_stay_when_it_learns() -> None:
    costs = {"review": 1.0, "wrong": {"yes": 20.0, "*": 2.0}}
    for wanted in ({"costs": costs}, {"target_risk": {"yes": 0.05, "*": 0.3}}):
        settings = laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]}, "calibration": wanted})
        fitted = laplora.fit(classifier(), labelled(60), settings=settings, progress=False)
        assert isinstance(fitted, laplora.HeadsPosterior)
        more = labelled(40, seed=5, first=60)
        for posterior in (fitted, fitted.condition(more)):
            rule = posterior.predictor.artifact.manifest.predictives["frozen"].thresholds.review
            stated = posterior.predict(more)
            asked = posterior.predictor.decided(posterior.predict(more), rule.wanted)
            assert stated == asked
            report = cross_fitted_report(posterior, "title", "rows.csv", {})
            if rule.costs is None:
                assert rule.wanted == {"no": 0.3, "yes": 0.05}
                assert "accepted by answered label: no " in in_words(report, judge(report))
                continue
            assert rule.costs.model_dump() == costs
            matrix = rule.costs.matrix(("no", "yes"))
            best, expected = cheapest(posterior.held_out.exp(), matrix)
            assert report.rows.predicted.equal(best)
            assert report.rows.review.equal((expected > 1) | flagged_rows(posterior))
            assert report.cost is not None
            page, said = html(report, judge(report)), in_words(report, judge(report))
            assert "What answers cost" in page
            assert f"an input costs {report.cost['mean']:.4g} on average" in said


def farthest(posterior: laplora.HeadsPosterior) -> int:
    """Return the row that is farthest from the rows outside its fold, each fold's distances fitted anew."""
    fitted = posterior.heads.experts["frozen"].fitted
    states, scores = compared(fitted.rows.blocks, fitted.rows.class_mask), torch.zeros(60)
    for place in range(60):
        rest = (fitted.folds != fitted.folds[place]).nonzero()[:, 0]
        score = fit_ood_score(states.take(rest), torch.zeros_like(rest))
        scores[place] = score.of(states.take(torch.tensor([place])))
    return int(scores.argmax())


def test_what_the_flag_sees_of_built_in_texts_is_counted(
    posterior: laplora.HeadsPosterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(texts: list[str]) -> list[SimpleNamespace]:
        """Return that of German texts two are flagged and the others accepted, and that all others are flagged."""
        given.extend(texts)
        german = any("Stürmer" in one for one in texts)
        accepted = [german and "Rosen" not in one and "Geigen" not in one for one in texts]
        both = (SimpleNamespace(flags=["unfamiliar"], decision="review"), SimpleNamespace(flags=[], decision="accept"))
        return [both[one] for one in accepted]

    given: list[str] = []
    monkeypatch.setattr(posterior, "predict", answers)
    assert built_in_texts(posterior) == (
        "36 of 40 built-in texts of other subjects are flagged as unlike, and 4 would be accepted; fewest are flagged "
        "in German, 2 of 6. Most German texts of other subjects are not noticed: give some a label of their own"
    )
    assert len({*given}) == 40
    assert all(given)


def largest_change(one: laplora.HeadsPosterior, other: laplora.HeadsPosterior, rows: Rows) -> float:
    logs = [np.log(each.predict_proba(rows)) for each in (one, other)]
    return float(np.abs(logs[0] - logs[1]).max())


def test_answers_are_those_of_the_head_with_its_spread_beside_the_bases_own(posterior: laplora.HeadsPosterior) -> None:
    rows = labelled(12, seed=5)
    answers = posterior.predict(rows)
    assert posterior.predictives == ("map", "frozen")
    assert repr(posterior) == "HeadsPosterior(frozen on a LlamaForCausalLM, 60 labelled rows, answers by frozen)"
    given = posterior.classifier
    states = features_of(given, "frozen", read_rows(rows, given, None), 4, answers=True)
    head = posterior.heads.experts["frozen"].fitted.head
    expected = head.predictive(states.features["frozen"])
    for i, answer in enumerate(answers):
        assert answer.predictive == "frozen"
        np.testing.assert_allclose(answer.arrays.probs, expected.log_probs[i].exp(), atol=1e-5)
        np.testing.assert_allclose(answer.arrays.map_probs, states.log_probs["zero_shot"][i].exp(), atol=1e-5)
        np.testing.assert_allclose(answer.arrays.probs_std, expected.std[i], atol=1e-4)
        np.testing.assert_allclose(answer.logit_variance, expected.variance[i], rtol=1e-3)
        np.testing.assert_allclose(np.diff(answer.logit_mean), np.diff(np.log(answer.arrays.probs)), atol=1e-9)
        disagreement = float(expected.epistemic[i])
        parts = (disagreement, answer.total - disagreement) if disagreement < answer.total else (None, None)
        assert (answer.epistemic, answer.aleatoric) == pytest.approx(parts, abs=1e-4)
        assert answer.finite
        assert set(answer.prediction_set) <= set(LABELS)
        assert (answer.decision == "review") == bool({"unfamiliar", "low_confidence"} & {*answer.flags})
        assert 1 / 61 <= answer.familiarity <= 1
    plain = posterior.predict(rows, "map")
    assert [one.map_probs for one in plain] == [one.probs for one in plain] == [one.map_probs for one in answers]
    assert plain[0].probs_std is plain[0].epistemic is None
    assert plain[0].calibrated_probs["frozen"] == pytest.approx(answers[0].probs)
    assert posterior.predict(rows[0]) == posterior.predict(rows[0]["text"]) == posterior.predict(rows[:1])
    assert posterior.predict([]) == []


def test_no_label_moves_the_answer_to_its_own_row_or_its_twin(posterior: laplora.HeadsPosterior) -> None:
    """Equal prompts, up to case and white space, and rows of a user's group are of one fold."""
    rows = labelled(60)
    rows += [{**rows[3], "text": f" {rows[3]['text']} "}, {**rows[10], "case": "one"}, {**rows[20], "case": "one"}]
    rows[7]["case"] = "one"

    def fit(given: Rows) -> laplora.HeadsPosterior:
        return laplora.fit(classifier(), given, settings=FROZEN, groups="case", progress=False)

    before = fit(rows)
    folds = before.heads.labelled.folds.tolist()
    assert folds[3] == folds[60]
    assert len({folds[place] for place in (7, 10, 20, 61, 62)}) == 1
    for together in ([3, 60], [7, 10, 20, 61, 62]):
        changed = [{**row, "label": "no" if row["label"] == "yes" else "yes"} for row in rows]
        other = fit([changed[i] if i in together else row for i, row in enumerate(rows)])
        gap = (other.experts["frozen"].held_out - before.experts["frozen"].held_out).abs().amax(1)
        assert float(gap[together].max()) == 0
        assert float(gap.max()) > 1e-3


def test_labels_that_are_learned_and_forgotten_were_never_there(posterior: laplora.HeadsPosterior) -> None:
    rows, more = labelled(20, seed=7), [{**row, "text": f"k {row['text']}"} for row in labelled(15, seed=3, first=60)]
    more.append({**labelled(60)[3], "id": "twin"})
    said = Said()
    posterior._progress, quiet = said, posterior._progress
    learned = posterior.condition(more)
    posterior._progress = quiet
    assert said.lines[0].startswith("before they were learned, 16 rows had NLL 0.")
    assert said.lines[1].startswith(
        "answers by frozen: NLL (lower is better) of 76 rows, each by fits that do not know it: frozen 0."
    )
    assert largest_change(learned, posterior, rows) > 1e-3
    assert learned.heads.labelled.folds[-1] == posterior.heads.labelled.folds[3]
    assert learned.heads.predictives["frozen"].nll != posterior.heads.predictives["frozen"].nll
    assert learned.data["rows"] == {"labelled": 76}
    for rest in (
        learned.forget([row["id"] for row in more]),
        learned.forget(more[:-1]).forget("twin"),
        posterior.forget([]),
    ):
        assert largest_change(rest, posterior, rows) < 1e-6
        for name, record in posterior.heads.predictives.items():
            assert rest.heads.predictives[name].conformal == pytest.approx(record.conformal, abs=1e-6)
            assert rest.heads.predictives[name].nll == pytest.approx(record.nll, abs=1e-6)
        assert [row.id for row in rest.rows] == [row.id for row in posterior.rows]
    without = learned.forget(labelled(60)[3])  # both copies
    assert len(without.rows) == 74
    for unknown, message in (
        ("nobody", "1 of 1 ids are of none of the 76 labelled rows"),
        ({**more[0], "text": "z z"}, "1 of 1 rows are of none"),
        ({**more[0], "label": "no" if more[0]["label"] == "yes" else "yes"}, "1 of 1 rows are of none"),
        ([row["id"] for row in labelled(60)[:59]] + [row["id"] for row in more], "fewer than two folds"),
    ):
        with pytest.raises(DataError, match=message):
            learned.forget(unknown)
    again = learned.condition([{**more[1], "id": "twin"}])
    with pytest.raises(DataError, match="1 ids are of several rows each"):
        again.forget(["twin"])
    joining = [{**labelled(60)[place], "team": "one"} for place in (3, 4)]
    with pytest.raises(DataError, match="of two groups of the labelled rows"):
        posterior.condition(joining, groups="team")


QUESTION = "{question} Choices:\n{choices}\nAnswer:"


def question_rows() -> Rows:
    """Return questions with two or three options, one of which is good."""
    draw = random.Random(0)
    good, bad = ["great", "lovely", "funny", "superb"], ["dull", "weak", "awful", "boring"]
    rows = Rows()
    for i in range(40):
        options = [draw.choice(good), *draw.sample(bad, 1 + i % 2)]
        right = options[0]
        draw.shuffle(options)
        rows.append({"question": f"Is the {draw.choice(['film', 'plot', 'cast'])} good?", "choices": options})
        rows[-1]["label"] = "ABC"[options.index(right)]
    return rows


def test_an_audit_finds_turned_labels_and_a_fit_without_them_is_one_of_the_corrected_rows(
    posterior: laplora.HeadsPosterior,
) -> None:
    rows, clear = labelled(60), posterior.audit().own.argsort(descending=True)[:3].tolist()
    turned = {f"row-{place}": rows[place]["label"] for place in clear}
    kept = next(row["id"] for row in rows if row["id"] not in turned)
    other = {"no": "yes", "yes": "no"}
    wrong = [row | {"label": other[row["label"]]} if row["id"] in turned else row for row in rows]
    before = laplora.fit(classifier(), wrong, settings=FROZEN, progress=False)
    assert isinstance(before, laplora.HeadsPosterior)
    found = before.audit()
    listed = found.to_rows(before.rows, before.classifier.labels)
    assert len(found.unlikely) < 20
    assert turned.keys() <= {row["id"] for row in listed[: len(found.unlikely)]}
    assert all(row["likelier"] == other[row["label"]] for row in listed)
    after = before.corrected(turned | {kept: None})
    expected = laplora.fit(classifier(), [row for row in rows if row["id"] != kept], settings=FROZEN, progress=False)
    assert after.rows == expected.rows
    assert after.predictor.artifact.manifest.predictives == expected.predictor.artifact.manifest.predictives
    assert largest_change(after, expected, labelled(12, seed=5)) < 1e-6
    assert before.rows[clear[0]].label != posterior.rows[clear[0]].label
    for corrections, said in (
        ({"row-0": "maybe"}, "no row can have the label 'maybe'"),
        ({"row-99": "no"}, "1 of 1 ids are of none of the 60 labelled rows"),
        (dict.fromkeys((one.id for one in before.rows if one.label == 0), "yes"), "no row has the labels"),
        (dict.fromkeys((one.id for one in before.rows), None), "leave no row"),
    ):
        with pytest.raises(DataError, match=said):
            before.corrected(corrections)


def test_an_audit_is_by_the_models_own_answer_where_that_serves(
    posterior: laplora.HeadsPosterior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laplora.HeadsPosterior, "recommended", "map")
    labels = posterior.heads.labelled.labels
    own = posterior.experts["zero_shot"].held_out.exp()[torch.arange(len(labels)), labels]
    assert posterior.audit().own.equal(own)


def test_questions_are_answered_by_their_options_in_any_order() -> None:
    tokenizer, rows = tiny_tokenizer(), question_rows()
    base = tiny_base("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    given = laplora.Classifier(base, tokenizer, QUESTION, ["A", "B", "C"], max_tokens=64)
    said = Said()
    posterior = laplora.fit(given, rows, progress=said)
    assert posterior.predictives == ("map", "options")
    laplora.fit(given, [row for row in rows if row["label"] != "C"], progress=False)  # a letter is no class
    assert posterior.evaluate(rows[:20])["options"].accuracy > 0.9
    assert said.lines[-1].startswith("answers by options: NLL (lower is better) of 40 rows")
    two = next(row for row in rows if len(row["choices"]) == 2)
    turned = posterior.predict({**two, "choices": two["choices"][::-1]})[0]
    answer = posterior.predict(two)[0]
    assert answer.labels == ("A", "B")
    np.testing.assert_allclose(turned.arrays.probs[::-1], answer.arrays.probs, atol=1e-6)
    assert set(answer.probs_std or ()) == {"A", "B"}
    assert posterior.predict_proba([two]).shape == (1, 3)

    both = laplora.fit(given, rows, settings=settings(experts={"names": ["options", "frozen"]}), progress=False)
    assert both.predictives == ("map", "options", "frozen", "pooled")
    (answer,) = both.predict([two], "pooled")
    outputs, pool = both.outputs([two]), both.heads.pool
    assert pool is not None
    logs = sum(weight * both.experts[name].log_probs(outputs) for name, weight in pool.weights.items())
    np.testing.assert_allclose(answer.arrays.probs, logs.softmax(1)[0, :2], atol=1e-6)
    assert both.heads.predictives["pooled"].nll == pytest.approx(float(both.losses["pooled"].mean()))
    assert "pooled" in both.evaluate(rows[:20]).evaluations
    more = [{**row, "id": f"more-{i}", "question": f"{row['question']} Or not?"} for i, row in enumerate(rows[:9])]
    again = both.condition(more).forget([row["id"] for row in more])
    logs = [np.log(one.predict_proba(rows[:3], "pooled").clip(1e-300)) for one in (both, again)]
    np.testing.assert_allclose(*logs, atol=1e-6)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda p: p.predict("a b", "laplace"), ConfigError, r"'laplace' is of a model with a LoRA adapter"),
        (lambda p: p.predict("a b", "other"), ConfigError, r"no predictive 'other': it has \['map', 'frozen'\]"),
        (lambda p: p.save("never"), ModelError, "not loaded from a folder or the hub"),
        (lambda p: p.suggest(["a b"], 0), ConfigError, "0 rows are to be chosen"),
        (lambda p: p.suggest(["a b"], 1, least_familiarity=2.0), DataError, "lower the least familiarity"),
    ],
)
def test_what_a_posterior_of_heads_refuses(
    ask: Callable[[Any], Any], error: type[Exception], message: str, posterior: laplora.HeadsPosterior
) -> None:
    with pytest.raises(error, match=message):
        ask(posterior)


def settings(**sections: Any) -> laplora.FitSettings:
    return laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]}} | sections)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"calibration": "split"}, ConfigError, "calibration and initial_adapter are for a LoRA adapter"),
        ({"initial_adapter": {}}, ConfigError, "the LlamaForCausalLM has none: give all labelled rows as rows"),
        ({"settings": settings(predictives={"serve": "laplace"})}, ConfigError, "predictives.serve and guarantee"),
        ({"settings": settings(calibration={"guarantee": "upper_bound"})}, ConfigError, "guarantee upper_bound"),
        ({"settings": settings(experts={"names": ["options"]})}, ConfigError, "need a template with {choices}"),
        ({"settings": settings(experts={"names": ["encoder"], "encoder": None})}, ConfigError, "encoder is off"),
        ({"rows": labelled(2)[:1] * 30}, DataError, "no row has the labels"),
        ({"rows": [{"text": "a", "label": label} for label in LABELS]}, DataError, "at least two groups"),
    ],
)
def test_what_no_heads_are_fitted_on(given: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"rows": labelled(24), "settings": FROZEN} | given
    with pytest.raises(error, match=message):
        laplora.fit(classifier(), given.pop("rows"), progress=False, **given)


def test_a_model_that_changed_answers_no_more() -> None:
    posterior = laplora.fit(classifier(), labelled(24), settings=FROZEN, progress=False)
    model = posterior.classifier.model
    model.train()
    with pytest.raises(ModelError, match="training mode"):
        posterior.predict("a b")
    model.eval()
    posterior.predict("a b")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1)
    for changed in (posterior, posterior.forget("row-3")):
        with pytest.raises(ModelError, match="not as it was fitted"):
            changed.predict("a b")
    posterior = laplora.fit(classifier(model), labelled(24), settings=FROZEN, progress=False)
    add_lora(model, ["q_proj"], dtype=None)
    with pytest.raises(ModelError, match="an adapter was put into it"):
        posterior.evaluate(labelled(8))


def test_an_encoder_that_cannot_be_fetched_is_left_out_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise DownloadError("the index does not answer")

    monkeypatch.setattr(expert_passes, "load_sentence_encoder", refuse)
    with pytest.warns(LaploraWarning, match="the expert encoder is off: the index does not answer"):
        assert laplora.fit(classifier(), labelled(24), progress=False).predictives == ("map", "frozen")
    with pytest.raises(DownloadError):
        laplora.fit(classifier(), labelled(24), settings=settings(experts={"names": ["encoder"]}), progress=False)


def test_scikit_learn_cross_validates_heads() -> None:
    """Labels that the prompt's tokenizer cannot tell apart are no hindrance: heads need no words for them."""
    estimator = LaploraClassifier(tiny_base("llama"), letters("[CLS] $A"), "{text} z", settings=FROZEN, max_tokens=16)
    texts, labels = [[row[name] for row in labelled(120)] for name in ("text", "label")]
    scores = cross_val_score(estimator, texts, labels, cv=2, scoring="neg_log_loss", error_score="raise")
    assert float(scores.mean()) > np.log(0.5)


def test_few_rows_and_repeated_prompts_are_told_of() -> None:
    rows = [*labelled(16), {"text": labelled(1)[0]["text"].upper(), "label": "no"}]
    with pytest.warns(LaploraWarning) as told:
        laplora.fit(classifier(), rows, settings=FROZEN, progress=False)
    lines = [str(one.message) for one in told]
    assert any("17 labelled rows are fewer than 20" in line for line in lines)
    assert any("1 rows repeat another row's prompt with another label" in line for line in lines)
