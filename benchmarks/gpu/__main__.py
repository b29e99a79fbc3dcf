"""All that needs a GPU, in at most 30 minutes; the end is one file to send back.

    make gpu                                             # or: python -m benchmarks.gpu
    make gpu ARGS='--device cpu --layers 2 --quick'      # the same steps without a GPU, to try them
    python -m benchmarks.gpu --publish FILE              # a sent file's figures, into the records and pages

Each step is a process with a limit. Ctrl-C stops; the same command goes on, and runs again what did not pass. Reports
are in runs/gpu, or in runs/gpu-trial where less than everything ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import torch

from benchmarks.gpu import models, publish, served
from benchmarks.gpu.steps import REPORT, SKIPPED, SkipStep, Step, run_all
from benchmarks.harness import provenance
from benchmarks.harness.record import Conditions, Record, conditions_here
from benchmarks.harness.timing import exactly
from laplora.errors import DataError, ModelError
from laplora.models.base import resolve_device

TRIAL = "--device cpu --layers 2 --quick"
#: The steps, and the most seconds of each on a card: 30 minutes together. A model needs less than 90, by estimate.
LIMITS = {
    "card": 60,
    "tests": 360,
    **{f"{model} {number_format}": 90 for model in models.MODELS for number_format in models.FORMATS},
    "server": 150,
    "two cards": 180,
    "Ray": 180,
    "image": 150,
}
#: How much longer a step may take on a CPU, which other work may share.
CPU_TIMES = 3
SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def main(arguments: list[str] | None = None) -> int:
    """Run the steps, one of them, or publish; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="a device instead of the first CUDA one")
    parser.add_argument("--layers", type=int, default=models.LAYERS, help="of each random model (default: all)")
    parser.add_argument("--quick", action="store_true", help="few rows, short ones and few turns: to try the steps")
    parser.add_argument("--publish", type=Path, metavar="FILE", help="put a sent report's figures into the pages")
    parser.add_argument("--step", choices=LIMITS, help="this step alone, in this process")
    options = parser.parse_args(arguments)
    try:
        if options.publish:
            return publish.publish(options.publish)
        if options.device.startswith("cuda") and (why := no_card(torch.cuda, driver())):
            raise ModelError(f"{why}; to try the steps on a CPU: make gpu ARGS='{TRIAL}'")
        resolve_device(options.device)
    except (DataError, ModelError) as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    return run_one(options) if options.step else run_every(options)


def no_card(cuda: Any, cards: Sequence[str]) -> str | None:
    """Return why torch has no card; None: it has. ``cards`` are those that the driver lists."""
    if cuda.is_available():  # torch warns of a driver that is too old
        return None
    if not cards:
        return "there is no NVIDIA card here"
    return (
        f"nvidia-smi lists {cards[0]}, but torch {torch.__version__} finds no card. docker/README.md says which driver "
        "each torch needs; for one below 580: .venv/bin/python -m pip install torch==2.10.0"
    )


def driver(command: Sequence[str] = SMI) -> list[str]:
    """Return name, memory and driver of each card, as nvidia-smi lists them; nothing where it does not run."""
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.splitlines() if line.strip()]


