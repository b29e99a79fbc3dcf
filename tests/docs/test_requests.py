"""The requests and programs of the pages, run against a server: what they show could have come back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from documents import ROOT, Block, blocks, commands
from server_process import server_process

from benchmarks.harness.provenance import ARTIFACT
from laplora.artifact.folder import read_artifact
from laplora.files.atomic import file_sha256

PAGES = ("README.md", "docs/api.md", "docs/protocols.md", "docs/quick-start.md", "docs/serving.md")
FAKE_SERVER = ROOT / "tests" / "service" / "fake_server.py"


@dataclass
class Example:
    """The words of a curl command, and the whole answer that its page shows right below."""

    block: Block
    words: Sequence[str]
    shown: Any

    def __str__(self) -> str:
        return str(self.block)

    def request(self, folder: Path = Path()) -> httpx.Request:
        """Return what curl would send; files are those of a folder."""
        url, method, body, headers = "", None, None, {}
        words = iter([word.replace(ARTIFACT.name, "fake") for word in self.words[1:]])
        for word in words:
            if word == "-X":
                method = next(words)
            elif word == "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = next(words).encode()
            elif word == "-T":
                body = (folder / next(words)).read_bytes()
            elif word == "-o":
                next(words)
            elif not word.startswith("-"):
                assert not url, f"what is {word} to curl?"
                url = f"http://{word}"
            else:
                assert re.fullmatch("-s?N?", word), f"what is {word} to curl?"
        return httpx.Request(method or ("GET" if body is None else "POST"), url, headers=headers, content=body)


def examples() -> list[Example]:
    """Return the curl commands of the pages."""
    answers = {(block.page, block.line): json.loads(block.text) for block in blocks("json")}
    return [
        Example(block, words, answers.get((block.page, block.line + block.text.count("\n") + 2)))
        for block in blocks("sh")
        if block.page in PAGES
        for words in commands(block)
        if words[0] == "curl"
    ]


#: The commands that follow one job from its upload on, in one block.
JOB = [example for example in examples() if "/evaluate/jobs" in example.block.text and "-T" in example.block.text]
EXAMPLES = [example for example in examples() if example not in JOB]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("artifacts")
    for name in ("fake", "winogrande-smollm2"):
        (root / name).mkdir()
        (root / name / "manifest.json").write_text("{}")
    command = [str(FAKE_SERVER), "--artifact", "fake", "--artifacts-root", str(root)]
    labels = "|".join(read_artifact(ARTIFACT).manifest.labels)
    environment = {"FAKE_CHOICES": "winogrande-smollm2", "FAKE_OWN_LABELS": labels, "LAPLORA_AUTH": "off"}
    with (
        server_process([*command, "--also-load", "winogrande-smollm2"], environment) as process,
        process.client() as client,
    ):
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def answered(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    """Send a request to the server of the tests, whatever host it names."""
    path = request.url.raw_path.decode()
    return client.request(request.method, path, headers=dict(request.headers), content=request.content)


def schema_of(document: dict[str, Any], request: httpx.Request, status: int) -> dict[str, Any]:
    for path, methods in document["paths"].items():
        if re.fullmatch("(/v1)?" + re.sub(r"\{\w+\}", "[^/]+", path), request.url.path):
            content = methods[request.method.lower()]["responses"][str(status)]["content"]
            return {"components": document["components"], **content["application/json"]["schema"]}
    raise AssertionError(f"no such endpoint: {request.url.path}")


def test_there_are_examples_of_every_kind() -> None:
    paths = {example.request().url.path.removeprefix("/v1") for example in EXAMPLES}
    assert {"/predict", "/evaluate", "/artifacts", "/artifacts/fake/activate", "/health/ready", "/feedback"} <= paths
    assert {example.block.page for example in EXAMPLES} == set(PAGES)
    assert len(JOB) == 4


def names(answer: Any) -> list[set[str]]:
    """Return the names of an answer's fields, of a list those of each part."""
    return [set(one) for one in (answer if isinstance(answer, list) else [answer])]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_request_is_answered_as_shown(client: httpx.Client, document: dict[str, Any], example: Example) -> None:
    request, shown = example.request(), example.shown
    response = answered(client, request)
    refused = isinstance(shown, dict) and shown.get("error") is not None
    assert response.is_success != refused, response.text
    schema = schema_of(document, request, response.status_code)
    jsonschema_rs.validate(schema, response.json())
    if shown is not None:
        jsonschema_rs.validate(schema, shown)
        assert names(shown) == names(response.json())
        if refused:
            assert {**shown, "request_id": ""} == {**response.json(), "request_id": ""}
        elif "predictions" in shown:
            assert shown["predictions"][0].keys() == response.json()["predictions"][0].keys()


