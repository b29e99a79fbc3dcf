"""The images' recipes, read without an engine: what each must say, and that its paths and settings exist."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from laplora.offline import OFFLINE_MODELS
from service.callers import SCOPES
from service.settings import Settings

ROOT = Path(__file__).parent.parent
DOCKERFILES = ("service.Dockerfile", "training.Dockerfile")
INSTRUCTIONS = {
    *("ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER"),
    *("VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}


@dataclass
class Stage:
    """One FROM and what follows it, as (instruction, rest of the line) pairs."""

    base: str
    name: str | None
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for instruction, rest in self.lines if instruction == word]

    def one(self, word: str) -> str:
        (rest,) = self.all(word)
        return rest


def parse(name: str) -> tuple[list[str], list[Stage]]:
    """Return the ARG lines before the first FROM, and the stages."""
    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    assert not re.match(r"#\s*(syntax|escape)\s*=", text), "a parser directive would be fetched from a registry"
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    arguments: list[str] = []
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", kept).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        assert word in INSTRUCTIONS, f"{name}: unknown instruction {word!r}"
        if word == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages.append(Stage(base, alias or None))
        elif stages:
            stages[-1].lines.append((word, rest))
        else:
            assert word == "ARG", f"{name}: {word} before the first FROM"
            arguments.append(rest)
    return arguments, stages


def environment(stage: Stage) -> dict[str, str]:
    """Return what a stage's ENV lines set."""
    return dict(pair.split("=", 1) for rest in stage.all("ENV") for pair in shlex.split(rest))


def copies(stage: Stage) -> Iterator[tuple[str | None, list[str]]]:
    """Return each COPY's source stage (None: the build context) and source paths."""
    for rest in stage.all("COPY"):
        words = rest.split()
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        yield flags.get("from"), [word for word in words if not word.startswith("--")][:-1]


def in_git(path: str) -> list[str]:
    """Return the files at a path that git has, or would take with ``git add``."""
    if not (ROOT / ".git").exists():  # an unpacked archive of the sources
        return [str(p.relative_to(ROOT)) for p in [ROOT / path, *(ROOT / path).rglob("*")] if p.is_file()]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", path]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last pattern that matches it or a parent folder decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = parts if pattern.startswith("**/") else [p for p in prefixes if p.count("/") == pattern.count("/")]
        if any(fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            kept = line.startswith("!")
    return kept


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def seconds(duration: str) -> int:
    """Return a compose duration of whole seconds."""
    assert re.fullmatch(r"\d+s", duration)
    return int(duration[:-1])


def settings_of(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings a container with these variables has; each LAPLORA_ one must be one of them."""
    for name in [name for name in os.environ if name.startswith("LAPLORA_")]:
        monkeypatch.delenv(name)
    ours = {name: value for name, value in variables.items() if name.startswith("LAPLORA_")}
    assert {name.removeprefix("LAPLORA_").lower() for name in ours} <= set(Settings.model_fields)
    for name, value in ours.items():
        # as compose does: a variable of the person's own, or the default behind the colon
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value))
    return Settings()


@contextmanager
def answering(status: int, paths: list[str]) -> Iterator[int]:
    """A server on a free loopback port that gives every GET one status and notes its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_stage_starts_from_the_chosen_base_or_an_earlier_stage(name: str) -> None:
    arguments, stages = parse(name)
    assert [a.partition("=")[0] for a in arguments] == ["BASE_IMAGE"]
    known = {"scratch", "${BASE_IMAGE}"}
    for stage in stages:
        assert stage.base in known
        mounts = [m for run in stage.all("RUN") for m in re.findall(r"--mount=type=bind,from=(\w+)", run)]
        assert {source for source, _ in copies(stage) if source} | set(mounts) <= known
        known |= {stage.name} if stage.name else set()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_in_git_and_in_the_build_context(name: str) -> None:
    sources = [path for stage in parse(name)[1] for source, paths in copies(stage) if source is None for path in paths]
    assert sources
    for source in sources:
        files = in_git(source)
        assert files, f"{name} copies {source}, which a fresh clone does not have"
        assert [file for file in files if not in_context(file)] == []


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", "runs/a/b", "tests/conftest.py", ".env", "artifacts/mine/manifest.json"),
        *("laplora/__pycache__/a.pyc", "service/routes/__pycache__/x.pyc"),
    ],
)
def test_the_build_context_leaves_out_the_rest(path: str) -> None:
    assert not in_context(path)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dependencies_come_from_an_extra_and_the_constraints(name: str) -> None:
    runs = [run for stage in parse(name)[1] for run in stage.all("RUN")]
    (extra,) = [match for run in runs for match in re.findall(r"pip install -c constraints\.txt '\.\[(\w+)\]'", run)]
    assert name == f"{extra}.Dockerfile"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra in project["optional-dependencies"]
    # The empty package of the first install would otherwise be taken for the real one by the second.
    first, second = (run for run in runs if "pip install" in run)
    assert first.endswith("&& rm -r build laplora *.egg-info")
    assert "diff -r --exclude=__pycache__ laplora /opt/venv/" in second


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_process_is_a_module_run_by_a_user_without_rights(name: str) -> None:
    final = parse(name)[1][-1]
    module = name.removesuffix(".Dockerfile")
    assert json.loads(final.one("ENTRYPOINT")) == ["python", "-m", module]
    assert (ROOT / module / "__main__.py").is_file()
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final.one("USER")), (
        "a number, so that an orchestrator sees it is not root"
    )
    words = [word for word, _ in final.lines]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY", "WORKDIR"))
    home = environment(final)["HOME"]
    volumes = final.one("VOLUME")
    assert home in (json.loads(volumes) if volumes.startswith("[") else volumes.split())
    assert environment(final)["LAPLORA_CACHE"].startswith(f"{home}/")


