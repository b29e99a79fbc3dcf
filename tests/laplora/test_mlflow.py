"""The MLflow face: an artifact saved, logged, loaded and asked by MLflow itself, with the library's answers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from tiny_runs import FinishedRun

import laplora.mlflow
from laplora.errors import ArtifactError, ConfigError, DataError
from laplora.predictor import Predictor

#: MLflow's own, about types of its own.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*type hint is inferred as AnyType", "ignore:.*An input example was not provided"
)
TEXTS = ["The film was a joy.", "Dull.", "The play went on and on and on and on.", "A grey song."]


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow's own records go into a folder of the tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(f"file://{folder}")
        mlflow.set_experiment("tests")
        yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def model(sentiment_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The artifact as MLflow loads it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    laplora.mlflow.save_model(sentiment_run.artifact, folder, config={"device": "cpu"})
    return mlflow.pyfunc.load_model(str(folder))


def test_it_answers_as_the_library(model: Any, sentiment_predictor: Predictor) -> None:
    frame = pd.DataFrame({"text": TEXTS}, index=["a", "b", "c", "d"])
    found = model.predict(frame)
    predictor = sentiment_predictor
    expected = predictor.predict([predictor.encode({"text": text}, truncate=False) for text in TEXTS])
    assert list(found.index) == ["a", "b", "c", "d"]
    assert list(found["label"]) == [one.label for one in expected]
    assert list(found["decision"]) == [one.decision for one in expected]
    assert list(found["flags"]) == [one.flags for one in expected]
    for kind in ("probs", "map_probs", "probs_std"):
        columns = [f"{kind}.{label}" for label in predictor.artifact.manifest.labels]
        given = [list((getattr(one, kind) or dict.fromkeys("np", np.nan)).values()) for one in expected]
        np.testing.assert_allclose(found[columns].to_numpy(), np.array(given), atol=1e-4)
    assert [spec.name for spec in model.metadata.signature.inputs] == ["text"]
    assert list(found.columns) == [spec.name for spec in model.metadata.signature.outputs]


def test_a_logged_model_answers_with_the_predictive_that_is_asked_for(sentiment_run: FinishedRun) -> None:
    with mlflow.start_run():
        info = laplora.mlflow.log_model(sentiment_run.artifact, "reviews", config={"device": "cpu"})
    model = mlflow.pyfunc.load_model(info.model_uri, model_config={"predictive": "map"})
    found = model.predict(pd.DataFrame({"text": TEXTS}))
    for label in ("negative", "positive"):
        np.testing.assert_allclose(found[f"probs.{label}"], found[f"map_probs.{label}"])
        assert found[f"probs_std.{label}"].isna().all()


def test_what_cannot_be_answered_is_named_by_row(model: Any) -> None:
    with pytest.raises(DataError, match="row 1: "):
        model.predict(pd.DataFrame({"text": ["fine", "long " * 500]}))


def requirements(folder: Path) -> set[str]:
    return set((folder / "requirements.txt").read_text(encoding="utf-8").split())


def test_its_requirements_name_what_is_needed_and_no_laplora_or_what_the_user_says(
    sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    save = laplora.mlflow.save_model
    save(sentiment_run.artifact, tmp_path / "model")
    found = requirements(tmp_path / "model")
    assert {f"{name}=={metadata.version(name)}" for name in ("transformers", "peft", "safetensors")} <= found
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in found
    for file in (tmp_path / "model").glob("*"):
        if file.name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
            assert "laplora" not in file.read_text(encoding="utf-8")
    save(sentiment_run.artifact, tmp_path / "own", pip_requirements=["laplora @ file:///a/laplora.whl"])
    assert "file:///a/laplora.whl" in requirements(tmp_path / "own")
    assert not any(one.startswith("peft") for one in requirements(tmp_path / "own"))
    (tmp_path / "more.txt").write_text("six==1.17.0\n")
    save(sentiment_run.artifact, tmp_path / "more", extra_pip_requirements=str(tmp_path / "more.txt"))
    assert {"six==1.17.0", f"peft=={metadata.version('peft')}"} <= requirements(tmp_path / "more")


@pytest.mark.parametrize(("given", "error"), [({"devise": "cpu"}, ConfigError), (None, ArtifactError)])
def test_what_is_wrong_is_said_before_anything_is_written(
    given: dict[str, Any] | None, error: type[Exception], sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    artifact = sentiment_run.artifact if given else tmp_path / "none"
    with pytest.raises(error):
        laplora.mlflow.save_model(artifact, tmp_path / "model", config=given)
    assert not (tmp_path / "model").exists()
