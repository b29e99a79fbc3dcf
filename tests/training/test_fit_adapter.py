"""``python -m training fit --adapter``: a posterior for an adapter that was trained elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from remote_servers import hub_server
from test_entry import rows_of
from tiny_runs import FinishedRun, write_rows

from laplora.artifact.folder import read_artifact
from laplora.errors import ConfigError, ModelError
from laplora.execution.terminal import program
from laplora.predictor import Predictor
from training.__main__ import main
from training.workspace.given_adapter import given_adapter

SMALL = ("laplace.rank=6", "laplace.oversampling=4", "laplace.batch_size=8", "predictives.serve=laplace")


@pytest.fixture(scope="module")
def files(sentiment_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run's splits as a user's files."""
    folder = tmp_path_factory.mktemp("rows")
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in rows_of(sentiment_run).items()}


def fit(*arguments: Any) -> int:
    """Run the job on a CPU, in float32."""
    overrides = [f"--set={override}" for override in SMALL]
    options = ["--dtype", "float32", "--device", "cpu", "--template", "sentiment", "--max-tokens", "64"]
    return main(["fit", *overrides, *options, *map(str, arguments)])


def test_the_posterior_is_that_of_the_run_it_was_taken_from(
    sentiment_run: FinishedRun, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows give the same tensors; a prior by validation does not see where it is centred, by evidence it does.

    The artifact brings the report of the test rows along, without their texts.
    """
    folder, out, centred = sentiment_run.config.run_dir, tmp_path / "tiny-sentiment", tmp_path / "centred"
    given = ("--adapter", folder / "adapter", "--data", files["train"], "--calibration", files["calibration"])
    status = fit(*given, "--test", files["test"], "--out", out)
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert f"serve it: {program()} serve {out}" in shown.out
    assert "\nwarning: unfamiliar: " in shown.out
    assert (shown.out + shown.err).count("tell no smaller share") == 1
    mine, theirs = read_artifact(out).manifest, read_artifact(sentiment_run.artifact).manifest
    for name in ("posterior.safetensors", "scores.safetensors", "familiarity.safetensors"):
        assert mine.files[name] == theirs.files[name], name
    assert mine.labels == theirs.labels == ("negative", "positive")
    assert (mine.prior.centre, theirs.prior.centre) == ("zero", "initial_adapter")
    assert mine.prior.precision == theirs.prior.precision
    assert mine.metrics["laplace"]["nll"] == pytest.approx(theirs.metrics["laplace"]["nll"], rel=1e-6)
    served, original = Predictor.load(out, device="cpu"), Predictor.load(sentiment_run.artifact, device="cpu")
    one, other = (p.predict([p.encode({"text": "The plot was dull."}, truncate=False)])[0] for p in (served, original))
    assert one.probs == pytest.approx(other.probs, abs=1e-6)
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"Ship|Do not ship|Too few rows to say", shown.out)
    rows = [json.loads(line) for line in files["test"].read_text().splitlines()]
    assert f"{len(rows)} rows of test.jsonl, given as test rows" in page
    assert f"{mine.metrics['laplace']['nll']:.3f}" in page
    gain = re.search(r"temperature scaling: (\S+) \(95 % (\S+) to (\S+)\)", shown.out)
    assert "{} nats ({} to {})".format(*gain.groups()) in page
    assert re.search(r"; (\S+)% unfamiliar", shown.out)[1] + "\u00a0% unfamiliar" in page
    assert f"sha256:{hashlib.sha256(files['test'].read_bytes()).hexdigest()}" in page
    assert not any(row["text"] in page for row in rows)
    assert any(f"<bdi>{row['id']}</bdi>" in page for row in rows), "the rows to look at, by their ids"
    assert str(files["test"].parent) not in page
    start = ("--initial-adapter", folder / "initial_adapter", "--base", sentiment_run.base)
    assert fit(*given, *start, "--out", centred, "--set", "experts.names=[frozen]") == 0
    assert re.search(r"\n(Fine-tuning gained|Do not fine-tune: \w+ gains) -?\d", capsys.readouterr().out)
    assert read_artifact(centred).manifest.prior.centre == "initial_adapter"
    assert not (centred / "report" / "report.html").exists(), "of no test rows"
    artifacts = (out, sentiment_run.artifact, centred)
    at_zero, of_run, given_centre = (json.loads((a / "report" / "fit.json").read_text())["choices"] for a in artifacts)
    assert at_zero[0] != of_run[0]
    assert given_centre == of_run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config FILE for a run of training, or --adapter FOLDER"),
        (["--adapter", "a"], "--adapter needs --data, --out, --template, --calibration too"),
        (["--config", "c.yaml", "--adapter", "a", "--max-tokens", "9"], "--adapter, --max-tokens of an adapter"),
        (["--data", "d.csv"], "give --config FILE"),
    ],
)
def test_a_run_or_an_adapter(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"r": 8}, (), "does not load on this base"),
        ({"base_model_name_or_path": None}, (), "does not name its base model: name it by --base"),
        (None, (), "has no adapter_config.json"),
        ({}, ("--labels", "good", "bad"), "field 'label' is 'negative', expected one of"),
        ({}, ("--label-field", "verdict"), "has 0 labels: name it by --label-field"),
        ({}, ("--label-field", "text"), "which would hold the answer"),
        ({}, ("--template", "sentimental"), "no template is called 'sentimental'"),
        ({}, ("--set", "laplace.rnak=3"), "laplace.rnak"),
        ({}, ("--out", "given"), "is no artifact"),
        ({}, ("--base", "empty"), "no causal language model|no tokenizer"),
    ],
)
def test_what_cannot_be_fitted(
    changes: dict[str, Any] | None,
    options: tuple[str, ...],
    message: str,
    sentiment_run: FinishedRun,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = Path(shutil.copytree(sentiment_run.config.run_dir / "adapter", tmp_path / "given"))
    settings = adapter / "adapter_config.json"
    if changes is None:
        settings.unlink()
    else:
        settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    (tmp_path / "empty").mkdir()
    more = [str(tmp_path / one) if one in ("empty", "given") else one for one in options]
    assert (
        fit("--adapter", adapter, "--data", files["train"], "--calibration", "split", "--out", tmp_path / "out", *more)
        == 1
    )
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_an_adapter_at_an_address_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that would be recorded has no secret."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    settings = {"base_model_name_or_path": "s3://models/base", "task_type": "SEQ_CLS"}
    with hub_server("owner/name", monkeypatch) as hub:
        hub.commit({"adapter_config.json": json.dumps(settings).encode()})
        with pytest.raises(ModelError, match="adapter_model"):
            given_adapter("hf://owner/name", None, None)
        hub.commit({"adapter_model.safetensors": b"weights"})
        adapter = given_adapter("hf://owner/name", None, None)
    assert (adapter.base, adapter.has_head) == ("s3://models/base", True)
    assert (adapter.folder / "adapter_model.safetensors").read_bytes() == b"weights"
    with pytest.raises(ConfigError) as refused:
        given_adapter("https://host/adapter?key=hidden", None, None)
    assert "hidden" not in str(refused.value)
