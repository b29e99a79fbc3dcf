"""The examples of the pages: configurations are valid, programs and commands exist with their flags."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import PAGES, ROOT, Block, blocks, commands, read
from typer.testing import CliRunner

from benchmarks.harness.provenance import ARTIFACT
from laplora.commands.app import app
from laplora.models.offline import OFFLINE_MODELS
from laplora.report.verdict import rows_to_show
from service.errors import ERROR_KINDS
from service.telemetry.logs import EVENTS
from training.config import RunConfig

LANGUAGES = {"sh", "json", "yaml", "python", "text"}
TARGETS = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
#: What a page may call beside make, python and this project's own files: programs of the system.
PROGRAMS = {"alias", "curl", "echo"}
#: Pages about machines and clusters, and what their commands call beside. Some are run by tests/docker.
OPERATING = {"docs/deploy.md", "docs/kubernetes.md"}
OPERATORS_PROGRAMS = {"compose", "cp", "docker", "helm", "keys", "kubectl", "nvidia-smi", "openssl", "sed", "sudo"}


def module_calls() -> dict[str, set[str]]:
    """Return the flags that the pages give to each ``python -m`` command, its subcommand among its words."""
    found: dict[str, set[str]] = {}
    for block in blocks("sh"):
        for words in commands(block):
            if words[0].rpartition("/")[2] == "python" and words[1] == "-m" and words[2] != "pytest":
                named = [word for word in words[2:4] if not word.startswith("-")]
                flags = {word for word in words[3:] if word.startswith("--")}
                found.setdefault(" ".join(named), set()).update(flags)
    return found


def test_every_block_has_a_language_that_is_checked() -> None:
    assert [str(block) for block in blocks() if block.language not in LANGUAGES] == []
    assert all(blocks(language) for language in LANGUAGES)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_configurations_are_valid(block: Block) -> None:
    """A whole configuration as it is, a section in the place of the default artifact's."""
    given: dict[str, Any] = yaml.safe_load(block.text)
    if "name" not in given:
        given = yaml.safe_load(read(f"training/configs/{ARTIFACT.name}.yaml")) | given
    RunConfig.model_validate(given)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_programs_compile_and_import_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("laplora"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), name.name


def check_command(words: list[str]) -> None:
    runner, names = CliRunner(), [word for word in words if not word.startswith("-")]
    path = [*names[:1], *(names[1:2] if names[:1] == ["jobs"] else [])]
    helped = runner.invoke(app, [*path, "--help"])
    assert helped.exit_code == 0, (words, helped.output)
    for word in words:
        if word.startswith("-") and names[:1] not in (["serve"], ["train"], ["fit"], ["keys"]):
            assert re.search(rf"(^|[\s,]){re.escape(word)}\b", helped.output), word


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_exist(block: Block) -> None:
    for words in commands(block):
        program = re.sub(r"^\w+=\$\(|\(\)$", "", words[0]).rpartition("/")[2]
        if program == "make":
            assert words[1] in TARGETS
            assert {word.partition("=")[0] for word in words[2:]} <= {"CONFIG", "ARTIFACT"}
        elif program == "python" and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), words[2]
        elif program == "laplora":
            check_command(words[1:])
        elif block.page != "docker/README.md":  # its commands are tried by docker/try_images.sh
            operating = OPERATORS_PROGRAMS if block.page in OPERATING else set()
            assert program in PROGRAMS | {"pip", "git"} | operating, words
        for word in words:
            if re.match(r"(training/configs|artifacts)/[\w./-]+$", word):
                assert (ROOT / word).exists() or "your" in word or "tickets" in word, word


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", sorted(module_calls()))
def test_flags_exist(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, *words = command.split()
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code
    help_text = capsys.readouterr().out.replace(",", " ")
    assert {flag for flag in module_calls()[command] if f"{flag} " not in help_text} == set()


def test_the_table_of_offline_models_is_that_of_the_code() -> None:
    table = read("docs/training.md").partition("## Base models without a hub")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    expected = []
    for name, model in OFFLINE_MODELS.items():
        fetched = sum(wheel.size_mb for wheel in model.wheels)
        sizes = (fetched, fetched + model.gguf_mb + model.folder_mb, model.folder_mb, model.memory_mb)
        row = [f"`{name}`", model.licence, str(len(model.wheels)), *(f"{size:,} MB" for size in sizes)]
        expected.append([*row, f"{model.seconds} s"])
        assert f"({model.source})" in table
    assert rows == expected


def importable(name: str) -> bool:
    """Return whether a dotted name is a module's, or that of something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_sentences_exist(page: Path) -> None:
    """Modules and files; the lab notes name what was removed since, a trace's attributes begin with laplora too."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    code = re.findall(r"`([^`\n]+)`(?! \(since removed|, before)", text)
    packages = "(?:laplora|service|training|benchmarks)"
    modules = {name for part in code for name in re.findall(rf"(?:^|-m )({packages}(?:\.\w+)+)", part)}
    modules = {name for name in modules if not name.endswith(".Dockerfile") and name != "laplora.rows"}
    assert {name for name in modules if not importable(name)} == set()
    paths = {part for part in code if re.fullmatch(rf"({packages}|tests|docker)/[\w./-]*", part)}
    brought = set(read(".gitignore").splitlines())  # by whoever runs it, such as certificates
    assert {path for path in paths - brought if not (ROOT / path).exists()} == set()


def literals() -> str:
    """Return the text of all string literals of the packages, a line for each part between values."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for package in ("laplora", "service")
        for path in (ROOT / package).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(node.value for node in nodes if isinstance(node.value, str))


def test_troubleshooting_quotes_messages_codes_and_events_of_the_code() -> None:
    page, written = read("docs/troubleshooting.md"), literals()
    quoted = re.findall(r"^> (.+)$", page, re.MULTILINE)
    parts = [part.strip() for message in quoted for part in message.split("…")]
    assert len(parts) > 8
    assert [part for part in parts if part not in written] == []
    assert f"For 5 %, {rows_to_show(0.05)} accepted rows" in page
    refusals = page.partition("## The server refuses")[2]
    rows = re.findall(r"^\| (`.+?) \|", refusals, re.MULTILINE)
    codes = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert len(codes) > 8
    assert codes <= {kind.code for kind in ERROR_KINDS}
    events = re.search(r"last log line \((.+?)\)", refusals)
    assert events
    assert set(re.findall(r"`(\w+)`", events[1])) <= set(EVENTS)


NAMES = re.findall(r"`([\w/]*test_\w+\.py)?(::test_\w+)?`", read("docs/reliability.md"))


def named_tests() -> list[tuple[str, str]]:
    """Return (file, test) for each one that the page names; a test without a file is of the file before it."""
    found, file = [], ""
    for path, test in NAMES:
        file = path or file
        if path or test:
            found.append((file, test.removeprefix("::")))
    return found


def test_the_page_names_tests() -> None:
    assert len(named_tests()) > 150


@pytest.mark.parametrize("file", sorted({file for file, _ in named_tests()}))
def test_the_named_tests_exist(file: str) -> None:
    paths = [ROOT / file] if file.startswith("tests/") else list((ROOT / "tests" / "service").rglob(file))
    assert len(paths) == 1, file
    text = paths[0].read_text(encoding="utf-8")
    tests = {test for name, test in named_tests() if name == file and test}
    assert {test for test in tests if not re.search(rf"def {test}\b", text)} == set()
