"""The largest answer a server gives: how long it keeps the event loop, and what a prediction holds in memory.

    python -m benchmarks.load.largest_answer ARTIFACT --rows 256     # one of 150 labels, say

The server runs in this process with every default, its client in another. A task of the same loop sleeps a millisecond
over and over: the longest time that it was late is the longest block.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from pathlib import Path

import psutil
import uvicorn

from laplora.predictor import Predictor
from service.__main__ import server_config
from service.app import create_app
from service.settings import Settings

_CLIENT = """
import sys, httpx
with httpx.stream("POST", sys.argv[1], content=sys.stdin.buffer.read(), headers={"content-type": "application/json"},
                  timeout=600) as answer:
    size = sum(map(len, answer.iter_raw()))
assert answer.status_code == 200, answer.status_code
print(size)
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the figures and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.largest_answer")
    parser.add_argument("artifact", type=Path, help="folder of an artifact")
    parser.add_argument("--rows", type=int, default=256, help="inputs of a request (default: 256)")
    options = parser.parse_args(arguments)
    print(f"a prediction holds {held_bytes(options.artifact):,.0f} bytes")
    asyncio.run(blocks(options.artifact, options.rows))
    return 0


def held_bytes(artifact: Path) -> float:
    """Return by how much this process grows for each of 2,000 predictions that are kept."""
    predictor, process = Predictor.load(artifact, device="cpu"), psutil.Process()
    encoded = [predictor.encode(fields, truncate=True) for fields in inputs_of(predictor, 2000)]
    predictor.predict_all(encoded[:64], batch_size=16)
    gc.collect()
    before = process.memory_info().rss
    kept = predictor.predict_all(encoded, batch_size=16)
    gc.collect()
    return (process.memory_info().rss - before) / len(kept)


def inputs_of(predictor: Predictor, rows: int) -> list[dict[str, str]]:
    """Return texts for a template with one field."""
    (field,) = predictor.artifact.manifest.template.template().fields
    return [{field: f"message number {i}"} for i in range(rows)]


async def blocks(artifact: Path, rows: int) -> None:
    """Print for answers with and without covariance how long they took, their bytes, and the longest block."""
    settings = Settings(
        artifact=artifact.name, artifacts_root=artifact.resolve().parent, device="cpu", port=0, auth="off"
    )
    app = create_app(settings)
    server = uvicorn.Server(server_config(app, settings))
    running = asyncio.create_task(server.serve())
    while not server.started or app.state.artifacts.shelf.active is None:
        await asyncio.sleep(0.1)
    port = server.servers[0].sockets[0].getsockname()[1]
    inputs = inputs_of(app.state.artifacts.shelf.active, rows)
    late = asyncio.create_task(longest_lateness())
    await asyncio.sleep(3)
    late.cancel()
    print(f"idle, for 3 s: longest block {1000 * await late:.1f} ms")
    for covariance in [False, True] * 3:
        body = json.dumps({"inputs": inputs, "options": {"covariance": covariance}}).encode()
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CLIENT, f"http://127.0.0.1:{port}/predict"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        begun, late = time.perf_counter(), asyncio.create_task(longest_lateness())
        out, _ = await client.communicate(body)
        late.cancel()
        print(
            f"{'with' if covariance else 'without'} covariance: {time.perf_counter() - begun:.1f} s, "
            f"{int(out):,} bytes, longest block {1000 * await late:.1f} ms"
        )
    server.should_exit = True
    await running


async def longest_lateness() -> float:
    """Return, once cancelled, the longest time in seconds that a sleep of a millisecond took longer."""
    longest = 0.0
    try:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begun - 0.001)
    except asyncio.CancelledError:
        return longest


if __name__ == "__main__":
    sys.exit(main())
