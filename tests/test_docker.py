"""The images' recipes, without an engine: what each must say, and that its paths and settings exist.

``docker/try_images.sh`` builds the images and starts them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from remote_servers import Answer, answering, running
from sqlalchemy import make_url

from laplora.models import offline
from laplora.models.offline import OFFLINE_ENCODERS, OFFLINE_MODELS
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ("service.Dockerfile", "training.Dockerfile")
INSTRUCTIONS = {
    *("ARG", "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "LABEL"),
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


def environment(stage: Stage, word: str = "ENV") -> dict[str, str]:
    """Return what a stage's ENV lines set, or its LABEL lines, in a build without arguments."""
    values: dict[str, str] = {}

    def chosen(match: re.Match[str]) -> str:
        name, sign, text = match.groups()
        value = values.get(name, "")
        return (value or text) if sign == "-" else value and text

    for pair in (pair for rest in stage.all(word) for pair in shlex.split(rest)):
        name, _, value = pair.partition("=")
        values[name] = re.sub(r"\$\{(\w+):([-+])([^}]*)\}", chosen, value)
    return values


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return loaded


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


COMPOSE_FILES = ("compose.yaml", "compose.proxy.yaml", "compose.monitoring.yaml", "compose.jobs.yaml")


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker" / name).read_text(encoding="utf-8"))
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
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([\w-]*)\}", r"\1", value))
    return Settings()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_stage_has_a_pinned_base_and_copies_what_git_and_the_build_context_have(name: str) -> None:
    (base,), stages = parse(name)
    assert re.fullmatch(r"BASE_IMAGE=python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base), "pinned by its digest"
    known = {"scratch", "${BASE_IMAGE}"}
    for stage in stages:
        assert stage.base in known
        mounts = [m for run in stage.all("RUN") for m in re.findall(r"--mount=type=bind,from=(\w+)", run)]
        assert {source for source, _ in copies(stage) if source} | set(mounts) <= known
        known |= {stage.name} if stage.name else set()
    sources = [path for stage in stages for source, paths in copies(stage) if source is None for path in paths]
    assert sources
    for source in sources:
        files = in_git(source)
        assert files, f"{name} copies {source}, which a fresh clone does not have"
        assert [file for file in files if not in_context(file)] == []


def test_the_build_context_leaves_out_the_rest() -> None:
    private = ".git/config .venv/bin/python runs/a/b tests/conftest.py .env artifacts/mine/manifest.json"
    for path in (*private.split(), "laplora/__pycache__/a.pyc", "service/http/routes/__pycache__/x.pyc"):
        assert not in_context(path), path


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dependencies_come_from_an_extra_and_cuda_chooses_the_build_of_torch(name: str, tmp_path: Path) -> None:
    runs = [run for stage in parse(name)[1] for run in stage.all("RUN")]
    pattern = r"pip install -c constraints\.txt '\.\[([\w,]+)\]'"
    (extras,) = [match.split(",") for run in runs for match in re.findall(pattern, run)]
    # A server that shares its jobs needs the database's driver, which is small.
    assert extras == (["service", "postgres"] if name == "service.Dockerfile" else ["training"])
    assert set(extras) <= set(project()["optional-dependencies"])
    build = next(stage for stage in parse(name)[1] if stage.name == "build")
    (layer,) = [run for run in build.all("RUN") if "torch=" in run]
    choice = re.sub(r"--mount=\S+ ", "", layer.partition("&& python3 -m venv")[0])
    before = (ROOT / "constraints.txt").read_text().splitlines()
    tested = next(line for line in before if line.startswith("torch=="))

    def chosen(cuda: str) -> subprocess.CompletedProcess[str]:
        shutil.copy(ROOT / "constraints.txt", tmp_path)
        variables = {"PATH": os.environ["PATH"], "CUDA": cuda}
        command = ["sh", "-c", choice]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    for cuda, torch in {
        "13.0": tested,
        "12.6": f"{tested}+cu126",
        "cpu": f"{tested}+cpu",
    }.items():
        assert chosen(cuda).returncode == 0
        lines = (tmp_path / "constraints.txt").read_text().splitlines()
        assert lines == [torch if line == tested else line for line in before]
    refused = chosen("11.8")
    assert (refused.returncode, refused.stderr) == (1, "CUDA is 13.0, 12.6 or cpu; not '11.8'\n")
    assert "CUDA=13.0" in build.all("ARG"), "what is tested is the default"
    assert "./trim.sh /opt/venv" in build.all("RUN")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_says_what_it_is_and_runs_a_module_by_a_user_without_rights(name: str) -> None:
    final, module = parse(name)[1][-1], name.removesuffix(".Dockerfile")
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in environment(final, "LABEL").items()}
    assert labels["description"]
    said = [labels[key] for key in ("title", "version", "licenses", "revision", "base.name")]
    of_project = [project()["version"], project()["license"]]
    assert said == [f"laplora-{module}", *of_project, "${REVISION}", "${BASE_IMAGE}"]
    assert {"REVISION=", "BASE_IMAGE"} <= set(final.all("ARG"))
    assert environment(final)["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert json.loads(final.one("ENTRYPOINT")) == ["python", "-m", module]
    assert (ROOT / module / "__main__.py").is_file()
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", final.one("USER")), "a number: an orchestrator sees it is not root"
    words = [word for word, _ in final.lines]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY", "WORKDIR"))
    home = environment(final)["HOME"]
    volumes = final.one("VOLUME")
    assert home in (json.loads(volumes) if volumes.startswith("[") else volumes.split())
    assert environment(final)["LAPLORA_CACHE"].startswith(f"{home}/")


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


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"], ids=["image", "compose"])
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_checks_ask_the_server_itself(path: str, status: int, healthy: bool) -> None:
    _, _, command = parse("service.Dockerfile")[1][-1].one("HEALTHCHECK").partition("CMD ")
    of_compose = compose()["services"]["cpu"]["healthcheck"]["test"]
    marker, python, *arguments = ["CMD", *json.loads(command)] if path.endswith("live") else of_compose
    assert (marker, python) == ("CMD", "python")
    paths: list[str] = []

    def answer(_method: str, path: str, _body: bytes, _key: str | None) -> Answer:
        paths.append(path)
        return status, {}, b""

    with running(answering(answer)) as url:
        port = url.rpartition(":")[2]
        arguments = [argument.replace(":8000/", f":{port}/") for argument in arguments]
        # a proxy that is not there: asked, it would fail the check of a healthy server
        variables = {**os.environ, "LAPLORA_PORT": port, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, check=False)
    assert paths == [path]
    assert (done.returncode == 0) == healthy


def test_what_is_baked_is_fetched_by_the_build_s_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run for stage in parse("service.Dockerfile")[1] for run in stage.all("RUN")]
    (code,) = [match for run in runs for match in re.findall(r"-c '(import sys; [^']+)' \$\{BAKE_MODEL\};", run)]
    fetched: list[tuple[str, str]] = []
    for kind in ("ensure_model", "ensure_encoder"):
        monkeypatch.setattr(offline, kind, lambda name, kind=kind: fetched.append((kind, name)))
    for text in (ROOT / "docker" / "service.Dockerfile", ROOT / "docker" / "README.md"):
        given = re.findall(r"BAKE_MODEL=\"?([\w.-]+(?: [\w.-]+)*)", text.read_text(encoding="utf-8"))
        named = {name for names in given for name in names.split()}
        assert set(OFFLINE_ENCODERS) <= named <= {*OFFLINE_ENCODERS, *OFFLINE_MODELS}
        monkeypatch.setattr(sys, "argv", ["-c", *named])
        exec(code, {})
        kinds = {name: "ensure_encoder" if name in OFFLINE_ENCODERS else "ensure_model" for name in named}
        assert {name: kind for kind, name in fetched} == kinds
        fetched.clear()


