"""The default artifact as servers answer it: one server, a base over two cards, Ray, and the CUDA image."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import httpx
import torch

from benchmarks.gpu.models import latencies
from benchmarks.gpu.steps import SkipStep
from benchmarks.harness.process import answering, free_port, served
from benchmarks.harness.provenance import ARTIFACT
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.timing import exactly, in_turns, spread
from benchmarks.speed.parts.server import sentences
from laplora.artifact.folder import read_artifact
from laplora.errors import LaploraError
from laplora.models.base import locate_base

#: Inputs of a request to one server, and how often each is sent with and without a variance.
INPUTS, TURNS = (1, 4, 16, 64, 256), 20
IMAGE = "laplora-service:gpu"
BUILD = "docker compose -f docker/compose.yaml --profile gpu build gpu"
#: The volume of the image's model, so that a second run fetches nothing. It is not the volume of a server in use.
VOLUME = "laplora-gpu-check"


def need_base() -> None:
    """Raise SkipStep if the base model of the default artifact is not in the cache and cannot be fetched."""
    try:
        locate_base(read_artifact(ARTIFACT).manifest.base)
    except LaploraError as error:
        raise SkipStep(f"the base model of the default artifact cannot be fetched: {error}") from None


def one(device: str, conditions: Conditions, quick: bool) -> Iterator[Record | dict[str, str]]:
    """Yield the token budget that a server measures at load, and its answers."""
    need_base()
    with served(["--device", device, "--max-inputs", str(max(INPUTS))]) as address:
        (artifact,) = httpx.get(f"{address}/artifacts").json()["artifacts"]
        budget = artifact["token_budget"]
        yield {"token_budget": budget["reason"]}
        yield conditions.record("gpu, server: token budget", exactly(budget["tokens"]), "tokens")
        yield from answers("gpu, server", address, conditions, quick, INPUTS)


def two_cards(conditions: Conditions, quick: bool) -> Iterator[Record]:
    """Yield the answers of a base over all cards."""
    if (count := torch.cuda.device_count()) < 2:
        raise SkipStep(f"it needs two cards, and {count} is here")
    need_base()
    with served(["--device-map", "balanced"]) as address:
        yield from answers("gpu, two cards", address, conditions, quick)


def on_ray(device: str, conditions: Conditions, quick: bool) -> Iterator[Record]:
    """Yield the answers of a scorer for each GPU on a Ray of its own."""
    if find_spec("ray") is None:
        raise SkipStep("ray is not installed: .venv/bin/python -m pip install -c constraints.txt -e '.[ray]'")
    need_base()
    os.environ.pop("RAY_ADDRESS", None)  # it is another cluster, which somebody uses
    flags = ["--device", "cuda", "--scorers", str(torch.cuda.device_count())]
    if device == "cpu":
        flags = ["--device", "cpu", "--scorer-cpus", "0.1", "--ingress-cpus", "0.1"]
    with served(flags, module="service.ray_serve") as address:
        yield from answers("gpu, Ray", address, conditions, quick)


def image(conditions: Conditions, quick: bool) -> Iterator[Record]:
    """Yield the answers of the CUDA image, which is ready only where it sees a card."""
    if (docker := shutil.which("docker")) is None:
        raise SkipStep("docker is not here")
    known = subprocess.run([docker, "image", "inspect", IMAGE], capture_output=True, text=True, check=False)
    if known.returncode:
        raise SkipStep(f"no image {IMAGE} ({known.stderr.strip() or 'docker does not answer'}): {BUILD}")
    port, name = free_port(), f"laplora-gpu-{os.getpid()}"
    run = f"run --rm --init --name {name} --gpus all -p 127.0.0.1:{port}:8000 -v {VOLUME}:/var/lib/laplora"
    settings = ["-e", "LAPLORA_AUTH=off", "-e", "LAPLORA_DEVICE=cuda", IMAGE]
    try:
        process = subprocess.Popen([docker, *run.split(), *settings])
        with answering(process, f"http://127.0.0.1:{port}") as address:
            yield from answers("gpu, image", address, conditions, quick)
    finally:
        subprocess.run([docker, "rm", "--force", name], capture_output=True, check=False)


def answers(
    title: str, address: str, conditions: Conditions, quick: bool, inputs: tuple[int, ...] = (1, 64)
) -> Iterator[Record]:
    """Yield latency and throughput of requests with and without a variance, by their inputs."""
    with httpx.Client(base_url=address, timeout=None) as client:

        def ask(rows: list[dict[str, str]], predictive: str) -> None:
            reply = client.post("/predict", json={"inputs": rows, "options": {"predictive": predictive}})
            reply.raise_for_status()
            assert len(reply.json()["predictions"]) == len(rows)

        def record(name: str, *rest: Any) -> Record:
            return conditions.record(f"{title}: {name}", *rest)

        for count in (1, 4) if quick else inputs:
            rows = [{"text": text} for text in sentences(count)]
            asks = {"MAP": partial(ask, rows, "map"), "Laplace": partial(ask, rows, "laplace")}
            # Without CUDA's context, which is the server's.
            times = in_turns(asks, 2 if quick else TURNS, time.perf_counter)
            size = "1 input" if count == 1 else f"{count} inputs"
            yield from latencies(record, times, size)
            for name, seconds in times.items():
                yield record(f"throughput, {name}, {size}", spread([count / s for s in seconds]), "inputs/s")
