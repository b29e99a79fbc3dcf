"""The dearest bodies that we can think of, at a server process: each costs little more than its bytes."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from server_process import fake_artifacts, fake_server

from benchmarks.load.hostile_bodies import SIZE, Attack, attacks, suffer
from benchmarks.load.watch import process_at

AT_ONCE = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    with fake_server(fake_artifacts(tmp_path_factory.mktemp("served"))) as process, process.client() as client:
        url = str(client.base_url)
        watched = process_at(url)
        assert watched is not None
        # Whatever a first large body allocates for good is no part of the later ones.
        suffer(url, watched, attacks(AT_ONCE)[1])
        yield url, watched


@pytest.mark.parametrize("attack", attacks(AT_ONCE), ids=lambda attack: attack.name)
def test_each_is_answered_and_costs_a_few_times_its_bytes(server: tuple[str, psutil.Process], attack: Attack) -> None:
    outcome = suffer(*server, attack)
    assert sum(outcome.answers.values()) == attack.at_once
    # The fake tokenises a text of any length; everything else is refused.
    accepted = "24" if any(word in attack.name for word in ("text", "word", "one line", "compare")) else "4"
    assert all(answer[0] in accepted for answer in outcome.answers), outcome.answers
    # Bytes as they came and as text, of which Python holds up to four bytes a character, and what is cut out of them.
    # Built without a count, the worst of them took 3 GB.
    assert outcome.rss_rise_mb < attack.at_once * 16 * SIZE / 1e6
