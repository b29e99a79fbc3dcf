"""A run fails for what it left out, where nothing may be left out."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

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
