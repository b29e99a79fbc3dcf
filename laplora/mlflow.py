"""An MLflow face: an artifact as a model of MLflow's ``pyfunc`` flavour.

    import laplora.mlflow

    laplora.mlflow.log_model("artifacts/your-reviews", name="reviews")           # into the active run
    model = mlflow.pyfunc.load_model("runs:/.../reviews")
    model.predict(pandas.DataFrame({"text": ["a gripping film ."]}))

A row of the answer has ``label``, ``decision`` ("accept" or "review"), ``flags``, ``prediction_set`` and ``epistemic``
(nats), and for each label NAME ``map_probs.NAME``, ``probs.NAME`` and ``probs_std.NAME``. A value is missing if it does
not exist: the spread of one set of weights, or a label that is no choice of a question. If several labels of a row may
be right, ``label`` is the most probable one, and ``labels`` are those above 0.5.

The artifact is copied into the model; its base model is not, and is found as ``Predictor.load`` finds it. Needs the
extra ``mlflow``. The model's requirements name the packages that laplora needs, and not laplora: that is installed from
wherever you have it, and a package of that name on an index is not known to be it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from laplora.errors import ConfigError, DataError, InvalidInputError, install

try:
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("mlflow", "numpy", "pandas"):
        raise
    raise ModuleNotFoundError(f"laplora.mlflow needs MLflow: {install('mlflow')}", name=error.name) from None

from laplora.answers.prediction import Prediction
from laplora.artifact.folder import Artifact, read_artifact
from laplora.predictor import Predictor

#: The keys of ``model_config``, with their defaults; ``mlflow.pyfunc.load_model`` can override them.
CONFIG: Mapping[str, Any] = {"device": "auto", "predictive": None, "truncate": False, "batch_size": 16}
#: Packages that laplora needs to answer, and those that a quantized base model needs beside them.
_NEEDED = ("torch", "transformers", "peft", "safetensors", "scipy", "pydantic", "filelock", "pandas", "numpy")
_NEEDED_QUANTIZED = ("bitsandbytes", "gguf")
#: Options of MLflow that say the environment in some way of their own.
_ENVIRONMENTS = frozenset({"conda_env", "pip_requirements", "uv_project_path"})


def save_model(
    artifact: str | Path, path: str | Path, *, config: Mapping[str, Any] | None = None, **options: Any
) -> None:
    """Write an artifact as an MLflow model into a folder that is not there yet.

    Args:
        artifact: its folder; config: of ``CONFIG``, what differs.
        options: of ``mlflow.pyfunc.save_model``, such as ``metadata``; those given go before what is worked out here.
            ``pip_requirements`` takes the place of the packages that are needed, ``extra_pip_requirements`` adds to
            them.

    Raises:
        ArtifactError: no artifact, or a corrupt one; ConfigError: a name that ``CONFIG`` does not have.
    """
    mlflow.pyfunc.save_model(str(path), **_described(artifact, config, options))


def log_model(artifact: str | Path, name: str, *, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Log an artifact to MLflow under a name, and return MLflow's ``ModelInfo``; otherwise as ``save_model``.

    Args:
        options: of ``mlflow.pyfunc.log_model``, such as ``registered_model_name``.
    """
    return mlflow.pyfunc.log_model(name=name, **_described(artifact, config, options))


