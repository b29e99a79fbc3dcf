"""Every kind of client at once for a long time: is memory flat, was any answer wrong?

    python -m benchmarks.soak --minutes 20              # or: make soak; a server of its own on the default artifact
    python -m benchmarks.soak --minutes 20 --url URL    # a server that runs, of an artifact that takes {"text"}

The answers of a server that runs are compared with its own from before the load, and none of its artifacts is
activated; at one of its own, two copies of the artifact take turns. Every ten seconds the server's memory, open files
and threads, latencies and errors become a line of soak.csv; soak.png shows them and soak.md says what they mean, in
benchmarks/load for a whole run at a server of its own, else in runs/bench-quick/load. The exit status is 1 where an
answer was wrong, something else was not as it should be, or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.harness import provenance
from benchmarks.harness.process import served
from benchmarks.harness.record import conditions_here
from benchmarks.harness.subject import ARTIFACT
from benchmarks.load.known_rows import Known, learn
from benchmarks.load.soak_report import draw, memory_trend, page, verdict
from benchmarks.load.tally import Tally
from benchmarks.load.traffic import Session, run
from benchmarks.load.watch import Sample, process_at, record
from laplora.artifact.folder import read_artifact, write_manifest
from service.settings import Settings

OUT = Path(__file__).with_name("load")
#: What is published is at least so long, at a server of its own; anything else is left in the scratch folder.
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
    parser.add_argument("--pid", type=int, help="process id of that server, if it is not what listens at the URL")
    parser.add_argument("--clients", type=int, default=6, help="clients that ask for predictions (default: 6)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: load, or runs/bench-quick/load)")
    options = parser.parse_args(arguments)
    whole = options.url is None and options.minutes >= PUBLISHED_MINUTES
    options.out = options.out or (OUT if whole else provenance.SCRATCH / OUT.name)
    options.out.mkdir(parents=True, exist_ok=True)
    given = sys.argv[1:] if arguments is None else arguments
    conditions = conditions_here(given, module="benchmarks.soak").with_versions("uvicorn", "fastapi")
    with own_server() if options.url is None else _known_server(options.url) as (url, artifact):
        process = process_at(url) if options.pid is None else psutil.Process(options.pid)
        if process is None:
            print(
                "benchmarks.soak: the server's process is not of this machine: memory is not watched", file=sys.stderr
            )
        token = os.environ.get("LAPLORA_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(base_url=url, timeout=180.0, headers=headers) as client:
            known, contradicted = learn(client, artifact)
            paths = frozenset(client.get("/openapi.json").json()["paths"])
            listed = client.get("/artifacts").json()["artifacts"] if artifact else []
            names = tuple(dict.fromkeys(one["name"] for one in listed))
        tally = Tally()
        print(f"{url}: {len(known.texts)} known rows in modes {', '.join(known.modes)}; artifacts {', '.join(names)}")
        samples = asyncio.run(_soak(url, known, tally, paths, names, headers, process, options))
    draw(samples, options.out / "soak.png")
    text = page(samples, tally, conditions, contradicted=contradicted)
    (options.out / "soak.md").write_text(text, encoding="utf-8")
    found = memory_trend(samples)
    print(f"{tally.wrong + contradicted} wrong answers of {tally.rows}; {tally.fault_count} other faults")
    print(verdict(samples))
    for fault in tally.faults:
        print(f"  {fault}")
    grows = found is not None and found.grows
    return 1 if tally.wrong or contradicted or tally.fault_count or grows else 0


async def _soak(
    url: str,
    known: Known,
    tally: Tally,
    paths: frozenset[str],
    names: tuple[str, ...],
    headers: dict[str, str],
    process: psutil.Process | None,
    options: argparse.Namespace,
) -> list[Sample]:
    stop = asyncio.Event()
    load = asyncio.create_task(run(Session(url, known, tally, paths, names, stop, headers), predictors=options.clients))
    try:
        return await record(
            process, tally, options.out / "soak.csv", seconds=60 * options.minutes, every_s=options.every_s
        )
    finally:
        stop.set()
        await load


@contextmanager
def own_server() -> Iterator[tuple[str, Path]]:
    """Yield the address of a server of the default artifact and a copy of another name, and the artifact's folder."""
    with tempfile.TemporaryDirectory(prefix="laplora-soak-") as folder:
        root = Path(folder) / "artifacts"
        for name in (ARTIFACT.name, SECOND):
            shutil.copytree(ARTIFACT, root / name)
        write_manifest(root / SECOND, read_artifact(ARTIFACT).manifest.model_copy(update={"name": SECOND}))
        flags = ["--artifacts-root", str(root)]
        # What is kept for feedback is kept on purpose, up to a bound: a small one is full when the warm-up is over.
        flags += ["--feedback-rows", "1000"] if "feedback_rows" in Settings.model_fields else []
        flags += ["--jobs-dir", f"{folder}/jobs"] if "jobs_dir" in Settings.model_fields else []
        with served(flags) as url:
            yield url, ARTIFACT


@contextmanager
def _known_server(url: str) -> Iterator[tuple[str, None]]:
    yield url.rstrip("/"), None


if __name__ == "__main__":
    sys.exit(main())
