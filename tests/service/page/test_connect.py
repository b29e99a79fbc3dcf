"""The section Connect: every protocol's code is code that this server answers, and everything else has a link."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Visit, needs_chromium, posted, printed
from playwright.sync_api import expect
from server_process import ROOT

pytestmark = [needs_chromium, pytest.mark.process]


def code(visited: Visit, name: str) -> str:
    return visited.page.locator(f"#connect-{name}").inner_text()


def test_each_protocols_code_is_answered_by_this_server(visited: Visit) -> None:
    visited.show("connect")
    [classified] = posted(code(visited, "vllm"))[1]["data"]
    [first, _] = posted(code(visited, "tei"))[1]
    assert set(first) == {"score", "label"}
    assert classified["num_classes"] == 2
    assert max(classified["probs"]) == first["score"]
    assert printed(code(visited, "client")).startswith(f"{first['label']} ")


def test_the_command_line_is_that_of_the_commands(visited: Visit, address: str, tmp_path: Path) -> None:
    """What needs the server is run; of the others, the command knows every flag."""
    visited.show("connect")
    lines = code(visited, "command").splitlines()
    made = next(line for line in lines if line.startswith("echo "))
    words = shlex.split(made)
    assert set(json.loads(words[1])) == {"text", "label"}
    (tmp_path / words[3]).write_text(words[1] + "\n")
    asked = [line for line in lines if line.startswith("laplora jobs")]
    assert f"export LAPLORA_URL='{address}'" in lines
    assert len(asked) == 2
    for line in asked:
        command = [sys.executable, "-m", "laplora", *shlex.split(line)[1:], "--url", address]
        finished = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
    others = {line.split()[1] for line in lines if line.startswith("laplora ")} - {"jobs"}
    assert others == {"predict", "evaluate", "report"}


#: What the page has to lead to: by section, the links that a newcomer can follow there.
REACHED = {
    "playground": ["POST /predict"],
    "artifact": ["GET /artifacts"],
    "jobs": ["POST /evaluate/jobs", "GET …/report", "GET …/results"],
    "feedback": ["POST /feedback", "GET /feedback"],
    "connect": [
        *("POST /classify", "POST /v1/classify", "GET /v1/models", "POST /tei/predict"),
        *("GET /tei/info", "all of the protocols"),
    ],
    "server": ["GET /health/ready", "GET /metrics"],
}


def test_everything_is_reached_by_a_link(visited: Visit) -> None:
    """Each link opens the page of the API at that operation, which is drawn under its own policy."""
    page = visited.page
    page.context.on("console", lambda message: visited.complaints.append(message.text))
    for section, links in REACHED.items():
        visited.show(section)
        for name in links:
            link = page.locator(f"#{section}").get_by_role("link", name=name, exact=False).first
            expect(link).to_be_visible()
            path = link.get_attribute("href") or ""
            assert path.startswith("docs#/")
    with page.expect_popup() as opened:
        visited.show("connect")
        page.locator("#connect").get_by_role("link", name="POST /classify").click()
    expect(opened.value.locator("#operations-protocols-classify")).to_be_visible()
