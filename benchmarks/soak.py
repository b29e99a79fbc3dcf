"""Every kind of client at once for a long time: is memory flat, was any answer wrong?

    python -m benchmarks.soak --minutes 20              # or: make soak; a server of its own on the default artifact
    python -m benchmarks.soak --minutes 20 --url URL    # one of this machine that runs, whose inputs are {"text": ...}

The answers of a server that runs are compared with its own from before the load; at one of its own, two copies of the
artifact take turns. Every ten seconds the server's memory, open files and threads, latencies and errors become a line
of soak.csv, and soak.md says what they mean, in benchmarks/load for a whole run at a server of its
own, else in runs/bench-quick/load. The exit status is 1 where an answer was wrong, something else was not as it should
be, or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import psutil

from benchmarks.harness import provenance
from benchmarks.harness.process import served
from benchmarks.harness.record import conditions_here
from benchmarks.harness.subject import ARTIFACT
from benchmarks.load.known_rows import learn
from benchmarks.load.soak_report import memory_trend, page, verdict
from benchmarks.load.tally import Tally
from benchmarks.load.traffic import Session, run
from benchmarks.load.watch import Sample, process_at, record
from laplora.artifact.folder import read_artifact, write_manifest

OUT = Path(__file__).with_name("load")
#: A published run is at least so long, at a server of its own; anything else is left in the scratch folder.
PUBLISHED_MINUTES = 20.0
#: Name of the copy that is activated in turn with the artifact itself.
SECOND = "sst2-second"


def main(arguments: list[str] | None = None) -> int:
    """Load the server and report; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--every-s", type=float, default=10.0, help="seconds between samples (default: 10)")
    parser.add_argument("--url", help="a server that runs already; its key, if any, in LAPLORA_TOKEN")
    parser.add_argument("--out", type=Path, help="folder of the results (default: load, or runs/bench-quick/load)")
    options = parser.parse_args(arguments)
    whole = options.url is None and options.minutes >= PUBLISHED_MINUTES
    options.out = options.out or (OUT if whole else provenance.SCRATCH / OUT.name)
    options.out.mkdir(parents=True, exist_ok=True)
    conditions = conditions_here(arguments, module="benchmarks.soak").with_versions("uvicorn", "fastapi")
    token = os.environ.get("LAPLORA_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    starts_server = options.url is None
    with own_server() if starts_server else nullcontext(options.url.rstrip("/")) as url:
        process = process_at(url)
        if process is None:
            parser.error("the server is not of this machine: its memory cannot be watched")
        with httpx.Client(base_url=url, timeout=180.0, headers=headers) as client:
            known, contradicted = learn(client, ARTIFACT if starts_server else None)
        session = Session(url, known, Tally(), (ARTIFACT.name, SECOND) if starts_server else (), headers)
        samples = asyncio.run(_soak(session, process, options))
    tally = session.tally
    text = page(samples, tally, conditions, contradicted=contradicted)
    (options.out / "soak.md").write_text(text, encoding="utf-8")
    memory = memory_trend(samples)
    print(f"{tally.wrong + contradicted} wrong answers of {tally.rows}; {tally.fault_count} other faults")
    print(verdict(samples))
    for fault in tally.faults:
        print(f"  {fault}")
    grows = memory is not None and memory.grows
    return 1 if tally.wrong or contradicted or tally.fault_count or grows else 0


async def _soak(session: Session, process: psutil.Process, options: argparse.Namespace) -> list[Sample]:
    load = asyncio.create_task(run(session))
    seconds, path = 60 * options.minutes, options.out / "soak.csv"
    try:
        return await record(process, session.tally, path, seconds=seconds, every_s=options.every_s)
    finally:
        session.stop.set()
        await load


@contextmanager
def own_server() -> Iterator[str]:
    """Yield the address of a server of the default artifact and a copy of another name."""
    with tempfile.TemporaryDirectory(prefix="laplora-soak-") as folder:
        root = Path(folder) / "artifacts"
        for name in (ARTIFACT.name, SECOND):
            shutil.copytree(ARTIFACT, root / name)
        write_manifest(root / SECOND, read_artifact(ARTIFACT).manifest.model_copy(update={"name": SECOND}))
        # Predictions are kept for feedback, up to a bound: a small one is full when the warm-up is over.
        with served(["--artifacts-root", str(root), "--jobs-dir", f"{folder}/jobs", "--feedback-rows", "1000"]) as url:
            yield url


if __name__ == "__main__":
    sys.exit(main())
