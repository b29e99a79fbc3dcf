"""docs/tutorial.md, run as a reader does: its commands on its file, with the figures and answers that it shows."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, Block, blocks, commands
from server_process import server_process

from laplora.artifact.folder import read_artifact
from laplora.commands.app import main
from laplora.commands.quick import earlier_figures
from laplora.data.records import read_records
from laplora.decisions.wanted import Costs
from laplora.models.offline import ensure_encoder, ensure_model
from laplora.prompts.questions import Question

PAGE = [block for block in blocks() if block.page == "docs/tutorial.md"]


def shown(*, beginning: str) -> Block:
    """Return the page's block that begins so."""
    (block,) = [block for block in PAGE if block.text.startswith(beginning)]
    return block


def figures(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


@pytest.mark.timeout(300)  # a whole first hour, in seconds
def test_the_page_is_what_a_reader_meets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_model("smollm2-135m-instruct")
    ensure_encoder("all-minilm-l6-v2")
    (tmp_path / "examples").mkdir()
    for name in ("messages.csv", "shops.csv"):
        shutil.copy(ROOT / "examples" / name, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    assert Path("examples/messages.csv").read_text().startswith(shown(beginning="id,message").text)
    ((program, *words),) = commands(shown(beginning="laplora quick examples/messages.csv\n"))
    assert (program, main([*words, "--yes", "--question", "Which team?"])) == ("laplora", 0)
    assert read_artifact(Path("examples/messages")).manifest.question == Question(instructions="Which team?")
    out, said = capsys.readouterr()
    plan = shown(beginning="examples/messages.csv: 200 rows").text.splitlines()
    assert said.splitlines()[: len(plan) - 2] == plan[:-2]
    assert re.search(
        r"^takes \d+ to \d+ (seconds|minutes) more, if this machine stays as busy as it is now$", said, re.M
    )
    for line, expected in zip(out.splitlines(), shown(beginning="accepted at").text.splitlines(), strict=False):
        assert re.sub(r"[\d.,]*\d", "N", line).replace("\u00a0", " ") == re.sub(r"[\d.,]*\d", "N", expected)
        if not expected.startswith("verdict"):  # a mistake more changes how many rows are needed by thousands
            assert figures(line) == pytest.approx(figures(expected), abs=6)  # in bfloat16 processors round differently
    report = Path("examples/messages.report.html").read_text(encoding="utf-8")
    brought = Path("examples/messages/report/report.html").read_text(encoding="utf-8")
    assert ("pro forma invoice" in report, "pro forma invoice" in brought) == (True, False)
    assert main(["quick", "examples/messages.csv", "--yes"]) == 2
    assert "is there already: give --replace" in capsys.readouterr().err
    before, (share, wrong) = earlier_figures(Path("examples/messages.report.html")), figures(out)[1:6:4]
    expected = f"before, at a target error rate of 5.0 %: {share} % accepted, {wrong} % of these wrong (a small"
    assert before.replace("\u00a0", " ").startswith(expected)

    ((_, *words),) = commands(shown(beginning="laplora audit"))
    capsys.readouterr()
    assert main([*words, "--yes"]) == 0
    expected, *rows = shown(beginning="unlikely labels").text.splitlines()
    listed = capsys.readouterr().out.splitlines()
    assert figures(listed[0]) == pytest.approx(figures(expected), abs=3)
    assert {row.split(":")[0] for row in rows} <= {row.split(":")[0] for row in listed}
    table = Path("examples/messages.audit.csv").read_text(encoding="utf-8-sig").splitlines()
    assert table[0].endswith(",correction")

    ((_, *words),) = commands(shown(beginning="laplora labels"))
    assert main(words) == main(["labels", "examples/messages", "--undo"]) == 0
    for line, expected in zip(
        capsys.readouterr().out.splitlines(), shown(beginning="labels: ").text.splitlines(), strict=False
    ):
        told = [{**json.loads(one), "at": "", "of": ""} if one.startswith("{") else one for one in (line, expected)]
        assert told[0] == told[1]

    ((_, *words),) = commands(
        shown(beginning="laplora quick examples/messages.csv --yes --out examples/messages-costs")
    )
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    for line, expected in zip(out, shown(beginning="accepted by").text.splitlines(), strict=False):
        assert re.sub(r"[\d.,]*\d", "N", line).replace("\u00a0", " ") == re.sub(r"[\d.,]*\d", "N", expected)
        assert figures(line)[:2] == pytest.approx(figures(expected)[:2], abs=6)
    rule = read_artifact(Path("examples/messages-costs")).manifest.predictives["encoder"].thresholds.review
    assert rule.wanted == Costs(review=2, wrong={"payment": 60, "*": 15})

    asked = next(words for words in commands(shown(beginning="curl")) if words[0] == "curl")[-1]
    with server_process(["-m", "service", "--artifact", "examples/messages"]) as process, process.client() as client:
        response = client.post("/predict", content=asked, headers={"content-type": "application/json"})
    answers: list[dict[str, Any]] = response.json()["predictions"]
    expected_answers = json.loads(shown(beginning="[").text)
    assert [{name: answer[name] for name in expected_answers[0]} for answer in answers] == expected_answers

    texts = [record.values["message"] for record in read_records(Path("examples/messages.csv"))[:60]]
    Path("new.jsonl").write_text("".join(json.dumps({"text": f"Hello! {text}"}) + "\n" for text in texts))
    capsys.readouterr()
    exec(shown(beginning="import json").text, {})
    assert {*capsys.readouterr().out.splitlines()} < {f"Hello! {text}" for text in texts}
    Path("messages.yaml").write_text(shown(beginning="name: messages-tuned").text)
    check, _ = commands(shown(beginning="laplora train"))
    assert main(check[1:]) == 0
    assert "nothing is wrong; nothing was written" in capsys.readouterr().out
