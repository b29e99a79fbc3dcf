"""The Open Inference Protocol, version 2: /v2."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Body, Depends, Request, Response
from starlette.datastructures import Headers

from laplora.errors import ArtifactNotFoundError, LaploraError
from service.errors import InvalidRequestError
from service.http.body import JsonBodyRoute, Parser, check_media_type
from service.http.json_parsing import parse_json
from service.http.openapi import API_VERSION, SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.protocols import open_inference
from service.http.protocols.tensors import attach, split_body
from service.http.routes.artifacts import template_fields
from service.http.routes.dependencies import ArtifactsDep, SettingsDep
from service.http.routes.health import ReadyDep
from service.http.routes.planning import check_digest
from service.http.routes.predicting import PredictingDep
from service.http.schemas.open_inference import (
    V2ErrorResponse,
    V2IndexEntry,
    V2IndexRequest,
    V2InferRequest,
    V2InferResponse,
    V2Live,
    V2Model,
    V2ModelReady,
    V2Ready,
    V2Server,
)

if TYPE_CHECKING:
    from service.scoring.model import Model

#: Says how long the JSON object is, where bytes of tensors come behind it; in requests and in answers.
HEADER_LENGTH = "inference-header-content-length"
_BINARY = "application/octet-stream"


class _TensorBodyRoute(JsonBodyRoute):
    """Takes bodies with tensors as bytes behind the JSON object, without a content type too, and empty ones."""

    #: What is called inputs here are tensors; their entries are counted by their shapes.
    bounded_lists: ClassVar[dict[str, str]] = {}

    def parser(self, headers: Headers) -> Parser:
        # Triton's client sends no content type.
        check_media_type(headers, ("application/json", _BINARY), unsaid=_BINARY)
        header_bytes = _header_bytes(headers)

        def parse(raw: bytes, *, max_members: int) -> Any:
            head, rest = split_body(raw, header_bytes)
            value = parse_json(head, max_members=max_members) if head.strip() else {}
            attach(value, rest)
            return value

        return parse


def _header_bytes(headers: Headers) -> int | None:
    sent = headers.get(HEADER_LENGTH)
    if sent is None:
        return None
    if not (sent.isascii() and sent.isdigit() and len(sent) < 20):
        raise InvalidRequestError("Inference-Header-Content-Length is no number of bytes", field=HEADER_LENGTH)
    return int(sent)


def _responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    return error_responses(*codes, model=V2ErrorResponse)


router = APIRouter(tags=["protocols"], route_class=_TensorBodyRoute)
_MODEL_RESPONSES = _responses("artifact_not_found", *STATE_ERRORS)
_VERSION_RESPONSES = _responses("artifact_not_found", "artifact_changed", *STATE_ERRORS)
_READY_RESPONSES = _responses("artifact_not_found", "artifact_changed", "device_stalled", *STATE_ERRORS)
_IN_BYTES: dict[str, Any] = {
    "description": "The output tensors; those that are to come as bytes are behind the JSON object.",
    "content": {_BINARY: {"schema": {"type": "string", "format": "binary"}}},
}
_EVERYTHING = V2IndexRequest()
_INFER_RESPONSES = {200: _IN_BYTES, **_responses("artifact_changed", *SCORING_ERRORS)}


async def _model(request: Request, name: str, artifacts: ArtifactsDep) -> Model:
    """Return the loaded artifact of the path, of the version that the path may say."""
    artifacts.require_taking()
    model = artifacts.shelf.find(name)
    if model is None:
        raise ArtifactNotFoundError("no loaded artifact of this name: GET /artifacts lists them")
    check_digest(model.artifact, request.path_params.get("version"))
    return model


ModelDep = Annotated[Any, Depends(_model)]


@router.get("/v2")
async def v2_server() -> V2Server:
    """Open Inference Protocol server metadata."""
    return V2Server(name="laplora", version=API_VERSION, extensions=["binary_tensor_data", "parameters"])


@router.get("/v2/health/live")
async def v2_live() -> V2Live:
    """Open Inference Protocol liveness."""
    return V2Live(live=True)


@router.get("/v2/health/ready", responses=_responses("device_stalled", *STATE_ERRORS))
async def v2_ready(active: ReadyDep) -> V2Ready:
    """Open Inference Protocol readiness."""
    return V2Ready(ready=True)


@router.get("/v2/models/{name}", responses=_MODEL_RESPONSES)
async def v2_model(name: str, model: ModelDep) -> V2Model:
    """Open Inference Protocol metadata of a loaded artifact."""
    return _described(model)


@router.get("/v2/models/{name}/versions/{version}", responses=_VERSION_RESPONSES)
async def v2_model_version(name: str, version: str, model: ModelDep) -> V2Model:
    """Open Inference Protocol metadata of a loaded artifact, of the version with this digest."""
    return _described(model)


@router.get("/v2/models/{name}/ready", responses=_READY_RESPONSES)
async def v2_model_ready(name: str, model: ModelDep, active: ReadyDep) -> V2ModelReady:
    """Open Inference Protocol readiness of a loaded artifact."""
    return V2ModelReady(name=model.artifact.name, ready=True)


@router.get("/v2/models/{name}/versions/{version}/ready", responses=_READY_RESPONSES)
async def v2_model_version_ready(name: str, version: str, model: ModelDep, active: ReadyDep) -> V2ModelReady:
    """Open Inference Protocol readiness of a loaded artifact, of the version with this digest."""
    return V2ModelReady(name=model.artifact.name, ready=True)


@router.post(
    "/v2/models/{name}/infer",
    responses=_INFER_RESPONSES,
    response_model=V2InferResponse,
    response_model_exclude_none=True,
)
async def v2_infer(
    name: str, body: V2InferRequest, predicting: PredictingDep, settings: SettingsDep
) -> V2InferResponse | Response:
    """Open Inference Protocol inference: tensors in and out, as JSON or as bytes behind it."""
    call = open_inference.call_of(body, name, None, settings.max_inputs)
    return _answer(*open_inference.answer_of(body, await predicting.answer(call)))


@router.post(
    "/v2/models/{name}/versions/{version}/infer",
    responses=_INFER_RESPONSES,
    response_model=V2InferResponse,
    response_model_exclude_none=True,
)
async def v2_infer_version(
    name: str, version: str, body: V2InferRequest, predicting: PredictingDep, settings: SettingsDep
) -> V2InferResponse | Response:
    """Open Inference Protocol inference by the artifact's version with this digest, and by no other."""
    call = open_inference.call_of(body, name, version, settings.max_inputs)
    return _answer(*open_inference.answer_of(body, await predicting.answer(call)))


