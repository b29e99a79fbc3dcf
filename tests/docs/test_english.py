"""The check of English: every page and docstring passes, and each pattern is found at its line."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
from documents import ROOT

PAGE = f"""# What a heading may say

Is it right? What is asked may begin so?

- It is vouched for by nobody, and its strangeness is
  large. Where a row is long, it is cut.

| rule | meaning |
| --- | --- |
| a | {"so " * 50} |
| b | {"short; " * 50} |

```text
In the mean of strangers
```
`strangeness` as code, <!-- strangers --> and [a link](strangers.md), are no words of a sentence.
"""


@pytest.fixture
def english(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return importlib.import_module("english")


@pytest.mark.process  # git, which lists them
def test_pages_and_docstrings_pass(english: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert english.main() == 0, capsys.readouterr().out
    assert all((ROOT / name).exists() for name in english.EXEMPT)


def test_each_pattern_is_found_at_its_line(english: ModuleType) -> None:
    found = [(line, message.partition(":")[0]) for line, message in english.of_page(PAGE)]
    assert found == [
        (5, "write 'out-of-distribution score, out-of-distribution input' for 'strangeness'"),
        (5, "begin with the subject, or with If or When"),
        (10, "50 words in one sentence, at most 40"),
    ]
    code = '"""Right in the mean, ``in the mean``."""\n\ndef f():\n    """A step size."""\n# Why.\n# Of a\n# row.\n'
    assert [line for line, _ in english.of_code(code)] == [1, 4, 5]
