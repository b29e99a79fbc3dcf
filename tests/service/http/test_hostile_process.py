"""The dearest bodies that we can think of, at a server process: each costs little more than its bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil
import pytest
from server_process import fake_artifacts, fake_server, until

AT_ONCE = 4
SIZE = 4 * 2**20
PROBE = {"inputs": [{"text": "a gripping film ."}], "options": {"predictive": "map"}}
#: Seconds between two looks at the server's memory, and between two requests of another client.
LOOK_S = 0.01


def filled(head: bytes, unit: bytes, tail: bytes) -> bytes:
    """Return ``head``, as many units as fit into ``SIZE`` bytes, numbered where they have ``%07d``, and ``tail``."""
    numbered = b"%07d" in unit
    count = (SIZE - len(head) - len(tail)) // len(unit % 0 if numbered else unit)
    return head + (b"".join(unit % i for i in range(count)) if numbered else unit * count) + tail


@dataclass(frozen=True)
class Attack:
    """One request, of a body that is filled; ``at_once`` is how many connections send it together."""

    name: str
    head: bytes
    unit: bytes
    tail: bytes
    path: str = "/predict"
    at_once: int = 1


KEYS = b"{" + b",".join(b'"%s%d":0' % (b"k" * 250, i) for i in range(64)) + b"}"
LONG = b'{"text":"' + b"word " * 3270 + b'"}'
LABEL = b'{"prediction_id":"a","label":"b"}'
DEEP = b"[" * 100 + b"]" * 100
NUMBER = b"9" * 4000
INPUTS, TEXT, END = b'{"inputs": [', b'{"inputs": [{"text": "', b'"}]}'
ATTACKS = [
    Attack("inputs {}", INPUTS, b"{},", b"{}]}"),
    Attack("well-formed feedback", b'{"items": [', LABEL + b",", LABEL + b"]}", "/feedback"),
    Attack("well-formed inputs", INPUTS, b'{"text":"a"},', b'{"text":"a"}]}'),
    Attack("unknown keys", b'{"inputs": [{"text": "a"}]', b',"k%07d":0', b"}"),
    Attack("one key again and again", b'{"inputs": [{', b'"k":0,', b'"k":0}]}'),
    Attack("64 unknown keys in each input", INPUTS, KEYS + b",", KEYS + b"]}"),
    Attack("choices of a question", b'{"inputs": [{"question":"a","choices":["b"', b',"b"', b"]}]}"),
    Attack("nested lists", b"", b"[", b""),
    Attack("lists nested 100 deep", INPUTS, DEEP + b",", DEEP + b"]}"),
    Attack("digits of one number", b'{"inputs": [{"text": ', b"9", b"}]}"),
    Attack("numbers 1e999", INPUTS, b"1e999,", b"1e999]}"),
    Attack("numbers of 4,000 digits", INPUTS, NUMBER + b",", NUMBER + b"]}"),
    Attack("text of escapes", TEXT, b"\\u00e9", END),
    Attack("text of braces and commas", TEXT, b"{[,]}", END),
    Attack("text of Chinese", TEXT, "好".encode(), END),
    Attack("a word of 4 MiB", TEXT, b"a", END),
    Attack("a text with every input too long", INPUTS, LONG + b",", LONG + b"]}"),
    Attack("white space", b"", b" ", b"{}"),
    Attack("a line of text", b'{"text": "', b"a", b'", "label": "positive"}', "/evaluate/jobs"),
    Attack("an upload of lines {}", b"", b"{}\n", b"", "/evaluate/jobs"),
    Attack("an upload of unknown keys", b'{"a":0', b',"k%07d":0', b"}", "/evaluate/jobs"),
    Attack("at once: inputs {}", INPUTS, b"{},", b"{}]}", at_once=AT_ONCE),
    Attack("at once: text of escapes", TEXT, b"\\u00e9", END, at_once=AT_ONCE),
]


def suffer(client: httpx.Client, process: psutil.Process, attack: Attack) -> tuple[list[int], set[int], float]:
    """Send an attack; return its statuses, those to others meanwhile, and how far resident memory rose, MB."""
    body, stop = filled(attack.head, attack.unit, attack.tail), threading.Event()
    headers = {"content-type": "application/jsonl" if attack.path == "/evaluate/jobs" else "application/json"}
    others: list[int] = []
    rss = [process.memory_info().rss]

    def probe() -> None:
        while not stop.wait(LOOK_S):
            answers = client.get("/health/live"), client.post("/predict", json=PROBE)
            others.extend(answer.status_code for answer in answers)

    def watch() -> None:
        while not stop.wait(LOOK_S):
            rss.append(process.memory_info().rss)

    with ThreadPoolExecutor(2 + attack.at_once) as pool:
        watchers = [pool.submit(probe), pool.submit(watch)]
        try:
            until(lambda: bool(others) or watchers[0].done())
            sent = [pool.submit(client.post, attack.path, content=body, headers=headers) for _ in range(attack.at_once)]
            statuses = [one.result().status_code for one in sent]
        finally:
            stop.set()
        for watcher in watchers:
            watcher.result()
    return statuses, set(others), (max(rss) - rss[0]) / 1e6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    with fake_server(fake_artifacts(tmp_path_factory.mktemp("served"))) as process, process.client() as client:
        watched = psutil.Process(process.popen.pid)
        # Whatever a first large body allocates for good is no part of the later ones.
        suffer(client, watched, ATTACKS[0])
        yield client, watched


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_each_is_answered_and_costs_a_few_times_its_bytes(
    server: tuple[httpx.Client, psutil.Process], attack: Attack
) -> None:
    statuses, others, rise_mb = suffer(*server, attack)
    assert others == {200}
    # The fake tokenises a text of any length; everything else is refused.
    accepted = (2, 4) if any(word in attack.name for word in ("text", "word")) else (4,)
    assert all(status // 100 in accepted for status in statuses), statuses
    # Bytes as they came and as text, of which Python holds up to four bytes a character, and what is cut out of them.
    # Built without a count, the worst of them took 3 GB.
    assert rise_mb < attack.at_once * 16 * SIZE / 1e6
