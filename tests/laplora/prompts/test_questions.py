"""The question that an artifact answers: what matches it, and how a state fills the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from laplora.artifact.manifest import Manifest, parse_manifest
from laplora.errors import ArtifactCorruptError, ConfigError, InvalidInputError
from laplora.prompts.questions import AnsweredQuestion, Question, answered_question, check_question
from laplora.prompts.templates import TEMPLATES, PromptTemplate

ARTIFACT = Path(__file__).parents[3] / "artifacts" / "fields-smollm2"
LABELS = ("calm", "cross", "furious")


def of(declared: dict[str, Any] | None, template: str = "sentiment", labels: Any = LABELS) -> AnsweredQuestion:
    question = None if declared is None else Question.model_validate(declared)
    if question is not None:
        check_question(question, TEMPLATES[template], labels, several=False)
    found = answered_question(question, TEMPLATES[template], labels, several=False)
    assert found is not None
    return found


def test_a_choice_is_matched_by_its_words_in_any_order() -> None:
    choice = of({"instructions": "Mood?", "options": {"calm": "polite", "cross": {"a": 1, "b": [2]}}})
    options = {"furious": None, "cross": {"b": [2], "a": 1}, "calm": "polite"}
    assert choice.matches("choice", "Mood?", options)
    assert choice.keys(options) == list(LABELS)
    assert not any(choice.matches("choice", other, options) for other in ("Mood", None, ["Mood?"]))
    assert not choice.matches("score", "Mood?", options)
    for others in (options | {"calm": None}, {"calm": "polite", "furious": None}, options | {"sad": None}):
        assert not choice.matches("choice", "Mood?", others)


def test_the_order_of_levels_counts_and_a_level_without_words_is_its_label() -> None:
    score = of({"type": "score", "options": {"furious": "threatens"}})
    assert score.criteria == ["calm", "cross", "threatens"]
    assert score.keys(None) == ["0", "1", "2"]
    assert score.matches("score", None, ["calm", "cross", "threatens"])
    assert not score.matches("score", None, ["cross", "calm", "threatens"])


@pytest.mark.parametrize("labels", [("ham", "spam"), ("spam", "ham")])
def test_a_side_of_a_noul_may_be_left_out(labels: Any) -> None:
    noul = of({"type": "noul", "instructions": "Spam?", "yes_label": "spam", "options": {"spam": "ads"}}, labels=labels)
    assert noul.keys(None) == ["true" if label == "spam" else "false" for label in labels]
    assert noul.criteria == {"true": "ads", "false": None}
    assert noul.matches("noul", "Spam?", {"true": "ads"})
    assert noul.matches("noul", "Spam?", {"true": "ads", "false": None})
    assert not noul.matches("noul", "Spam?", {"false": "ads"})
    assert not noul.matches("noul", "Spam?", None)
    bare = of({"type": "noul", "instructions": "Spam?", "yes_label": "spam"}, labels=labels)
    assert bare.matches("noul", "Spam?", None)


def test_without_a_declared_question_it_is_a_choice_of_the_templates_words() -> None:
    derived = of(None, "boolq", ("No", "Yes"))
    assert derived.matches("choice", TEMPLATES["boolq"].text, {"Yes": None, "No": None})
    assert answered_question(None, TEMPLATES["sentiment"], LABELS, several=True) is None
    assert answered_question(None, TEMPLATES["sentiment"], [str(i) for i in range(256)], several=False) is None


def test_multiple_choice_takes_the_options_of_the_request() -> None:
    letters = of({"instructions": "Which?"}, "multiple_choice", "ABCD")
    options = {"x": "an ox", "y": None, "z": {"no": "text"}}
    assert letters.matches("choice", "Which?", options)
    assert letters.keys(options) == ["x", "y", "z"]
    assert letters.choices(options) == {"choices": ["an ox", "y", "z"]}
    assert letters.state_fields("Who?") == {"question": "Who?"}
    assert (letters.option_counts, letters.criteria) == ((2, 4), None)
    assert of(None, "winogrande", "AB").option_counts == (2, 2)


@pytest.mark.parametrize(
    ("template", "mapping", "state", "fields"),
    [
        ("sentiment", {}, "a film", {"text": "a film"}),
        ("sentiment", {}, {"text": "a film"}, {"text": "a film"}),
        ("sentiment", {}, {"text": {"b": [1, "ä"], "a": None}}, {"text": '{"a": null, "b": [1, "ä"]}'}),
        ("sentiment", {}, ["a", 2], {"text": '["a", 2]'}),
        ("sentiment", {}, {"body": "a film"}, None),
        ("sentiment", {}, {"text": "a film", "more": 1}, None),
        ("sentiment", {}, {"text": None}, None),
        ("sentiment", {}, {}, None),
        ("sentiment", {"text": "body"}, {"body": 3, "more": 1}, {"text": "3"}),
        ("sentiment", {"text": "body"}, "a film", {"text": "a film"}),
        ("sentiment", {"text": "body"}, {"other": 1}, None),
        ("sentiment", {"text": None}, {"more": 1}, {"text": '{"more": 1}'}),
        ("boolq", {}, {"question": "q", "passage": "p"}, {"question": "q", "passage": "p"}),
        ("boolq", {}, "q", None),
        ("boolq", {}, ["q", "p"], None),
        ("boolq", {"question": "q", "passage": None}, {"q": "a"}, {"question": "a", "passage": '{"q": "a"}'}),
        ("boolq", {"question": "q", "passage": "p"}, {"q": "a"}, None),
    ],
)
def test_a_state_fills_the_template_in_one_way_or_not_at_all(
    template: str, mapping: Any, state: Any, fields: dict[str, str] | None
) -> None:
    answers = of({"state": mapping}, template)
    if fields is not None:
        assert answers.state_fields(state) == fields
        return
    with pytest.raises(InvalidInputError, match="the state is an object with"):
        answers.state_fields(state)


@pytest.mark.parametrize(
    ("declared", "template", "said"),
    [
        ({"type": "noul", "yes_label": "calm"}, "sentiment", "two labels"),
        ({"yes_label": "calm"}, "sentiment", "no other type"),
        ({"options": {"sad": None}}, "sentiment", "the labels are"),
        ({"state": {"body": "text"}}, "sentiment", "the fields"),
        ({"state": {"question": "q"}}, "boolq", "the fields"),
        ({"type": "score"}, "multiple_choice", "it is a choice"),
        ({"options": {"calm": "x"}}, "multiple_choice", "it is a choice"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(declared: Any, template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(declared, template)
    with pytest.raises(ConfigError, match="leave it out"):
        check_question(Question(), PromptTemplate("t", 1, "{text}"), LABELS, several=True)
    with pytest.raises(ValidationError):
        Question.model_validate({"options": {True: "an unquoted Yes of YAML"}})


def test_a_manifest_has_a_question_or_none_and_refuses_one_that_does_not_fit() -> None:
    """That of the repository was written before there were any."""
    fields = json.loads((ARTIFACT / "manifest.json").read_text(encoding="utf-8"))
    assert not {"question", "most_options"} & set(fields)
    manifest = parse_manifest("fields", json.dumps(fields).encode())
    assert manifest.answers is not None
    assert manifest.answers.criteria == dict.fromkeys(manifest.labels)
    declared = json.dumps(fields | {"question": {"type": "score", "instructions": ["a", 1]}})
    assert Manifest.model_validate_json(declared).answers.criteria == list(manifest.labels)  # type: ignore[union-attr]
    with pytest.raises(ArtifactCorruptError, match="two labels"):
        parse_manifest("fields", json.dumps(fields | {"question": {"type": "noul"}}).encode())
