"""A run says what it left out, and fails for it where nothing may be left out."""

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
WORKERS = pytest.param(("-n", "1"), marks=pytest.mark.process)
OTHER = """
import pytest

pytest.importorskip("no_such_package", reason="no such package")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A suite with one test that needs a GPU, and one that runs."""
    pytester.makeini("[pytest]\nmarkers =\n    gpu: needs a GPU")
    pytester.makepyfile(MODULE)
    return pytester


@pytest.mark.parametrize("workers", [(), WORKERS], ids=["here", "workers"])
def test_what_a_marker_allows_is_left_out_and_named(suite: pytest.Pytester, workers: tuple[str, ...]) -> None:
    result = suite.runpytest_inprocess("-p", "left_out", "--no-skips-but", "gpu", *workers)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*left out here*", "1 test: no CUDA device"])


@pytest.mark.parametrize("workers", [(), WORKERS], ids=["here", "workers"])
def test_any_other_skip_fails_the_run(suite: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suite.makepyfile(test_other=OTHER)
    assert suite.runpytest_inprocess("-p", "left_out", *workers).ret == pytest.ExitCode.OK
    result = suite.runpytest_inprocess("-p", "left_out", "--no-skips-but", "gpu", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["1 module: no such package", "may not be left out: test_other.py: no such package"])
