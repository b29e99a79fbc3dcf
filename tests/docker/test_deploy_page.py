"""docs/deploy.md: what its commands name is there, and every alert has its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import blocks, commands, read
from test_docker import environment, parse

from service.keys import main as keys

PAGE = "docs/deploy.md"
WORDS = [words for block in blocks("sh") if block.page == PAGE for words in commands(block)]


def loaded(file: str) -> dict[str, Any]:
    return yaml.safe_load(read(file))


def test_its_compose_files_services_volumes_and_variables_exist() -> None:
    aliases = " ".join(word for words in WORDS if words[0] == "alias" for word in words[1:])
    files = set(re.findall(r"-f (\S+)", aliases))
    assert len(files) == 3
    services = {name for file in files for name in loaded(file)["services"]}
    named = [words for words in WORDS if words[0].removeprefix("TOKEN=$(") == "compose"]
    assert {"up", "run", "build", "stop", "start"} <= {words[1] for words in named}
    for words in named:
        if words[1] in ("build", "stop", "start"):
            assert set(words[2:]) <= services
        elif words[1] == "run":
            assert words[words.index("--entrypoint") + 2] in services
    project = loaded("docker/compose.yaml")["name"]
    volumes = {f"{project}_{volume}" for file in files for volume in loaded(file).get("volumes", {})}
    page = read(PAGE)
    assert set(re.findall(r"\blaplora_(?:state|prometheus|grafana)\b", page)) <= volumes
    assert set(re.findall(r"laplora-service:\w+", page)) - {"laplora-service:before"} <= {
        service["image"] for service in loaded("docker/compose.yaml")["services"].values()
    }
    variables = {words[1].partition("=")[0] for words in WORDS if words[0] == "echo" and "docker/.env" in words}
    assert variables == {"LAPLORA_ARTIFACT", "GRAFANA_PASSWORD"}
    assert all(f"${{{name}:-" in "".join(map(read, files)) for name in variables)
    assert "docker/.env" in read(".gitignore").splitlines()


def test_keys_are_made_where_the_image_looks_and_replaced_as_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's own commands in their order: made, made again, listed, the first one revoked."""
    file = str(tmp_path / "keys.json")
    expected = environment(parse("service.Dockerfile")[1][-1])["LAPLORA_KEYS"]
    tokens: list[str] = []
    listed = ""
    for words in WORDS:
        if "service.keys" not in words:
            continue
        arguments = [word.rstrip(")") for word in words[words.index("service.keys") + 1 :]]
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        assert arguments[arguments.index("--file") + 1] == expected
        arguments[arguments.index("--file") + 1] = file
        if "DIGITS" in arguments:
            first, _ = re.findall(r"^me +([0-9a-f]+)", listed, re.M)
            arguments[arguments.index("DIGITS")] = first
        keys(arguments)
        printed = capsys.readouterr().out
        if arguments[0] == "create":
            tokens.append(printed.strip())
        listed = printed
    assert len(set(tokens)) == 3
    assert Path(file).read_text(encoding="utf-8").count('"id": "me"') == 1


def test_every_alert_has_its_place_on_the_page() -> None:
    rules = [loaded(f"docker/monitoring/{name}") for name in ("alerts.yaml", "calibration-alerts.yaml")]
    shipped = [rule["alert"] for file in rules for group in file["groups"] for rule in group["rules"]]
    table = read(PAGE).partition("## When an alert comes")[2].partition("\nThose of severity")[0]
    assert sorted(re.findall(r"`(Laplora\w+)`", table)) == sorted(shipped)
