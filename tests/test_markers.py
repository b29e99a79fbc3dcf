"""Tests are marked by what their code reaches, and fail where that missed something."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

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
