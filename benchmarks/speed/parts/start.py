"""From a process's start to a ready server, against loading the base model alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.harness.process import served
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT
from benchmarks.harness.timing import ratio
from laplora.artifact.folder import read_artifact
from laplora.models.base import locate_base

#: The program of a user without laplora: import, quantise, load; a process of its own, as the server is.
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
AutoTokenizer.from_pretrained(sys.argv[1])
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, quantization_config=config, device_map="cpu")
"""


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the start over ``from_pretrained`` alone, everything in the page cache."""
    location = locate_base(read_artifact(ARTIFACT).manifest.base)

    def plain() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", PLAIN, location], check=True, capture_output=True)
        return time.perf_counter() - begun

    def server() -> float:
        begun = time.perf_counter()
        with served():  # stopping it takes time that is not counted
            return time.perf_counter() - begun

    times: dict[str, list[float]] = {"plain": [], "server": []}
    for turn in range((2 if quick else 5) + 1):  # the first is not counted: it fills the page cache
        for name, seconds in (("plain", plain()), ("server", server())):
            if turn:
                times[name].append(seconds)
    taken = ratio(times, "server", "plain")
    yield conditions.record("start: process to ready", taken, "from_pretrained in a process", limit=1.5)
