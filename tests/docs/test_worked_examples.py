"""The worked examples of CONTRIBUTING.md do what they say."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dense_reference as dense
import httpx
import pytest
import torch
from documents import Block, blocks
from fast_path import close, key_of, replay, rows_of
from safetensors.torch import save_file
from serving import serve
from tiny_models import tiny_model, tiny_task

from laplora.jacobians.contrasts import find_blocks
from laplora.posterior import file, structures
from laplora.posterior.structures import fit_posterior
from service.http import error_answers


def module_of(block: Block) -> ModuleType:
    """Return the module that a block is, under the name that its first line says, imported from nowhere."""
    path = block.text.partition("\n")[0].removeprefix("# ")
    module = ModuleType(path.removesuffix(".py").replace("/", "."))
    exec(compile(block.text, str(block), "exec"), vars(module))
    return module


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The modules of CONTRIBUTING.md's Python blocks by name, importable while the test lasts."""
    found = {}
    for block in blocks("python"):
        if block.page == "CONTRIBUTING.md":
            module = module_of(block)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            found[module.__name__] = module
    return found


def test_the_endpoint_and_the_protocol_answer(examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kserve = examples["service.http.schemas.kserve"]
    shape = error_answers.ErrorShape(lambda content, status: {"error": content["error"]["message"]}, kserve.KserveError)
    line = (re.compile(r"/kserve(/|$)"), shape)
    monkeypatch.setattr(error_answers, "_FOREIGN", (line, *error_answers._FOREIGN))

    async def ask(*bodies: dict[str, Any], name: str = "fake") -> list[httpx.Response]:
        async with serve() as served:
            for name_of in ("labels", "kserve"):
                served.app.include_router(examples[f"service.http.routes.{name_of}"].router)
            labels = await served.client.get("/labels")
            assert (labels.status_code, labels.json()) == (200, {"labels": ["negative", "positive"]})
            path = f"/kserve/v1/models/{name}:predict"
            return [await served.client.post(path, json=body) for body in bodies]

    bodies = [{"instances": ["fine 7", "dull 90000"], "more": 1}, {"instances": []}, {"instances": "a"}]
    bodies.append({"instances": ["a"], "signature_name": "x"})
    answered, *refused = asyncio.run(ask(*bodies))
    assert answered.json() == {"predictions": ["positive"] * 2}
    (unknown,) = asyncio.run(ask({"instances": ["a"]}, name="nobody"))
    assert [answer.status_code for answer in (*refused, unknown)] == [422, 422, 422, 404]
    assert all(list(answer.json()) == ["error"] for answer in (*refused, unknown))


def test_the_structure_has_one_curvature_per_matrix(
    examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(structures.FITTERS, "flat", examples["laplora.posterior.flat"].fit_flat)
    monkeypatch.setitem(file.READERS, "flat", file.READERS["ekfac"])
    model, task = tiny_model("llama"), tiny_task(examples=20)
    blocks = find_blocks(model, task.classes)
    batches = rows_of(model, task, batch_size=7)
    settings = structures.StructureSettings("flat", rank=2)
    posterior = fit_posterior(settings, blocks, replay(batches))

    jacobians, precision = batches[0].jacobians, torch.full((len(blocks),), 3.0, dtype=torch.float64)
    ggn = dense.truth(model, task.batch(), task.label_ids).ggn
    expected = torch.zeros(1, dtype=torch.float64)
    for block, part in zip(blocks, jacobians.blocks, strict=True):
        curvature = ggn[key_of(block)].trace() / (block.wide * block.narrow)
        flat = part.jacobian.flatten(2)
        expected = expected + flat @ flat.mT / (3.0 + curvature)
    close(posterior.covariance_of(jacobians, precision), expected)

    tensors, metadata = file.posterior_tensors(posterior, "float32")
    save_file(tensors, tmp_path / "posterior.safetensors", metadata)
    assert file.read_posterior(tmp_path / "posterior.safetensors", blocks).structure == "flat"
