"""A run fails for what it left out, where nothing may be; in CI what starts processes is tried once more, and told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
INI = "[pytest]\nmarkers =\n    gpu: needs a GPU\n    process: starts a process\nfilterwarnings = error"
SKIPPED = """
import pytest

@pytest.mark.gpu
@pytest.mark.skip("no CUDA device")
def test_on_a_gpu():
    pass

@pytest.mark.skip("openssl, nginx not installed")
def test_with_a_program():
    pass

def test_that_runs():
    pass
"""
FLAKY = """
import pytest

def fails_once(file):
    tried = file.exists()
    file.touch()
    assert tried

@pytest.mark.process
@pytest.mark.parametrize("number", [1, 2, 3])
def test_of_a_process(tmp_path_factory, number):
    fails_once(tmp_path_factory.getbasetemp() / str(number))

def test_of_none(tmp_path_factory):
    fails_once(tmp_path_factory.getbasetemp() / "none")

def test_last():
    pass
"""


def test_any_skip_but_those_that_are_named_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(SKIPPED)
    strict = ("-p", "left_out", "--no-skips-but")
    assert pytester.runpytest_inprocess(*strict, "gpu,nginx").ret == pytest.ExitCode.OK
    alone = pytester.runpytest_inprocess(*strict, "gpu")
    assert alone.ret == pytest.ExitCode.TESTS_FAILED
    alone.stdout.fnmatch_lines(["*may not be left out: *test_with_a_program: openssl, nginx not installed"])
    pytester.makepyfile(test_other="import pytest\n\npytest.importorskip('no_such_package', reason='no such package')")
    assert pytester.runpytest_inprocess("-p", "left_out").ret == pytest.ExitCode.OK
    result = pytester.runpytest_inprocess(*strict, "gpu,nginx")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*may not be left out: test_other.py: no such package"])
    result.stdout.no_fnmatch_line("*may not be left out: *test_on_a_gpu*")


@pytest.mark.process
def test_two_processes_that_fail_are_tried_once_more_as_continuous_integration_runs_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(INI)
    pytester.makepyfile(FLAKY)
    (words,) = re.findall(r"^in_ci='(.*)'$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    plugins = [word for name in ("left_out", "markers", "xdist", "pytest_rerunfailures") for word in ("-p", name)]
    run = pytester.runpytest_inprocess(*plugins, "--no-skips-but", "gpu", "-n", "1", *shlex.split(words))
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert run.parseoutcomes() == {"passed": 3, "failed": 2, "rerun": 2}
    run.stdout.fnmatch_lines(["RERUN *test_of_a_process?1?", "RERUN *test_of_a_process?2?"])
    run.stdout.fnmatch_lines(["FAILED *test_of_a_process?3?*", "FAILED *test_of_none*"])