def test_compose_offers_a_cpu_and_a_gpu_server(monkeypatch: pytest.MonkeyPatch) -> None:
    services = compose()["services"]
    assert {name: service["profiles"] for name, service in services.items()} == {"cpu": ["cpu"], "gpu": ["gpu"]}
    arguments, stages = parse("service.Dockerfile")
    declared = {a.partition("=")[0] for a in [*arguments, *(a for stage in stages for a in stage.all("ARG"))]}
    image = environment(stages[-1])
    for name, service in services.items():
        settings = settings_of({**image, **service["environment"]}, monkeypatch)
        assert settings.device == {"cpu": "cpu", "gpu": "cuda"}[name]
        assert settings.auth == "keys"
        assert service["environment"]["LAPLORA_AUTH"] == "${LAPLORA_AUTH:-keys}", "off is said by name"
        assert service["ports"] == [f"127.0.0.1:${{PORT:-8000}}:{settings.port}"]
        assert service["restart"] == "unless-stopped"
        artifacts, state = service["volumes"]
        assert artifacts["target"] == str(settings.artifacts_root)
        assert state.split(":")[1] == stages[-1].one("VOLUME")
        assert (ROOT / "docker" / artifacts["source"]).is_dir()
        # A first start that fetches 14 GB over 2 MB/s takes two hours.
        assert seconds(service["healthcheck"]["start_period"]) > 2 * 3600
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert set(service["build"]["args"]) == declared
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in services["cpu"]
    assert services["cpu"]["image"] != services["gpu"]["image"], "they hold different builds of torch"


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_what_compose_mounts_is_there_or_an_error_and_logs_are_rotated(file: str) -> None:
    loaded = compose(file)
    mounts = [mount for service in loaded["services"].values() for mount in service.get("volumes", [])]
    assert mounts
    # What a deployer brings is not in git, and must not get there.
    brought = ("./certificates", "./monitoring/metrics-token")
    for mount in mounts:
        if isinstance(mount, str):
            assert mount.split(":")[0] in loaded["volumes"], "in the short form a missing path becomes a folder"
        else:
            assert (mount["type"], mount["bind"], mount["read_only"]) == ("bind", {"create_host_path": False}, True)
            default = re.sub(r"\$\{\w+:-(.+)\}", r"\1", mount["source"])
            assert in_git(str(os.path.normpath(f"docker/{default}"))) or default in brought
    for name, service in loaded["services"].items():
        if file == "compose.yaml" or name not in ("cpu", "gpu"):  # there: what is laid over compose.yaml's own
            assert set(service["logging"]["options"]) >= {"max-size", "max-file"}, name


