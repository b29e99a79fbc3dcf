"""From a process's start to a ready server, against loading the base model alone; and an artifact's own load."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.harness.process import served
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT
from benchmarks.harness.timing import ratio, spread
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import ADAPTER_FOLDER, POSTERIOR
from laplora.jacobians.contrasts import find_blocks
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, locate_base, resolve_device
from laplora.posterior.file import read_posterior

#: The program of a user without laplora: import, quantise, load; a process of its own, as the server is.
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
AutoTokenizer.from_pretrained(sys.argv[1])
where = {"": "cpu"}
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, quantization_config=config, device_map=where)
"""


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the start over ``from_pretrained`` alone, everything in the page cache, and the artifact's seconds."""
    manifest = read_artifact(ARTIFACT).manifest
    location = locate_base(manifest.base)

    def plain() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", PLAIN, location], check=True, capture_output=True)
        return time.perf_counter() - begun

    times: dict[str, list[float]] = {"plain": [], "server": []}
    for turn in range((2 if quick else 5) + 1):  # the first is not counted: it fills the page cache
        for name, seconds in (("plain", plain()), ("server", seconds_to_ready())):
            if turn:
                times[name].append(seconds)
    yield conditions.record(
        "start: process to ready", ratio(times, "server", "plain"), "from_pretrained in a process", limit=1.5
    )
    yield from artifact_load(conditions, location, manifest.base)


def seconds_to_ready() -> float:
    """Return the seconds until a server is ready, without those that it takes to stop."""
    begun = time.perf_counter()
    with served():
        return time.perf_counter() - begun


def artifact_load(conditions: Conditions, location: str, base: BaseSpec) -> Iterator[Record]:
    """Yield the seconds of verifying an artifact, attaching its adapter and reading its posterior."""
    seconds = []
    for _ in range(5):
        model = load_base_model(location, base, device=resolve_device("auto")).model
        begun = time.perf_counter()
        artifact = read_artifact(ARTIFACT)
        adapted = attach_adapter(model, ARTIFACT / ADAPTER_FOLDER)
        read_posterior(ARTIFACT / POSTERIOR, find_blocks(adapted, len(artifact.manifest.labels)))
        seconds.append(time.perf_counter() - begun)
    yield conditions.record("start: artifact", spread(seconds), "seconds", limit=0.5)