def run_every(options: argparse.Namespace) -> int:
    """Run every step, say where the report is and where to send it; return 1 if a step failed, 130 after Ctrl-C."""
    flags, cuda = flags_of(options), options.device.startswith("cuda")
    command = [sys.executable, "-m", "benchmarks.gpu", *flags, "--step"]
    steps = [Step(name, [*command, name], limit * (1 if cuda else CPU_TIMES)) for name, limit in LIMITS.items()]
    whole = cuda and options.layers == models.LAYERS and not options.quick
    cards = driver()
    head = {"format": publish.FORMAT, "whole": whole, "commit": provenance.commit(), "flags": flags, "cards": cards}
    folder = provenance.SCRATCH.with_name("gpu" if whole else "gpu-trial")
    print(
        f"{len(steps)} steps on {', '.join(cards) or options.device}, at most {sum(s.limit_s for s in steps) / 60:.0f} "
        f"minutes: {', '.join(f'{s.name} {s.limit_s} s' for s in steps)}. Ctrl-C stops; the same command goes on."
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # as Ctrl-C does, also where a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    try:
        report = run_all(steps, folder, head, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("stopped: the same command goes on")
        return 130
    count = Counter(found["status"] for found in report["steps"].values())
    print(", ".join(f"{number} {status}" for status, number in count.items()))
    print(f"Please attach {os.path.relpath(folder / REPORT)} to an issue; --publish FILE then takes it into the pages")
    return int(bool(set(count) - {"passed", "skipped"}))


def flags_of(options: argparse.Namespace) -> list[str]:
    """Return the flags that every step has."""
    return ["--device", options.device, "--layers", str(options.layers), *(["--quick"] if options.quick else [])]


def run_one(options: argparse.Namespace) -> int:
    """Run a step here, what it finds as lines of the output; return its exit status."""
    try:
        for found in findings(options):
            kind, value = ("record", asdict(found)) if isinstance(found, Record) else ("fact", found)
            print(f"{kind}: {json.dumps(value, allow_nan=False)}", flush=True)
    except SkipStep as reason:
        print(reason)
        return SKIPPED
    return 0


def findings(options: argparse.Namespace) -> Iterator[Record | dict[str, Any]]:
    """Return the figures and facts of a step."""
    device, name, quick = options.device, options.step, options.quick
    hardware = provenance.hardware()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(resolve_device(device))
        hardware = torch.cuda.get_device_name()
    conditions = conditions_here([*flags_of(options), "--step", name], module="benchmarks.gpu", hardware=hardware)
    if cuda:
        version = next((line.rpartition(", ")[2] for line in driver()), "unknown")
        versions = f"{conditions.measured['versions']}, CUDA {torch.version.cuda}, driver {version}"
        conditions = replace(conditions, measured={**conditions.measured, "versions": versions})
    ways: dict[str, Callable[[], Iterator[Record | dict[str, Any]]]] = {
        "card": lambda: card(torch.cuda if cuda else None, conditions),
        "tests": lambda: gpu_tests("not two_gpus and not torchrun", conditions, "gpu, tests"),
        "server": lambda: served.one(device, conditions, quick),
        "two cards": lambda: chain(
            served.two_cards(conditions, quick), gpu_tests("two_gpus or torchrun", conditions, "gpu, two cards")
        ),
        "Ray": lambda: served.on_ray(device, conditions, quick),
        "image": lambda: served.image(conditions, quick),
    }
    if name in ways:
        return ways[name]()
    sizes = models.QUICK if quick else models.FULL
    return models.measured(*name.split(), device, options.layers, sizes, conditions)


def card(cuda: Any, conditions: Conditions) -> Iterator[Record | dict[str, Any]]:
    """Yield what the card and its software are; ``cuda`` is torch's module, None without a card."""
    machine = f"Python {platform.python_version()}, {provenance.hardware()}"
    yield {"versions": conditions.measured["versions"], "machine": machine}
    if cuda is None:
        raise SkipStep("this is a CPU")
    properties = [cuda.get_device_properties(number) for number in range(cuda.device_count())]
    yield {"cards": [f"{one.name}, capability {one.major}.{one.minor}" for one in properties]}
    yield conditions.record("gpu, card: count", exactly(len(properties)), "cards")
    yield conditions.record("gpu, card: memory", exactly(properties[0].total_memory / models.GIB), "GiB")


def gpu_tests(which: str, conditions: Conditions, title: str) -> Iterator[Record | dict[str, Any]]:
    """Yield the outcome of each test marked ``gpu`` whose name fits ``which``, and how many passed.

    Raises:
        SkipStep: all were skipped; SystemExit: one failed, or pytest did.
    """
    tests = provenance.ROOT / "tests"
    files = [str(file) for file in sorted(tests.rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]
    command = ["-m", "pytest", "-v", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-m", "gpu", "-k", which]
    wide = os.environ | {"COLUMNS": "300"}  # pytest cuts reasons to it
    process = subprocess.Popen([sys.executable, *command, *files], stdout=PIPE, stderr=STDOUT, text=True, env=wide)
    count: Counter[str] = Counter()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        for test, outcome in outcomes(line).items():
            count[outcome.split(":")[0]] += 1
            yield {test: outcome}
    failed = count["failed"] + count["error"]
    if count["passed"] or failed:
        yield conditions.record(f"{title}: tests that passed", exactly(count["passed"]), "tests")
        yield conditions.record(f"{title}: tests that failed", exactly(failed), "tests")
    if process.wait() or failed:
        raise SystemExit(f"{failed} tests failed; pytest ended with {process.returncode}")
    if not count["passed"]:
        raise SkipStep(f"no test ran: {count['skipped']} were skipped")


def outcomes(line: str) -> dict[str, str]:
    """Return the outcome of a test by its name, from a line of ``pytest -v``: with the reason of a skip."""
    found = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)(?: \((.*)\))? +(?:\[ *\d+%\])?$", line)
    return {test: f"{outcome.lower()}: {why}".removesuffix(": ") for test, outcome, why in found}


if __name__ == "__main__":
    sys.exit(main())