def test_the_images_share_their_first_stages() -> None:
    (_, service), (_, training) = parse("service.Dockerfile"), parse("training.Dockerfile")
    assert service[:2] == training[:2]
    assert parse("service.Dockerfile")[0] == parse("training.Dockerfile")[0]


def test_the_job_stops_at_the_signal_it_handles_and_has_no_health() -> None:
    final = parse("training.Dockerfile")[1][-1]
    assert final.one("STOPSIGNAL") == "SIGINT"
    assert final.one("HEALTHCHECK") == "NONE"
    assert json.loads(final.one("CMD")) == ["--help"]


def test_the_server_listens_where_the_image_says(monkeypatch: pytest.MonkeyPatch) -> None:
    final = parse("service.Dockerfile")[1][-1]
    settings = settings_of(environment(final), monkeypatch)
    assert settings.host == "0.0.0.0"
    assert final.one("EXPOSE") == str(settings.port)
    assert settings.auth == "keys"
    assert str(settings.keys) == f"{final.one('VOLUME')}/keys.json", "writable, and kept"
    assert final.one("STOPSIGNAL") == "SIGTERM"
    targets = [rest.split()[-1] for rest in final.all("COPY")]
    assert str(settings.artifact_path) in targets, "the default artifact is where the default settings look"


def image_check() -> tuple[list[str], str]:
    _, _, command = parse("service.Dockerfile")[1][-1].one("HEALTHCHECK").partition("CMD ")
    return json.loads(command), "/health/live"


def compose_check() -> tuple[list[str], str]:
    marker, *command = compose()["services"]["cpu"]["healthcheck"]["test"]
    assert marker == "CMD"
    return command, "/health/ready"


