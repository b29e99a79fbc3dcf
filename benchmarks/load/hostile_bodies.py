"""The dearest bodies of 4 MiB that we can think of, one after the other: who waits meanwhile, and how memory rises.

    python -m benchmarks.load.hostile_bodies                 # a server of its own on the default artifact, two minutes
    python -m benchmarks.load.hostile_bodies --url URL       # a server of this machine that runs without keys

While each body is sent and answered, another client asks for ``/health/live`` and for one prediction at a time, and the
server's memory is looked at. The last lines send one body several times at once. Loopback only: the bodies are made to
hurt. The result is hostile_bodies.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.harness.process import served
from benchmarks.harness.record import Conditions, conditions_here
from benchmarks.load.watch import process_at
from training.report.markdown import markdown_table

OUT = Path(__file__).with_suffix(".md")
SIZE = 4 * 2**20
PROBE = json.dumps({"inputs": [{"text": "a gripping film ."}], "options": {"predictive": "map"}}).encode()
#: Seconds between two looks at the server's memory, and between two probes of one client.
_LOOK_S, _PROBE_S = 0.01, 0.02


@dataclass(frozen=True)
class Attack:
    """One request; ``body`` is made when it is needed, ``at_once`` is how many connections send it together."""

    name: str
    body: Callable[[], bytes]
    path: str = "/predict"
    at_once: int = 1


@dataclass(frozen=True)
class Outcome:
    """What an attack did: its answers' status and code, and the worst of what others saw meanwhile."""

    attack: Attack
    answers: Mapping[str, int]
    answered_s: float
    live_ms: float
    predict_ms: float
    rss_rise_mb: float