class ServedModel:
    """The model that ``mlflow.pyfunc.load_model`` wraps: an artifact's predictor, which takes data frames."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._config = {**CONFIG, **config}
        self.predictor = Predictor.load(folder, device=self._config["device"])

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return a row of answers per row of input, with its index.

        Args:
            model_input: a data frame with the template's fields as columns, or what makes one; ``choices`` are lists.
            params: none is known; MLflow passes it.

        Raises:
            DataError: rows that cannot be answered, by number from 0.
        """
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        fields, truncate = self.predictor.artifact.manifest.template.template().fields, self._config["truncate"]
        rows, problems = [], []
        for number, values in enumerate(frame.to_dict("records")):
            try:
                given = {name: _plain(values[name]) for name in values if name in fields}
                rows.append(self.predictor.encode(given, truncate=truncate))
            except InvalidInputError as error:
                problems.append(f"row {number}: {error}")
        if problems:
            more = [f"... and {len(problems) - 5} more rows"] if len(problems) > 5 else []
            raise DataError("\n".join([*problems[:5], *more]))
        answers = self.predictor.predict_all(
            rows,
            self._config["predictive"],
            batch_size=self._config["batch_size"],
            most_tokens=self.predictor.batch_tokens,
        )
        labels = self.predictor.artifact.manifest.labels
        columns = [column.name for column in _answers(self.predictor.artifact).inputs]
        return pd.DataFrame([_record(one, labels) for one in answers], index=frame.index, columns=columns)


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """Return what answers; MLflow calls it."""
    return ServedModel(Path(data_path), model_config or {})


def _described(artifact: str | Path, config: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what MLflow is told of a model, whatever is done with it."""
    if unknown := sorted(set(config or {}) - set(CONFIG)):
        raise ConfigError(f"config has {unknown}: known are {sorted(CONFIG)}")
    read = read_artifact(Path(artifact))
    described: dict[str, Any] = {
        "loader_module": "laplora.mlflow",
        "data_path": str(artifact),
        "signature": ModelSignature(inputs=_inputs(read), outputs=_answers(read)),
        "model_config": {**CONFIG, **(config or {})},
        **options,
    }
    if not _ENVIRONMENTS & options.keys():
        # MLflow takes one of the two: left to itself, it would also look what is imported, and pin laplora.
        extra = described.pop("extra_pip_requirements", None) or []
        more = [f"-r {extra}"] if isinstance(extra, str) else list(extra)
        described["pip_requirements"] = [*_requirements(read), *more]
    return described


def _requirements(artifact: Artifact) -> list[str]:
    """Return the packages that answering needs, each in the version that is installed."""
    quantized = artifact.manifest.quantization != "none"
    pins = []
    for name in (*_NEEDED, *(_NEEDED_QUANTIZED if quantized else ())):
        try:
            # Without the part that only says how this machine's was built, such as +cpu: no index has it.
            pins.append(f"{name}=={metadata.version(name).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return pins


def _inputs(artifact: Artifact) -> Schema:
    texts = Array(DataType.string)
    fields = artifact.manifest.template.template().fields
    return Schema([ColSpec(texts if name == "choices" else "string", name) for name in fields])


def _answers(artifact: Artifact) -> Schema:
    texts = Array(DataType.string)
    columns: list[ColSpec | TensorSpec] = [
        ColSpec("string", "label"),
        ColSpec("string", "decision"),
        ColSpec(texts, "flags"),
    ]
    columns += [ColSpec(texts, "prediction_set"), ColSpec("double", "epistemic", required=False)]
    if artifact.manifest.likelihood == "bernoulli":
        columns.append(ColSpec(texts, "labels"))
    for kind in ("map_probs", "probs", "probs_std"):
        columns += [ColSpec("double", f"{kind}.{label}", required=False) for label in artifact.manifest.labels]
    return Schema(columns)


def _record(answer: Prediction, labels: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "label": answer.label,
        "decision": answer.decision,
        "flags": list(answer.flags),
        "prediction_set": list(answer.prediction_set),
        "epistemic": np.nan if answer.epistemic is None else answer.epistemic,
    }
    if answer.labels_present is not None:
        record["labels"] = list(answer.labels_present)
    for kind in ("map_probs", "probs", "probs_std"):
        values = getattr(answer, kind) or {}
        record |= {f"{kind}.{label}": values.get(label, np.nan) for label in labels}
    return record


def _plain(value: Any) -> Any:
    """Return a cell as the library takes it: MLflow hands over lists as arrays."""
    return [str(one) for one in value] if isinstance(value, np.ndarray | list | tuple) else value