@pytest.mark.parametrize("check", [image_check, compose_check])
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_checks_ask_the_server_itself(check: Any, status: int, healthy: bool) -> None:
    (python, *arguments), path = check()
    assert python == "python"
    paths: list[str] = []
    with answering(status, paths) as port:
        arguments = [argument.replace(":8000/", f":{port}/") for argument in arguments]
        # a proxy that is not there: asked, it would fail the check of a healthy server
        variables = {**os.environ, "LAPLORA_PORT": str(port), "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, check=False)
    assert paths == [path]
    assert (done.returncode == 0) == healthy


def test_the_baked_model_is_fetched_by_a_call_that_exists() -> None:
    runs = [run for stage in parse("service.Dockerfile")[1] for run in stage.all("RUN")]
    (code,) = [match for run in runs for match in re.findall(r"-c '(import sys; [^']+)'", run)]
    (imported,) = [node for node in ast.parse(code).body if isinstance(node, ast.ImportFrom)]
    assert (imported.module, [alias.name for alias in imported.names]) == ("laplora.offline", ["ensure_model"])
    for text in (ROOT / "docker" / "service.Dockerfile", ROOT / "docker" / "README.md"):
        named = re.findall(r"BAKE_MODEL=([\w.-]+)", text.read_text(encoding="utf-8"))
        assert named
        assert set(named) <= set(OFFLINE_MODELS)


def test_compose_offers_a_cpu_and_a_gpu_server(monkeypatch: pytest.MonkeyPatch) -> None:
    services = compose()["services"]
    assert {name: service["profiles"] for name, service in services.items()} == {"cpu": ["cpu"], "gpu": ["gpu"]}
    _, stages = parse("service.Dockerfile")
    image = environment(stages[-1])
    for name, service in services.items():
        settings = settings_of({**image, **service["environment"]}, monkeypatch)
        assert settings.device == {"cpu": "cpu", "gpu": "cuda"}[name]
        assert settings.auth == "keys"
        assert service["environment"]["LAPLORA_AUTH"] == "${LAPLORA_AUTH:-keys}", "off is said by name"
        # 5 s: what the server takes at most to leave once the drain is over
        assert seconds(service["stop_grace_period"]) > settings.drain_delay_s + settings.drain_s + 5
        assert service["ports"] == [f"127.0.0.1:${{PORT:-8000}}:{settings.port}"]
        assert service["restart"] == "unless-stopped"
        targets = [volume.split(":")[1] for volume in service["volumes"]]
        assert targets == [str(settings.artifacts_root), stages[-1].one("VOLUME")]
        assert (ROOT / "docker" / service["volumes"][0].split(":")[0]).is_dir()
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in services["cpu"]
    assert services["cpu"]["image"] != services["gpu"]["image"], "they hold different builds of torch"


def test_compose_builds_with_arguments_that_the_image_takes() -> None:
    arguments, stages = parse("service.Dockerfile")
    declared = {a.partition("=")[0] for a in [*arguments, *(a for stage in stages for a in stage.all("ARG"))]}
    for service in compose()["services"].values():
        build = service["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).is_file()
        assert set(build["args"]) == declared


def test_the_packages_for_traces_are_those_of_the_extra() -> None:
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    (named,) = re.findall(r'EXTRA_PACKAGES="([^"]+)"', text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["telemetry"]
    assert named.split() == [re.split(r"[<>=]", requirement)[0] for requirement in extra]


def test_the_readme_makes_its_key_where_the_image_looks() -> None:
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    files = re.findall(r"-m service\.keys create[^-]*--file (\S+) --id \w+ --scopes ([\w,]+)", text)
    assert len(files) == 3
    for file, scopes in files:
        assert file == environment(parse("service.Dockerfile")[1][-1])["LAPLORA_KEYS"]
        assert set(scopes.split(",")) <= SCOPES
    assert (ROOT / "service" / "keys.py").is_file()


@pytest.mark.parametrize(
    "path",
    [
        *("compose.yaml", "compose.proxy.yaml", "compose.monitoring.yaml", "nginx.conf.template", "README.md"),
        *(*DOCKERFILES, "../.dockerignore"),
    ],
)
def test_no_file_names_a_registry_or_another_host(path: str) -> None:
    text = (ROOT / "docker" / path).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= {"127.0.0.1", "laplora", "NAME"}
    assert re.findall(r"\b[\w-]+\.(?:org|com|io|net|dev|cloud)\b", text) == []