def filled(head: bytes, unit: bytes, tail: bytes) -> bytes:
    """Return ``head``, as many units as fit into ``SIZE`` bytes, and ``tail``."""
    return head + unit * ((SIZE - len(head) - len(tail)) // len(unit)) + tail


def _in_list(unit: bytes, field: bytes = b"inputs") -> Callable[[], bytes]:
    return lambda: filled(b'{"' + field + b'": [', unit + b",", unit + b"]}")


def _numbered(head: bytes, unit: bytes, tail: bytes) -> Callable[[], bytes]:
    """Return a body of as many units as fit, a number of its own in each."""

    def body() -> bytes:
        count = (SIZE - len(head) - len(tail)) // (len(unit % 0) + 1)
        return head + b",".join(unit % i for i in range(count)) + tail

    return body


def _in_text(unit: bytes) -> Callable[[], bytes]:
    return lambda: filled(b'{"inputs": [{"text": "', unit, b'"}]}')


def attacks(at_once: int) -> list[Attack]:
    """Return every attack, the last one with so many connections at once."""
    text = b'{"inputs": [{"text": "a"}], '
    return [
        Attack("a short body without a fault, to compare with", lambda: PROBE),
        Attack("1.4 million inputs {}", _in_list(b"{}")),
        Attack("2.1 million inputs 0", _in_list(b"0")),
        Attack("labelled inputs {}", _in_list(b"{}"), "/evaluate"),
        Attack("feedback items {}", _in_list(b"{}", b"items"), "/feedback"),
        Attack("feedback items 0", _in_list(b"0", b"items"), "/feedback"),
        Attack("well-formed feedback", _in_list(b'{"prediction_id":"a","label":"b"}', b"items"), "/feedback"),
        Attack("well-formed inputs", _in_list(b'{"text":"a"}')),
        Attack("unknown keys", _numbered(text, b'"k%06d":0', b"}")),
        Attack("unknown keys of options", _numbered(text + b'"options": {', b'"k%06d":0', b"}}")),
        Attack("unknown keys of one input", _numbered(b'{"inputs": [{', b'"k%06d":0', b"}]}")),
        Attack("one key again and again", lambda: filled(b'{"inputs": [{', b'"k":0,', b'"k":0}]}')),
        Attack("64 unknown keys in each input", _keys_in_each),
        Attack(
            "choices of one question", lambda: filled(b'{"inputs": [{"question":"a","choices":["b"', b',"b"', b"]}]}")
        ),
        Attack("empty strings as inputs", _in_list(b'""')),
        Attack("nested lists", lambda: b"[" * SIZE),
        Attack("lists nested 100 deep", _in_list(b"[" * 100 + b"]" * 100)),
        Attack("digits of one number", lambda: filled(b'{"inputs": [{"text": ', b"9", b"}]}")),
        Attack("digits of one fraction", lambda: filled(b'{"inputs": [{"text": 0.', b"9", b"}]}")),
        Attack("digits of one exponent", lambda: filled(b'{"inputs": [{"text": 1e', b"9", b"}]}")),
        Attack("numbers 1e999", _in_list(b"1e999")),
        Attack("numbers of 4,000 digits", _in_list(b"9" * 4000)),
        Attack("text of escapes", _in_text(b"\\u00e9")),
        Attack("text of escaped backslashes", _in_text(b"\\\\")),
        Attack("text of escaped pairs", _in_text(b"\\ud83d\\ude00")),
        Attack("text of braces and commas", _in_text(b"{[,]}")),
        Attack("text of Chinese", _in_text("好".encode())),
        Attack("a word of 4 MiB", _in_text(b"a")),
        Attack("a text with every input too long", _texts),
        Attack("white space", lambda: filled(b"", b" ", b"{}")),
        Attack(
            "an upload of one line", lambda: filled(b'{"text": "', b"a", b'", "label": "positive"}'), "/evaluate/jobs"
        ),
        Attack("an upload of lines {}", lambda: filled(b"", b"{}\n", b""), "/evaluate/jobs"),
        Attack("an upload of unknown keys", _numbered(b"{", b'"k%06d":0', b"}"), "/evaluate/jobs"),
        Attack(f"{at_once} at once: inputs {{}}", _in_list(b"{}"), at_once=at_once),
        Attack(f"{at_once} at once: text of escapes", _in_text(b"\\u00e9"), at_once=at_once),
    ]


def _keys_in_each() -> bytes:
    one = b"{" + b",".join(b'"%s%d":0' % (b"k" * 240, i) for i in range(64)) + b"}"
    return b'{"inputs": [' + b",".join([one] * min(256, SIZE // (len(one) + 1) - 1)) + b"]}"


def _texts() -> bytes:
    one = b'{"text":"' + b"word " * 3200 + b'"}'
    return b'{"inputs": [' + b",".join([one] * 256) + b"]}"


def ask(url: str, method: str, path: str, body: bytes | None = None, media_type: str = "application/json") -> str:
    """Return the status of an answer and the code of its error."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    try:
        connection.request(method, path, body, {"content-type": media_type} if body is not None else {})
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()
    code = json.loads(content)["error"]["code"] if answer.status >= 400 else ""
    return f"{answer.status} {code}".strip()


def suffer(url: str, process: psutil.Process, attack: Attack) -> Outcome:
    """Send an attack and return what it did."""
    body, stop = attack.body(), threading.Event()
    media_type = "application/jsonl" if attack.path == "/evaluate/jobs" else "application/json"
    live_s: list[float] = []
    predict_s: list[float] = []
    rss = [process.memory_info().rss]

    def timed(*request: Any) -> tuple[float, str]:
        begun = time.perf_counter()
        answer = ask(url, *request)
        return time.perf_counter() - begun, answer

    def probe(times_s: list[float], *request: Any) -> None:
        while not stop.is_set():
            times_s.append(timed(*request)[0])
            time.sleep(_PROBE_S)

    def watch() -> None:
        while not stop.wait(_LOOK_S):
            rss.append(process.memory_info().rss)

    with ThreadPoolExecutor(3 + attack.at_once) as pool:
        watchers = [
            pool.submit(probe, live_s, "GET", "/health/live"),
            pool.submit(probe, predict_s, "POST", "/predict", PROBE),
            pool.submit(watch),
        ]
        while min(len(live_s), len(predict_s)) < 3:
            time.sleep(_PROBE_S)
        sent = [pool.submit(timed, "POST", attack.path, body, media_type) for _ in range(attack.at_once)]
        wait(sent)
        stop.set()
        for watcher in watchers:
            watcher.result()
    times_s, answers = zip(*(one.result() for one in sent), strict=True)
    counts = Counter(sorted(answers))
    return Outcome(attack, counts, max(times_s), 1000 * max(live_s), 1000 * max(predict_s), (max(rss) - rss[0]) / 1e6)


def page(outcomes: Sequence[Outcome], conditions: Conditions, load: float) -> str:
    """Return the results as Markdown; ``load``: how many threads wanted to run on this machine before."""
    measured = conditions.measured
    rows = []
    for one in outcomes:
        answers = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in one.answers.items())
        path = "" if one.attack.path == "/predict" else f" (`{one.attack.path}`)"
        worst = (f"{value:.0f}" for value in (one.live_ms, one.predict_ms, one.rss_rise_mb))
        rows.append([one.attack.name + path, answers, f"{one.answered_s:.2f}", *worst])
    heading = ["body", "answers", "the last after, s", "worst /health/live, ms", "worst prediction, ms", "memory, MB"]
    slowest = max(outcomes, key=lambda one: one.live_ms)
    return f"""# Hostile bodies

`{measured["command"]}`, {measured["date"]}, {conditions.hardware}; {measured["versions"]}.
Clients and server share the machine, whose load was {load:.0f} before it began. Each body but the first has
4 MiB; while it was sent and answered, another client
asked for `/health/live` and for one prediction (by map), again and again: the worst of each. Memory is how
far the server's resident memory rose.

{markdown_table(heading, rows, left=(0, 1))}
Worst wait for `/health/live`: {slowest.live_ms:.0f} ms ({slowest.attack.name}).
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return the exit status, 1 where an answer was a fault of the server."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load.hostile_bodies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="a server of this machine that runs already, without keys")
    parser.add_argument("--at-once", type=int, default=16, help="connections of the last attacks (default: 16)")
    parser.add_argument("--only", default="", help="attacks with this in their name alone")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the page (default: {OUT.name})")
    options = parser.parse_args(arguments)
    conditions = conditions_here(arguments, module="benchmarks.load.hostile_bodies").with_versions("uvicorn", "fastapi")
    outcomes, load = [], psutil.getloadavg()[0]
    with ExitStack() as stack:
        jobs = stack.enter_context(tempfile.TemporaryDirectory(prefix="laplora-hostile-"))
        url = options.url or stack.enter_context(served(["--jobs-dir", jobs]))
        process = process_at(url)
        if process is None:
            parser.error("the server is not of this machine: these bodies are for the loopback address alone")
        for attack in attacks(options.at_once):
            if options.only in attack.name:
                outcomes.append(suffer(url, process, attack))
                print(f"{attack.name}: {outcomes[-1]}", flush=True)
    options.out.write_text(page(outcomes, conditions, load), encoding="utf-8")
    return int(any(name.startswith("500") or not name[0].isdigit() for one in outcomes for name in one.answers))


if __name__ == "__main__":
    sys.exit(main())
