"""The Open Inference Protocol's inference: tensors in, one for each field of the artifact's template, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import ValidationError

from service.errors import BatchTooLargeError, InvalidRequestError
from service.http.json_parsing import most_members
from service.http.protocols.calls import Call, input_of
from service.http.protocols.tensors import Datatype, Tensor, read_texts
from service.http.schemas.inputs import Input
from service.http.schemas.open_inference import (
    Parameters,
    V2InferRequest,
    V2InferResponse,
    V2RequestInput,
    V2ResponseOutput,
    V2Tensor,
)
from service.http.schemas.predict import PredictionOut, PredictOptions, PredictResponse

#: Parameters of a request that are options of POST /predict.
_OPTIONS = ("predictive", "target_risk", "truncate", "order_average")
#: Of an output that a client has to ask for: classes x classes of each input.
_COVARIANCE = "logit_covariance"


@dataclass(frozen=True)
class _Output:
    """An output: its type, its axes beside the inputs', each of the classes, and one input's entries, or None."""

    datatype: Datatype
    axes: int
    read: Callable[[PredictionOut], Any]


def _part(name: str) -> _Output:
    return _Output("FP64", 0, lambda p: None if p.uncertainty is None else getattr(p.uncertainty, name))


def _field(datatype: Datatype, axes: int, name: str) -> _Output:
    return _Output(datatype, axes, lambda p: getattr(p, name))


def _by_label(name: str) -> _Output:
    def read(p: PredictionOut) -> list[float] | None:
        by_label = getattr(p, name)
        return None if by_label is None else list(by_label.values())

    return _Output("FP64", 1, read)


def _among_labels(name: str) -> _Output:
    def read(p: PredictionOut) -> list[bool] | None:
        labels = getattr(p, name)
        return None if labels is None else [label in labels for label in p.probs]

    return _Output("BOOL", 1, read)


#: Every output by its name, in the order in which they are answered. What each means: ``PredictionOut``.
OUTPUTS: dict[str, _Output] = {
    "label": _field("BYTES", 0, "label"),
    "probs": _by_label("probs"),
    "map_probs": _by_label("map_probs"),
    "probs_std": _by_label("probs_std"),
    "logit_mean": _field("FP64", 1, "logit_mean"),
    "logit_variance": _field("FP64", 1, "logit_variance"),
    _COVARIANCE: _field("FP64", 2, _COVARIANCE),
    "total": _part("total"),
    "aleatoric": _part("aleatoric"),
    "epistemic": _part("epistemic"),
    "label_mass": _field("FP64", 0, "label_mass"),
    "familiarity": _field("FP64", 0, "familiarity"),
    "score": _field("FP64", 0, "score"),
    "labels": _among_labels("labels"),
    "prediction_set": _among_labels("prediction_set"),
    "flags": _Output("BYTES", 0, lambda p: ",".join(p.flags)),
    "decision": _field("BYTES", 0, "decision"),
    "answered_by": _field("BYTES", 0, "answered_by"),
    "tokens": _field("INT64", 0, "tokens"),
    "truncated": _field("BOOL", 0, "truncated"),
    "prediction_id": _field("BYTES", 0, "prediction_id"),
}


def described(fields: Sequence[str], classes: int) -> tuple[list[V2Tensor], list[V2Tensor]]:
    """Return the input and output tensors of an artifact whose template has these fields."""
    choices = "choices" in fields
    inputs = [V2Tensor(name=name, datatype="BYTES", shape=[-1, -1] if name == "choices" else [-1]) for name in fields]
    outputs = [
        V2Tensor(name=name, datatype=out.datatype, shape=[-1] + out.axes * [-1 if choices else classes])
        for name, out in OUTPUTS.items()
    ]
    return inputs, outputs


def call_of(body: V2InferRequest, artifact: str, digest: str | None, max_inputs: int) -> Call:
    """Return what a request asks.

    Raises:
        BatchTooLargeError: more inputs than ``max_inputs``, or entries than a body may have.
        InvalidRequestError: tensors that are no inputs, an output or a parameter that there is not.
    """
    _check_known(body)
    inputs = _inputs(body.inputs, max_inputs)
    values = {name: body.parameters[name] for name in _OPTIONS if name in body.parameters}
    if "timeout" in body.parameters:
        microseconds = body.parameters["timeout"]
        values["timeout_s"] = microseconds / 1e6 if isinstance(microseconds, float) else microseconds
    if any(output.name == _COVARIANCE for output in body.outputs):
        values["covariance"] = True
    try:
        options = PredictOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "timeout" if first["loc"][0] == "timeout_s" else str(first["loc"][0])
        raise InvalidRequestError(f"parameters.{name}: {first['msg']}", field=f"parameters.{name}") from None
    return Call(lambda fields: inputs, len(inputs), artifact, options, digest)


def answer_of(body: V2InferRequest, response: PredictResponse) -> tuple[V2InferResponse, bytes]:
    """Return the answer to a request, and the bytes of the outputs that are to come as bytes.

    Raises:
        InvalidRequestError: an output that was asked for and that this answer does not have.
    """
    everywhere = body.parameters.get("binary_data_output") is True
    binary = {output.name: output.parameters.get("binary_data", everywhere) is True for output in body.outputs}
    outputs: list[V2ResponseOutput] = []
    rest: list[bytes] = []
    for name in binary or OUTPUTS:
        tensor = _tensor(name, response.predictions)
        if tensor is not None:
            out, raw = tensor.as_bytes() if binary.get(name, everywhere) else tensor.as_json()
            outputs.append(out)
            rest.append(raw)
        elif binary:
            raise InvalidRequestError(
                f"this answer has no output {name!r}: leave it out, or ask for another predictive", field="outputs"
            )
    answered = V2InferResponse(
        model_name=response.artifact.name,
        model_version=response.artifact.digest,
        id=body.id,
        parameters={"predictive": response.predictive.name, "target_risk": response.target_risk},
        outputs=outputs,
    )
    return answered, b"".join(rest)


def _tensor(name: str, predictions: Sequence[PredictionOut]) -> Tensor | None:
    out = OUTPUTS[name]
    values = [out.read(prediction) for prediction in predictions]
    if any(value is None for value in values):
        return None
    shape = [len(values)]
    for _ in range(out.axes):
        shape.append(len(values[0]))
        values = list(chain.from_iterable(values))
    return Tensor(name, out.datatype, shape, values)


def _inputs(tensors: Sequence[V2RequestInput], max_inputs: int) -> list[Input]:
    by_name: dict[str, list[Any]] = {}
    most = most_members(max_inputs)
    for tensor in tensors:
        rows = tensor.shape[0]
        if rows > max_inputs:
            raise BatchTooLargeError(
                f"an input tensor has more inputs than max_inputs is, {max_inputs}: send it in parts",
                field="inputs",
                limit=max_inputs,
            )
        if tensor.name in by_name:
            raise InvalidRequestError("an input tensor comes twice", field="inputs")
        # All tensors together have no more entries than a body may have members.
        texts = read_texts(tensor, most=most)
        most -= len(texts)
        width = len(texts) // rows
        if tensor.name == "choices":
            by_name["choices"] = [texts[i * width : (i + 1) * width] for i in range(rows)]
        elif width == 1:
            by_name[tensor.name] = texts
        else:
            raise InvalidRequestError(
                "an input tensor has several texts for each input: its shape is [inputs] or [inputs, 1]", field="inputs"
            )
    if len({len(values) for values in by_name.values()}) > 1:
        raise InvalidRequestError("the input tensors are of different numbers of inputs", field="inputs")
    rows_of_texts = zip(*by_name.values(), strict=True)
    return [input_of(dict(zip(by_name, row, strict=True)), i, "inputs") for i, row in enumerate(rows_of_texts)]


def _check_known(body: V2InferRequest) -> None:
    _check_parameters(body.parameters, (*_OPTIONS, "timeout", "binary_data_output"), "the request")
    for tensor in body.inputs:
        _check_parameters(tensor.parameters, ("binary_data_size",), "an input")
    for output in body.outputs:
        _check_parameters(output.parameters, ("binary_data",), "an output")
        if output.name not in OUTPUTS:
            raise InvalidRequestError(f"there is no output of a name that came: {list(OUTPUTS)}", field="outputs")
    if len({output.name for output in body.outputs}) < len(body.outputs):
        raise InvalidRequestError("an output comes twice", field="outputs")


def _check_parameters(parameters: Parameters, known: tuple[str, ...], whose: str) -> None:
    if not set(parameters) <= set(known):
        raise InvalidRequestError(
            f"a parameter of {whose} is not supported: it may have {list(known)}", field="parameters"
        )
