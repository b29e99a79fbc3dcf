"""``run --check``: what it says of a run on the tiny model, that it writes nothing, and that it names what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_runs import sentiment_config

from training.__main__ import main


def checked(file: Path, *overrides: str) -> int:
    return main(["run", "--check", "--config", str(file), *(f"--set={one}" for one in overrides)])


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        (("optimizer.gradient_accumulation=3", "optimizer.evaluate_every=10", "base.quantization=nf4"), 36),
        (("calibration.rows=cross_fit", "calibration.folds=2", "laplace.structure=ekfac"), 72),
    ],
)
def test_it_says_what_a_run_would_do_and_writes_nothing(
    tiny_base_folder: Path, tmp_path: Path, overrides: tuple[str, ...], trained: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder)
    before = sorted(tmp_path.rglob("*"))
    assert checked(file, *overrides) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert f"  train: {trained} (negative " in said
    assert re.search(r"warning: \d+ calibration rows are fewer than 100", said)
    warned = re.search(r"warning: 60 steps of \d+ rows go over \d+ training rows (\d+) times", said)
    assert bool(warned) == (trained == 36)
    assert (
        "a verdict on a target risk of 5 % needs 72 accepted test rows if none of them is wrong, and 312 if 2.5 % are"
        in said
    )
    assert re.search(r"  negative: ' negative', token \d+\n  positive: ' positive', token \d+\n", said)
    assert re.search(r"  \| Review: The .*", said)
    assert re.search(r"prompts: \d+ tokens on average, at most \d+; 0 of 96 are cut at 64", said)
    assert re.search(r"frozen fit: heads frozen of 72 labelled rows, in passes of about \d+ s, and of \d+ s over", said)
    assert re.search(r"training: 60 steps of \d+ rows, \d+\.\d\d s each as measured, learning rate 0.01: about", said)
    assert re.search(r"memory: [\d,]+ MB at most", said)
    assert f"results would go to {tmp_path}/runs/tiny-sentiment" in said
    assert said.endswith("nothing is wrong; nothing was written\n")
    assert checked(file, *overrides, "fine_tune=false") == 0
    shown = capsys.readouterr().out
    assert "frozen fit: heads frozen of 72" in shown
    assert not re.search("60 steps|memory:", shown)


def test_what_is_wrong_is_named(tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(sentiment_config(tmp_path, tiny_base_folder), "adapter.targets=[qkv_proj]") == 1
    assert "'qkv_proj': no module of this base is called that" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