@router.post("/v2/repository/index", responses=_responses("invalid_json", "invalid_request", "body_too_large"))
async def v2_repository_index(
    artifacts: ArtifactsDep, body: Annotated[V2IndexRequest, Body()] = _EVERYTHING
) -> list[V2IndexEntry]:
    """The loaded artifacts, the active one first, and the others of the artifacts root, as Triton lists models."""
    known = await artifacts.known()
    entries = []
    for name, item, place in known:
        if isinstance(item, LaploraError):
            entries.append(V2IndexEntry(name=name, state="UNAVAILABLE", reason=str(item)))
        elif place is None:
            entries.append(V2IndexEntry(name=name, version=item.digest, state="UNAVAILABLE", reason="not loaded"))
        else:
            entries.append(V2IndexEntry(name=name, version=item.digest, state="READY", reason=""))
    return [entry for entry in entries if entry.state == "READY" or not body.ready]


def _described(model: Model) -> V2Model:
    artifact = model.artifact
    inputs, outputs = open_inference.described(template_fields(artifact), len(artifact.manifest.labels))
    return V2Model(name=artifact.name, versions=[artifact.digest], platform="laplora", inputs=inputs, outputs=outputs)


def _answer(response: V2InferResponse, rest: bytes) -> V2InferResponse | Response:
    if not any(output.parameters for output in response.outputs):
        return response
    head = json.dumps(response.model_dump(exclude_none=True), separators=(",", ":"), allow_nan=False).encode()
    return Response(head + rest, media_type=_BINARY, headers={HEADER_LENGTH: str(len(head))})
