"""``laplora serve FOLDER --engine ray``: the same server by scorers of a Ray cluster, and what of its flags travels."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import psutil
import pytest
from engines import short_folder
from server_process import fake_artifacts, metric, predict, server_process, until
from tiny_runs import FinishedRun

from laplora.commands.app import main
from laplora.errors import ConfigError
from service.ray_serve.__main__ import main as serve_on_ray
from service.ray_serve.cluster import Cluster, Flags
from service.settings import Settings
from service.starting import parse_settings


@pytest.mark.process
def test_one_command_serves_by_two_scorers_of_this_machine(sentiment_run: FinishedRun) -> None:
    command = ["-m", "laplora", "serve", str(sentiment_run.artifact), "--engine", "ray", "--scorers", "2"]
    command += ["--device", "cpu", "--scorer-cpus", "0.1", "--ingress-cpus", "0.1", "--max-inputs", "3"]
    with short_folder() as folder:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # as of a cluster that runs here already
        environment = {"LAPLORA_AUTH": "", "RAY_TMPDIR": str(folder)}
        with server_process(command, environment) as process, process.client() as client:
            assert str(process.event("listening")["address"]).startswith("http://127.0.0.1:")
            until(lambda: metric(client, "laplora_replica_artifacts") == 2)
            under = psutil.Process(process.popen.pid).children(recursive=True)
            assert {one.nice() for one in under} == {psutil.Process().nice()}, "as a plain server, not below all others"
            scorer = next(one for one in under if "laplora:scorer" in " ".join(one.cmdline()))
            scorer.kill()  # its requests go to the other, and another one comes in its place
            labels = {predict(client).json()["predictions"][0]["label"] for _ in range(4)}
            assert labels <= {"negative", "positive"}
            too_many = client.post("/predict", json={"inputs": [{"text": "a"}] * 4})
            assert too_many.status_code == 413, "flags of the server reach its ingress"
            rebound = {"host": "evil.example"}
            assert [client.get(path, headers=rebound).status_code for path in ("/artifacts", "/metrics")] == [421, 200]
            process.popen.terminate()
            assert process.left() == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [([], False), (["--host", "127.0.0.1"], False), (["--auth", "off"], True), (["--key=keys.json"], True)],
)
def test_who_may_ask_is_to_be_said_on_a_cluster_that_runs_already(
    flags: list[str], said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its address is its own: without a key and at this machine alone was open to whoever reached the cluster."""
    monkeypatch.setattr("laplora.commands.serve.runpy.run_module", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("LAPLORA_AUTH", "keys")  # which no node reads
    assert main(["serve", str(tmp_path), "--engine", "ray", *flags]) == (0 if said else 2)
    errors = capsys.readouterr().err
    assert ("say who may ask" in errors) != said
    assert "this machine alone" not in errors
    assert sys.argv == (["python -m service.ray_serve", "--artifact", str(tmp_path), *flags] if said else [])


def cluster(*arguments: str, gpus: float = 0.0) -> Cluster:
    return parse_settings(Flags, [*arguments]).cluster(Flags.given([*arguments]), gpus)


def test_what_the_command_line_says_travels_and_the_environment_and_secrets_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAPLORA_JOBS_URL", "postgresql://secret/jobs")
    (tmp_path / "mine").mkdir()
    made = cluster("--artifact", "mine", "--keys", "keys.json", "--max-inputs", "3", "--scorers", "2")
    assert made.scorers == 2
    assert made.settings == {"artifact": str(tmp_path / "mine"), "keys": str(tmp_path / "keys.json"), "max_inputs": "3"}
    assert Settings(**made.settings).max_inputs == 3
    with pytest.raises(ConfigError, match="LAPLORA_JOBS_URL"):
        cluster("--jobs-url", "postgresql://me:secret@host/jobs")


def test_each_scorer_has_a_gpu_where_there_are_some_and_fewer_than_scorers_are_refused() -> None:
    for flags, gpus, each in (
        ("", 0, 0),
        ("", 2, 1),
        ("--device cpu", 2, 0),
        ("--device cuda", 2, 1),
        ("--scorer-gpus 0.5", 1, 0.5),
        ("--device-map auto --scorer-gpus 2", 4, 2),
    ):
        assert cluster("--scorers", "2", *flags.split(), gpus=gpus).scorer_gpus == each, flags
    for flags, gpus, said in (
        ("", 1, "would need a GPU each"),
        ("--max-scorers 4", 2, "would need a GPU each"),
        ("--device cuda", 0, "would need a GPU each"),
        ("--device-map auto", 4, "say how many by --scorer-gpus"),
    ):
        with pytest.raises(ConfigError, match=said):
            cluster("--scorers", "2", *flags.split(), gpus=gpus)


@pytest.mark.process
def test_what_keeps_it_from_starting_is_said_in_a_sentence_before_ray_starts(tmp_path: Path) -> None:
    here = ["-m", "laplora", "serve", str(tmp_path), "--engine", "ray"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        at_port = ["-m", "service.ray_serve", "--artifact", str(fake_artifacts(tmp_path) / "fake"), "--port", port]
        for command, environment, status, said in (
            (here, {}, 2, "no artifact at"),
            ([*here, "--auth", "off"], {"RAY_ADDRESS": "127.0.0.1:1"}, 2, "Ray cannot be reached at 127.0.0.1:1"),
            (at_port, {}, 1, f"not served: cannot listen on 127.0.0.1 port {port}: Address already in use"),
        ):
            with server_process(command, environment) as process:
                assert process.left() == status
                assert said in process.log
                assert not any(word in process.log for word in ("Traceback", "ray_started"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"settings": {"jobs_url": ["postgresql://me:unmistakable@host"]}}, "settings.jobs_url (LAPLORA_JOBS_URL): "),
        ({"scorers": "unmistakable"}, "scorers: "),
        ({"scorers": 3, "max_scorers": 2}, "max_scorers (2) is below scorers (3)"),
        ("unmistakable", "Input should be an object"),
    ],
)
def test_a_wrong_file_is_said_without_its_values(
    content: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["service.ray_serve", str(file)])
    with pytest.raises(SystemExit) as stopped:
        serve_on_ray()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m service.ray_serve: {file}: {said}")
    assert "unmistakable" not in line.removeprefix(f"python -m service.ray_serve: {file}: {said}")
