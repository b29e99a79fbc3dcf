"""A run fails for what it left out, where nothing may be left out; in CI what fails is tried once more, and told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]

MODULE = """
import pytest

@pytest.mark.gpu
@pytest.mark.skip("no CUDA device")
def test_on_a_gpu():
    pass

def test_that_runs():
    pass
"""
OTHER = """
import pytest

pytest.importorskip("no_such_package", reason="no such package")
"""


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.process)], ids=["here", "workers"])
def test_any_skip_but_those_of_a_marker_fails_the_run(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    gpu: needs a GPU")
    pytester.makepyfile(MODULE)
    strict = ("-p", "left_out", "--no-skips-but", "gpu", *workers)
    assert pytester.runpytest_inprocess(*strict).ret == pytest.ExitCode.OK
    pytester.makepyfile(test_other=OTHER)
    assert pytester.runpytest_inprocess("-p", "left_out", *workers).ret == pytest.ExitCode.OK
    result = pytester.runpytest_inprocess(*strict)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*may not be left out: test_other.py"])
    result.stdout.no_fnmatch_line("*may not be left out: *test_on_a_gpu*")


FLAKY = """
import pytest

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    print("the fixture is made")
    return tmp_path_factory.getbasetemp() / "tried"

def test_first(shared):
    pass

def test_that_fails_once(shared):
    tried = shared.exists()
    shared.touch()
    assert tried

def test_last(shared):
    pass

@pytest.mark.gpu
@pytest.mark.skip("no CUDA device")
def test_on_a_gpu():
    pass
"""


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.process)], ids=["here", "workers"])
def test_what_fails_is_tried_once_more_as_continuous_integration_runs_it(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    gpu: needs a GPU\nfilterwarnings = error")
    pytester.makepyfile(FLAKY)
    strict = ("-p", "left_out", "-p", "markers", "--no-skips-but", "gpu", "--dist", "loadfile", *workers)
    once = pytester.runpytest_inprocess(*strict)
    assert once.ret == pytest.ExitCode.TESTS_FAILED
    again = pytester.runpytest_inprocess(*strict, *words_of_ci())
    assert again.ret == pytest.ExitCode.OK
    assert again.parseoutcomes() == {"passed": 3, "skipped": 1, "rerun": 1}
    again.stdout.fnmatch_lines(["RERUN *test_that_fails_once"])
    pytester.makepyfile(test_other="def test_that_always_fails():\n    assert False")
    failed = pytester.runpytest_inprocess(*strict, *words_of_ci())
    assert failed.ret == pytest.ExitCode.TESTS_FAILED
    failed.stdout.fnmatch_lines(["RERUN *test_that_always_fails", "FAILED *test_that_always_fails*"])


def words_of_ci() -> list[str]:
    """Return what continuous integration gives to pytest beside the README's command."""
    (words,) = re.findall(r"^in_ci='(.*)'$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(words)
