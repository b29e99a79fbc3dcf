"""The playground and Connect in a real browser: both answers, what to do, the same call as code, the true label."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from browser import Visit, needs_chromium, posted, printed, visit
from playwright.sync_api import Browser, expect
from server_process import fake_artifacts, fake_server

from laplora.commands.app import main

pytestmark = needs_chromium

QUOTES = """it's "good" \\ <b>$(true)</b> `id` 🎬 87000\nline two"""


def cells(visited: Visit) -> list[list[str]]:
    rows = visited.page.locator(".comparison tbody tr").all()
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]


def code(visited: Visit, name: str) -> str:
    return visited.page.locator(f"#connect-{name}").inner_text()


def test_what_to_do_comes_first_then_label_and_probability_then_why(visited: Visit) -> None:
    """The fake's probability of negative is the largest token over 100,000; it accepts what risks half of its score."""
    visited.ask("87000")
    assert cells(visited) == [["negative", "87.0 %", "87.0 %"], ["positive", "13.0 %", "13.0 %"]]
    assert visited.page.locator(".comparison svg").count() == 4
    for kind in ("map", "served"):
        assert visited.page.locator(f".comparison rect.{kind}").first.get_attribute("width") == "87.00%"
    visited.page.get_by_label("Target error rate").fill("20")
    visited.ask("87000")
    why = "0.93 is at least 0.86, the threshold for a 20 % error rate; map_probs favours 'negative'."
    expect(visited.page.locator(".verdict")).to_have_text(f"Accept positive, 13.0 % {why}")
    expect(visited.page.locator("#answer-said")).to_have_text(f"Accept. positive, 13.0 %. {why}")
    visited.page.get_by_label("Target error rate").fill("1")
    visited.ask("87000")
    said = (
        "Send to a person positive, 13.0 % 0.931 is below 0.997, the threshold for a 1 % error rate; map_probs favours"
    )
    expect(visited.page.locator(".verdict")).to_contain_text(f"{said} 'negative'. From 12.5 % on some")


def test_what_was_measured_is_said_beside_what_is_promised(visited: Visit) -> None:
    """The fake's manifest records sets of laplace alone, an ECE of it above its limit, and no limit of MAP."""
    visited.ask("87000")
    said = "Holds the true label of 90 % of inputs (stated); of 91.4 % of 500 test rows (measured)."
    sets = visited.page.locator("#answer .sets")
    assert sets.inner_text() == said
    visited.page.get_by_label("Answered by").select_option("map")
    visited.ask("87000")
    assert sets.inner_text() == "Holds the true label of 90 % of inputs (stated)."
    visited.show("artifact")
    expect(visited.page.locator("#artifact-about")).to_contain_text(said)
    row = visited.page.locator("#artifact tr.chosen")
    expect(row).to_contain_text("more than chance (0.060)")
    expect(row.locator("line.limit")).to_have_attribute("x1", "75.00%")
    assert visited.page.locator("#artifact line.limit").count() == 1


def test_every_way_to_answer_is_said_in_words_and_an_example_fills_the_form(visited: Visit) -> None:
    for option in visited.page.get_by_label("Answered by").locator("option").all():
        assert re.fullmatch(r"recommended \(\w+\)|\w+: \w.+", option.inner_text())
    visited.page.get_by_role("button", name="Clearly bad").click()
    expect(visited.page.locator(".verdict")).to_be_visible()
    assert visited.page.get_by_label("text", exact=True).input_value() == "dull ."


def test_the_call_as_curl_and_as_python_is_the_same_call_and_can_be_copied(visited: Visit, address: str) -> None:
    page = visited.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Answered by").select_option("map")
    visited.ask(QUOTES)
    command = page.locator("#call-curl").inner_text()
    assert shlex.split(command)[:3] == ["curl", "-s", f"{address}/predict"]
    body, answer = posted(command)
    assert body == {"inputs": [{"text": QUOTES}], "options": {"predictive": "map"}}
    [first] = answer["predictions"]
    said = printed(page.locator("#call-python").inner_text())
    assert said == " ".join(str(first[name]) for name in ("label", "probs", "decision", "decision_reason"))
    page.get_by_role("button", name="Copy curl").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command
    # A refusal is said where it was asked, until the next answer.
    page.get_by_label("text", exact=True).fill("1 " * 65)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#ask-problem")).to_contain_text("too long")
    visited.ask("87000")
    assert page.locator("#ask-problem").inner_text() == ""


