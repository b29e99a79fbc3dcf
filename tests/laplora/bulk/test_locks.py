"""One run at a time on finished blocks: a second one is refused, and what a killed one left behind is taken over."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_files import ROWS, scored
from tiny_runs import FinishedRun, write_rows

from laplora.bulk.folders import Local, Store
from laplora.bulk.locks import LOCK, held
from laplora.bulk.parts import Parts
from laplora.errors import ConfigError, DataError

#: Holds the lock of a folder until it is killed.
HOLDS = """
import sys
from laplora.bulk.parts import Parts
with Parts(sys.argv[1]).held() as check:
    Parts(sys.argv[1]).begin({"a": 1})
    print("held", flush=True)
    sys.stdin.read()
"""
#: No wait of a test: more seconds than any machine takes to renew a lease.
FOR_EVER = 1e6


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``out.jsonl.parts``."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "out.jsonl.parts")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_a_killed_one_is_gone_on_from(
    holder: subprocess.Popen[str], sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    source, target = write_rows(tmp_path / "in.jsonl", ROWS[:20]), tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    kept = {path: path.read_bytes() for path in parts.iterdir()}
    with pytest.raises(ConfigError, match=r"out\.jsonl\.parts: another run works on it now"):
        scored(sentiment_run, source, target)
    assert {path: path.read_bytes() for path in parts.iterdir()} == kept
    holder.kill()
    holder.wait()
    assert (parts / LOCK).exists()
    with pytest.raises(ConfigError, match="its blocks are of another run"):  # no longer the lock
        scored(sentiment_run, source, target)
    (parts / "run.json").unlink()
    assert scored(sentiment_run, source, target).rows == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_output_that_another_run_wrote_meanwhile_stays(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_rows(tmp_path / "in.jsonl", ROWS[:4]), tmp_path / "out.jsonl"
    hold = Parts.held

    def written_before(self: Parts, *arguments: object) -> object:
        target.write_text("theirs")
        return hold(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Parts, "held", written_before)
    with pytest.raises(ConfigError, match="is there already"):
        scored(sentiment_run, source, target)
    assert target.read_text() == "theirs"
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_a_folder_that_cannot_be_locked_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be locked"), held(Local(tmp_path / "file" / "parts"), "parts"):
        pass


@pytest.fixture
def store(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    """A folder of this test's own, whose leases are renewed and looked at without pause, and last for ever."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in {"RENEW_S": 0.01, "LOOK_S": 0.01, "WATCH_S": FOR_EVER}.items():
        monkeypatch.setattr(f"laplora.bulk.locks.{name}", value)
    return Store(f"s3://rows/{request.node.name}")


def test_a_small_object_is_written_under_a_condition(store: Store) -> None:
    first = store.create("a", b"1")
    assert first is not None
    assert store.create("a", b"2") is None
    second = store.replace("a", b"2", first)
    assert second is not None
    assert store.replace("a", b"3", first) is None
    assert store.found("a") == (second, b"2")
    assert store.found("b") is None


def test_a_lease_that_is_renewed_is_not_taken_over(store: Store) -> None:
    said: list[str] = []
    with held(store, "out.parts") as check:
        with (
            pytest.raises(ConfigError, match=r"out\.parts: another run \(.*, process \d+\) works on it now"),
            held(store, "out.parts", said.append),
        ):
            pass
        check()
        assert store.names() == {LOCK}
    assert len(said) == 1
    assert store.names() == set()


def test_a_lease_that_nobody_renews_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.bulk.locks.WATCH_S", 0.05)
    for left in (json.dumps({"run": "1", "host": "theirs", "process": 7}).encode(), b"no JSON", b"[]"):
        store.write(LOCK, left)
        said: list[str] = []
        with held(store, "out.parts", said.append) as check:
            check()
            there = store.found(LOCK)
            assert there is not None
            assert b"theirs" not in there[1]
        assert "taken over in 0.05 seconds" in said[0]
        assert store.names() == set()


def test_who_has_lost_its_lease_learns_of_it(store: Store) -> None:
    with held(store, "out.parts") as check:
        store.write(LOCK, b'{"run": "another"}')
        with pytest.raises(ConfigError, match="another run took it over"):
            deque(iter(check, "never"), maxlen=0)
    assert store.names() == {LOCK}  # which is the other's


def test_a_store_that_knows_no_conditions_is_locked_by_looking(
    store: Store, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    plain = Store(store.url)
    with held(plain, "out.parts") as check:
        check()
        with pytest.raises(ConfigError, match="works on it now"), held(Store(store.url), "out.parts"):
            pass
    assert plain.names() == set()
