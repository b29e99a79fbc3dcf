"""Bodies of the Open Inference Protocol, version 2, and of Triton's binary tensors and repository index."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from service.http.schemas.base import Answer, WholeNumber
from service.http.schemas.foreign import Foreign

#: Most tensors of a request, and most axes of one.
MAX_TENSORS, MAX_AXES = 64, 4
#: Key and value of what qualifies a request, an input or an output.
Parameters = Annotated[
    dict[str, bool | float | str],
    Field(examples=[{}]),
]


class V2Live(Answer):
    """Open Inference Protocol liveness."""

    live: bool = Field(description="Always true.", examples=[True])


class V2Ready(Answer):
    """Open Inference Protocol readiness."""

    ready: bool = Field(description="Always true: anything else is a 503.", examples=[True])


class V2Server(Answer):
    """Open Inference Protocol server metadata."""

    name: Literal["laplora"] = Field(description="Always laplora.", examples=["laplora"])
    version: str = Field(description="Version of this server's HTTP contract.", examples=["1.0"])
    extensions: list[str] = Field(examples=[["binary_tensor_data", "parameters"]])
    """What it can beside the protocol."""


class V2ModelReady(Answer):
    """Open Inference Protocol readiness of a model."""

    name: str = Field(description="The artifact's name.", examples=["sst2-smollm2"])
    ready: bool = Field(description="Always true: anything else is an error.", examples=[True])


class V2Tensor(Answer):
    """Open Inference Protocol tensor description; -1 is any size."""

    name: str = Field(description="Its name.", examples=["probs"])
    datatype: str = Field(description="Its type, in the protocol's words.", examples=["FP64"])
    shape: list[int] = Field(description="Number of entries along each axis; -1 is any.", examples=[[-1, 2]])


class V2Model(Answer):
    """Open Inference Protocol model metadata."""

    name: str = Field(description="The artifact's name.", examples=["sst2-smollm2"])
    versions: list[str] = Field(description="The artifact's digest.", examples=[["sha256:2c26b46b68ffc68f"]])
    platform: Literal["laplora"] = Field(description="Always laplora.", examples=["laplora"])
    inputs: list[V2Tensor] = Field(description="The template's fields.")
    outputs: list[V2Tensor] = Field(description="What POST .../infer answers with, where the artifact has it.")


class V2RequestInput(Foreign):
    """An input tensor: one field of the artifact's template, for every input of the request."""

    name: str = Field(max_length=256, description="The field's name.", examples=["text"])
    shape: list[WholeNumber] = Field(min_length=1, max_length=MAX_AXES, fail_fast=True, examples=[[1]])
    """Number of entries along each axis: [inputs] or [inputs, 1]; of choices [inputs, choices]."""
    datatype: Literal["BYTES"] = Field(description="Always BYTES: text in UTF-8.", examples=["BYTES"])
    parameters: Parameters = Field(default_factory=dict)
    """binary_data_size: bytes of the tensor behind the JSON object, in place of data."""
    data: Annotated[
        Any,
        WithJsonSchema(
            {
                "type": "array",
                "items": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            }
        ),
    ] = Field(None, examples=[["a gripping film ."]])
    """The texts, flat or nested as shape says."""


class V2RequestedOutput(Foreign):
    """An output tensor that is wanted."""

    name: str = Field(max_length=256, description="Its name, one of the metadata's outputs.", examples=["probs"])
    parameters: Parameters = Field(default_factory=dict)
    """binary_data: whether it comes as bytes behind the JSON object."""


class V2InferRequest(Foreign):
    """Open Inference Protocol inference request. Fields that are not listed here are ignored."""

    id: str | None = Field(None, max_length=256, description="Comes back in the answer.", examples=["42"])
    parameters: Parameters = Field(default_factory=dict)
    """predictive, target_risk, truncate and order_average: as the options of POST /predict; timeout: microseconds
    the request may take; binary_data_output: whether outputs come as bytes unless they say otherwise.
    """
    inputs: list[V2RequestInput] = Field(min_length=1, max_length=MAX_TENSORS, fail_fast=True)
    """One tensor per field of the artifact's template."""
    outputs: list[V2RequestedOutput] = Field(default_factory=list, max_length=MAX_TENSORS, fail_fast=True)
    """The outputs that are wanted; none: all but logit_covariance."""


class V2ResponseOutput(Answer):
    """An output tensor."""

    name: str = Field(description="Its name.", examples=["probs"])
    shape: list[int] = Field(description="Number of entries along each axis.", examples=[[1, 2]])
    datatype: str = Field(description="Its type, in the protocol's words.", examples=["FP64"])
    parameters: dict[str, int] | None = Field(None, examples=[None])
    """binary_data_size: bytes of the tensor behind the JSON object, in place of data."""
    data: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    {
                        "type": "array",
                        "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string"}]},
                    },
                    {"type": "null"},
                ]
            }
        ),
    ] = Field(None, examples=[[0.18, 0.82]])
    """Its entries, row by row: probabilities, nats and what else docs/protocols.md says of each output."""


class V2InferResponse(Answer):
    """Open Inference Protocol inference response."""

    model_name: str = Field(description="Name of the artifact that answered.", examples=["sst2-smollm2"])
    model_version: str = Field(description="The artifact's digest.", examples=["sha256:2c26b46b68ffc68f"])
    id: str | None = Field(None, description="As sent.", examples=["42"])
    parameters: dict[str, float | str] = Field(examples=[{"predictive": "laplace", "target_risk": 0.05}])
    """predictive: which one was asked for; target_risk: the error rate, 0 to 1, that decisions were made for."""
    outputs: list[V2ResponseOutput] = Field(description="The output tensors.")


class V2IndexRequest(Foreign):
    """Triton's request for the models of the repository; no body is the same as an empty one."""

    ready: bool = Field(False, description="Whether to list loaded artifacts alone.", examples=[False])


class V2IndexEntry(Answer):
    """An artifact, as Triton lists models."""

    name: str = Field(description="Its name.", examples=["sst2-smollm2"])
    version: str | None = Field(None, description="Its digest, where it can be read.", examples=["sha256:2c26b46b"])
    state: Literal["READY", "UNAVAILABLE"] = Field(description="Whether requests can name it.", examples=["READY"])
    reason: str = Field(description="Why it is not ready; empty where it is.", examples=[""])


class V2ErrorResponse(Answer):
    """The body of an error of the Open Inference Protocol."""

    error: str = Field(description="What was expected, what came, what to do.", examples=["the queue is full"])