def test_the_true_label_counts_on_the_page_feedback(browser: Browser, tmp_path: Path) -> None:
    with (
        fake_server(fake_artifacts(tmp_path)) as process,
        process.client() as client,
        visit(browser, str(client.base_url)) as visited,
    ):
        visited.show("feedback")
        expect(visited.page.locator("#feedback-said")).to_contain_text("Nothing was asked yet")
        visited.show("playground")
        visited.ask("87000")
        truth = visited.page.get_by_label("Do you know the true label?")
        expect(truth).to_have_value("")
        expect(visited.page.get_by_role("button", name="Tell it")).to_be_disabled()
        truth.select_option("positive")
        visited.page.get_by_role("button", name="Tell it").click()
        expect(visited.page.locator(".truth")).to_contain_text("Thank you")
        visited.show("feedback")
        row = visited.page.get_by_role("row", name="Accuracy")
        expect(row).to_be_visible()
        series = client.get("/feedback").json()["series"][0]
        assert series["labelled"] == 1
        assert f"{series['figures']['accuracy']['value']:.3f}" in row.inner_text()
        # Each picture says in words what it shows.
        pictures = visited.page.locator("#feedback svg[role=img]").all()
        assert [bool(re.search(r"\d", one.get_attribute("aria-label") or "")) for one in pictures] == [True] * len(
            pictures
        )
        assert pictures


def test_an_artifact_with_choices_has_a_form_of_its_own(visited: Visit) -> None:
    page = visited.page
    visited.ask("87000")
    page.get_by_label("Artifact", exact=True).select_option("riddles")
    # The other artifact's answer is not taken for this one's.
    expect(page.locator(".verdict")).to_have_count(0)
    expect(page.locator("#calls")).to_be_hidden()
    page.get_by_label("question").fill("Who 87000 ?")
    page.get_by_label("Choices, one a line").fill("Anna\nBeth\n\nCleo")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".verdict")).to_be_visible()
    assert sorted(row[0] for row in cells(visited)) == ["A. Anna", "B. Beth", "C. Cleo"]
    body, _ = posted(page.locator("#call-curl").inner_text())
    assert body["inputs"] == [{"question": "Who 87000 ?", "choices": ["Anna", "Beth", "Cleo"]}]
    assert body["artifact"] == "riddles"
    visited.show("connect")
    asked, answered = posted(code(visited, "systemone"))
    assert set(answered["answers"]["mine"]["probabilities"]) == set(asked["questions"]["mine"]["criteria"])


def test_each_ways_code_is_answered_by_this_server(visited: Visit) -> None:
    visited.show("connect")
    chosen = posted(code(visited, "systemone"))[1]["answers"]["mine"]["choice"]
    assert printed(code(visited, "client")).startswith(f"{chosen} ")


def test_the_command_line_is_one_that_works(
    visited: Visit, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs the server is run as it stands there."""
    visited.show("connect")
    lines = code(visited, "command").splitlines()
    assert f"export LAPLORA_URL='{address}'" in lines
    monkeypatch.setenv("LAPLORA_URL", address)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(next(line for line in lines if line.startswith("echo ")))
    assert set(json.loads(words[1])) == {"text", "label"}
    Path(words[3]).write_text(words[1] + "\n")
    assert "laplora report -a FOLDER --data rows.jsonl --out report.html" in lines
    assert """echo '{"text":""" in next(line for line in lines if "laplora predict" in line)
    asked = [line for line in lines if line.startswith("laplora jobs")]
    assert [main(shlex.split(line)[1:]) for line in asked] == [0, 0]