def test_the_fields_that_the_readme_shows_are_an_answers(client: httpx.Client, document: dict[str, Any]) -> None:
    (example,) = (example for example in EXAMPLES if example.block.page == "README.md")
    (shown,) = (json.loads(block.text) for block in blocks("json") if block.page == "README.md")
    assert len(shown) == 5
    whole = answered(client, example.request()).json()
    whole["predictions"][0] |= shown
    jsonschema_rs.validate(schema_of(document, example.request(), 200), whole)


def test_the_commands_of_a_job_follow_it_to_its_end(client: httpx.Client, tmp_path: Path) -> None:
    (echo,) = (words for words in commands(JOB[0].block) if words[0] == "echo")
    (tmp_path / echo[-1]).write_text(f"{echo[1]}\n", encoding="utf-8")
    job = ""
    statuses = []
    for example in JOB:
        words = [word.replace("/ID", f"/{job}") for word in example.words]
        response = answered(client, Example(example.block, words, None).request(tmp_path))
        statuses.append(response.status_code)
        if "-o" in words:
            assert response.content.startswith(b"{")
        elif not job:
            job = response.json()["id"]
            while client.get(f"/evaluate/jobs/{job}").json()["status"] != "done":
                time.sleep(0.02)
    assert statuses == [202, *[200] * 3]


@pytest.mark.parametrize("block", [b for b in blocks("python") if "localhost:8000" in b.text], ids=str)
def test_a_program_runs(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    (tmp_path / "questions.txt").write_text("What is a hash table?\nWhich nerve moves the tongue?\n", encoding="utf-8")
    (tmp_path / "test.jsonl").write_text('{"text": "What is a hash table?", "label": "computing"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    address = str(client.base_url).rstrip("/")
    program = block.text.replace("http://localhost:8000", address).replace("progress=True", "progress=False")
    program = program.replace("localhost:8000", address.removeprefix("http://")).replace(ARTIFACT.name, "fake")
    exec(compile(program, str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.usefixtures("base_model_folder")
def test_the_librarys_program_gives_the_readmes_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in blocks("python") if block.page == "docs/python.md" and "laplora.load" in block.text)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    prediction = names["answer"]
    (shown,) = (json.loads(block.text) for block in blocks("json") if block.page == "README.md")
    assert prediction.label == shown["label"]
    assert prediction.decision == shown["decision"]
    # In bfloat16 a probability moves by up to 0.1 with the machine's instructions and the batch (docs/api.md).
    assert prediction.probs == pytest.approx(shown["probs"], abs=0.1)
    assert prediction.map_probs == pytest.approx(shown["map_probs"], abs=0.01)


def test_digests_that_pages_show_are_of_the_default_artifact() -> None:
    digest = file_sha256(ARTIFACT / "manifest.json")
    shown = [found for page in PAGES for found in re.findall("sha256[:=]([0-9a-f]{8,})", (ROOT / page).read_text())]
    assert len(shown) > 2
    assert all(digest.startswith(found) for found in shown), shown
