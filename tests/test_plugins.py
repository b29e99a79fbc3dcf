"""The tests' own plug-ins: markers by what code reaches, skips that fail a run, and thirds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import exhaustive
import pytest
from markers import markers_of

from laplora.models.offline import ensure_model

pytest_plugins = ["pytester"]


def helper() -> None:
    subprocess.run(["true"], check=True)


class Starter:
    @property
    def started(self) -> list[None]:
        return [helper() for _ in range(1)]


def test_what_the_code_reaches_marks_a_test() -> None:
    assert markers_of(lambda: Starter().started, {}) == {"process"}
    assert markers_of(lambda: ensure_model("a model"), {}) == {"real"}
    assert markers_of(lambda: Path("a file"), {}) == set()


def test_what_is_not_marked_fails(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    process: starts a process")
    pytester.makepyfile(
        f"""
        import subprocess
        import pytest

        def test_a_process_in_secret():
            with pytest.raises(Exception):  # what the tested code catches does not hide it
                subprocess.run(["true"])

        @pytest.mark.process
        def test_a_marked_process():
            subprocess.run(["true"])

        def test_the_base_model_in_secret():
            open({str(tmp_path / "model")!r})
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("markers.Guard.cache", f"{tmp_path}{os.sep}")
        result = pytester.runpytest_inprocess("-p", "markers")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*test_a_process_in_secret starts a process [(]subprocess.Popen)*"])


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


def test_any_skip_but_those_that_are_named_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makepyfile(SKIPPED)
    strict = ("-p", "skips", "--no-skips-but")
    assert pytester.runpytest_inprocess(*strict, "gpu,nginx").ret == pytest.ExitCode.OK
    alone = pytester.runpytest_inprocess(*strict, "gpu")
    assert alone.ret == pytest.ExitCode.TESTS_FAILED
    alone.stdout.fnmatch_lines(["*may not be skipped: *test_with_a_program: openssl, nginx not installed"])
    pytester.makepyfile(test_other="import pytest\n\npytest.importorskip('no_such_package', reason='no such package')")
    assert pytester.runpytest_inprocess("-p", "skips").ret == pytest.ExitCode.OK
    result = pytester.runpytest_inprocess(*strict, "gpu,nginx")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*may not be skipped: test_other.py: no such package"])
    result.stdout.no_fnmatch_line("*may not be skipped: *test_on_a_gpu*")


MODULE = """
import pytest

@pytest.mark.exhaustive
def test_of_everything():
    pass

def test_of_something():
    pass
"""


@pytest.mark.parametrize(
    ("asked", "words", "passed"),
    [("", (), 6), ("1", (), 12), ("", ("-m", "exhaustive"), 6), ("", ("-m", "not gpu"), 6), ("4/3", (), 0)],
)
def test_none_by_default_and_all_where_asked(
    asked: str, words: tuple[str, ...], passed: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six files' tests half are exhaustive."""
    pytester.makeini("[pytest]\nmarkers =\n    exhaustive\n    gpu")
    pytester.makepyfile(**{f"test_{name}": MODULE for name in "abcdef"})
    monkeypatch.setattr(exhaustive, "ASKED", asked)
    outcomes = pytester.runpytest_inprocess("-p", "exhaustive", *words).parseoutcomes()
    assert outcomes.get("passed", 0) == passed


def test_each_is_in_one_third() -> None:
    for test in map("tests/test_{}.py::test".format, range(20)):
        assert sum(exhaustive.runs(test, f"{third}/3") for third in (1, 2, 3)) == 1
