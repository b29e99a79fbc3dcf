"""``make demo``: start the real server, ask it three questions, show the answers, keep serving.

The questions are one clear, one ambiguous and one that is unlike the training rows. For an artifact of another task
they are the inputs of its recorded answers.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

#: Error rate among accepted answers that the decisions are for.
TARGET_RISK = 0.05
#: Template of the default artifact, which the questions are for.
TEMPLATE = "subject"
TEXTS: dict[str, dict[str, Any]] = {
    "clear": {"text": "Which valve lies between the left atrium and the left ventricle?"},
    "ambiguous": {"text": "What is the best remedy for a brute-force attack?"},
    "unlike": {"text": "a quietly moving story, told with wit and great care."},
}


def main() -> int:
    """Run the demo until Ctrl-C; return the server's exit status."""
    parser = argparse.ArgumentParser(prog="python -m service.demo", description=__doc__)
    parser.add_argument("--artifact", required=True, type=Path, help="artifact folder to serve")
    parser.add_argument("--port", default=8000, type=int, help="TCP port (default: 8000)")
    options = parser.parse_args()
    url = f"http://127.0.0.1:{options.port}"
    with socket.socket() as probe:
        if not probe.connect_ex(("127.0.0.1", options.port)):
            print(f"port {options.port} is taken: make demo PORT={options.port + 1}", file=sys.stderr)
            return 1
    print(f"starting the server on {options.artifact} (the first time, the base model is fetched)", flush=True)
    # Without keys: nobody but this machine can reach it.
    flags = ["--artifact", str(options.artifact), "--host", "127.0.0.1", "--port", str(options.port), "--auth", "off"]
    server = subprocess.Popen(
        [sys.executable, "-m", "service", *flags, "--log-level", "warning"], start_new_session=True
    )
    # The server is in a session of its own, so a Ctrl-C reaches it once, from here, and it drains.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: server.send_signal(number))
    try:
        if not wait_until_ready(server, url):
            return server.poll() or 1
        show(url, examples(options.artifact))
        print(f"\nserving at {url}   the page to try it: {url}/   the API: {url}/docs   Ctrl-C stops", flush=True)
        server.wait()
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            server.wait()
    print("stopped")
    return 0 if server.returncode in (0, -signal.SIGINT, -signal.SIGTERM, 130) else server.returncode


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    """Return true once the server is ready, false if it ended first; its stages are printed."""
    stage = ""
    while server.poll() is None:
        try:
            response = httpx.get(f"{url}/health/ready", timeout=5)
        except httpx.TransportError:
            time.sleep(0.3)
            continue
        if response.status_code == 200:
            return True
        reported = response.json()["error"]["message"].rpartition("stage: ")[2]
        if reported != stage:
            stage = reported
            print(f"  {stage}", flush=True)
        time.sleep(0.3)
    return False


def examples(artifact: Path) -> dict[str, dict[str, Any]]:
    """Return inputs by name that fit the artifact's template."""
    template = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["template"]
    if template["name"] == TEMPLATE:
        return TEXTS
    golden = json.loads((artifact / "golden.json").read_text(encoding="utf-8"))["answers"]
    return {f"recorded {i}": entry["inputs"] for i, entry in enumerate(golden[:3], start=1)}


def show(url: str, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Send the inputs in one request and print question and answer, readable."""
    body = {
        "inputs": [{"id": name, **fields} for name, fields in inputs.items()],
        "options": {"target_risk": TARGET_RISK, "detail": "full"},
    }
    response = httpx.post(f"{url}/predict", json=body, timeout=120)
    response.raise_for_status()
    print(f"\nPOST {url}/predict -> {response.status_code} in {response.elapsed.total_seconds():.1f} s\n")
    for name, fields in inputs.items():
        print(f"  {name:<10} {json.dumps(next(iter(fields.values())), ensure_ascii=False)}")
    print()
    predictions = response.json()["predictions"]
    rows = [("input", "label", "model alone", "laplora", "decision", "why"), *map(_row, predictions)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\n  model alone and laplora: probability of the label, before and after calibration;")
    print(f"  decision: of the accepted answers at most {100 * TARGET_RISK:g} % are to be wrong (options.target_risk).")


def _row(prediction: Mapping[str, Any]) -> tuple[str, ...]:
    name, label, decision, reason = (prediction[one] for one in ("id", "label", "decision", "decision_reason"))
    alone = f"{prediction['map_probs'][label]:.3f}" if prediction.get("map_probs") else "-"
    return name, label, alone, f"{prediction['probs'][label]:.3f}", decision, reason


if __name__ == "__main__":
    sys.exit(main())