def test_the_database_of_jobs_is_shut_in_and_its_password_is_in_a_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = compose("compose.jobs.yaml")
    services = loaded["services"]
    database = services["jobs-database"]
    for name in ("cpu", "gpu"):
        server = services[name]
        variables = compose()["services"][name]["environment"] | server["environment"]
        variables = {key: value for key, value in variables.items() if value is not None}
        settings = settings_of(variables, monkeypatch)
        assert settings.jobs_url is not None
        url = make_url(settings.jobs_url.get_secret_value())
        assert (url.drivername, url.host, url.password) == ("postgresql", "jobs-database", None)
        assert url.username == database["environment"]["POSTGRES_USER"]
        assert url.database == database["environment"]["POSTGRES_DB"]
        # One file for both, whose name says where a container has it.
        (secret,) = server["secrets"]
        assert database["secrets"] == [secret]
        assert str(settings.jobs_password_file) == f"/run/secrets/{secret}"
        assert database["environment"]["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{secret}"
        assert server["depends_on"] == {"jobs-database": {"condition": "service_healthy"}}
        assert {"default", *database["networks"]} == set(server["networks"])
        assert name in database["profiles"]
    assert "password" not in str([database["healthcheck"], database.get("command")]).lower()
    assert "ports" not in database
    assert (database["read_only"], database["cap_drop"], database["restart"]) == (True, ["ALL"], "unless-stopped")
    (network,) = database["networks"]
    assert loaded["networks"][network] == {"internal": True}
    (source,) = (one["file"] for one in loaded["secrets"].values())
    default = re.sub(r"\$\{\w+:-(.+)\}", r"\1", source)
    assert os.path.normpath(f"docker/{default}") in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_no_file_names_a_registry_or_another_host() -> None:
    others = ("nginx.conf.template", "README.md", "trim.sh", "try_images.sh", "../.dockerignore")
    for path in (*COMPOSE_FILES, *DOCKERFILES, *others):
        text = (ROOT / "docker" / path).read_text(encoding="utf-8")
        assert set(re.findall(r"https?://([\w.-]+)", text)) <= {"127.0.0.1", "laplora", "NAME"}, path
        assert re.findall(r"\b[\w-]+\.(?:org|com|io|net|dev|cloud)\b", text) == [], path
