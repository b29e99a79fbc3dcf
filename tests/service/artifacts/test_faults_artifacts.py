"""Broken artifacts behind HTTP: each is refused by its code, and the one that answers goes on with the same numbers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from damaged_artifacts import DAMAGES, TENSOR_FILES, claims, cuts
from safetensors.torch import load_file, save_file
from serving import cache, code, settings, started
from tiny_runs import FinishedRun, reseal

from laplora.models.hashes import weights_hash
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = ["The film was superb.", "The plot was dull, and I say so after seeing it twice."]


@asynccontextmanager
async def served(root: Path, artifact: str, **values: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """Yield a client of the real library on the artifacts of a folder, and the state behind it."""
    app = create_app(settings(artifact=artifact, artifacts_root=root, device="cpu", cache=cache(), **values))
    async with started(app) as client:
        yield client, app.state


async def answers(client: httpx.AsyncClient) -> dict[str, Any]:
    """Return an answer to one request, but for its times and the ids that each prediction gets anew."""
    body = {"inputs": [{"text": text} for text in TEXTS], "options": {"covariance": True}}
    response = await client.post("/predict", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = json.loads(response.text, parse_constant=pytest.fail)
    predictions = [{k: v for k, v in p.items() if k != "prediction_id"} for p in found["predictions"]]
    return {"artifact": found["artifact"], "predictions": predictions}


def restore(folder: Path, run: FinishedRun) -> None:
    for path in (folder, folder.parent / "outside"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.copytree(run.artifact, folder)


async def test_every_broken_artifact_is_refused_and_the_old_one_answers_the_same(
    sentiment_run: FinishedRun, mixture_run: FinishedRun, tmp_path: Path
) -> None:
    """One damage for each code, and files that are cut or lie behind their hash; the library's tests have the rest."""
    shutil.copytree(sentiment_run.artifact, tmp_path / "tiny-sentiment")
    candidate = tmp_path / "candidate"
    by_code = {expected: damage for damage, expected in DAMAGES.values()}
    assert len(by_code) > 3

    def cut(folder: Path, file: str, how: str) -> None:
        raw = (folder / file).read_bytes()
        (folder / file).write_bytes((dict(cuts(raw)) | dict(claims(raw)))[how])
        reseal(folder)

    damages = [(expected, damage) for expected, damage in by_code.items()]
    for file, how in product(TENSOR_FILES, ("half the header", "a shape of 2^60")):
        damages.append(("artifact_corrupt", partial(cut, file=file, how=how)))
    async with served(tmp_path, "tiny-sentiment") as (client, _):
        before = await answers(client)
        for expected, damage in damages:
            restore(candidate, mixture_run)
            damage(candidate)
            assert code(await client.post("/artifacts/candidate/activate")) == (409, expected)
            assert await answers(client) == before
            assert (await client.get("/artifacts")).status_code == 200
        restore(candidate, mixture_run)
        assert (await client.post("/artifacts/candidate/activate")).status_code == 200


async def test_a_base_with_nan_is_refused_by_name(
    sentiment_run: FinishedRun, tiny_base_folder: Path, tmp_path: Path
) -> None:
    """An artifact that was made on it, by its hash, so that only its answers can tell."""
    base, root = tmp_path / "nan-base", tmp_path / "root"
    shutil.copytree(tiny_base_folder, base)
    (file,) = base.glob("*.safetensors")
    tensors = load_file(file)
    next(tensor for name, tensor in sorted(tensors.items()) if "down_proj" in name).view(-1)[0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    shutil.copytree(sentiment_run.artifact, root / "tiny-sentiment")
    shutil.copytree(sentiment_run.artifact, root / "candidate")
    reseal(root / "candidate", name="candidate", base_model=str(base), base_weights_hash=weights_hash(str(base)))
    async with served(root, "tiny-sentiment") as (client, _):
        before = await answers(client)
        refused = await client.post("/artifacts/candidate/activate")
        assert await answers(client) == before
    assert code(refused) == (409, "artifact_incompatible")
    assert "NaN" in refused.json()["error"]["message"]


@pytest.mark.parametrize("mode", ["laplace", "map", "fast"])
async def test_weights_that_become_nan_are_no_answer(sentiment_run: FinishedRun, tmp_path: Path, mode: str) -> None:
    shutil.copytree(sentiment_run.artifact, tmp_path / "tiny-sentiment")
    async with served(tmp_path, "tiny-sentiment") as (client, state):
        weights = dict(state.artifacts.active._members.model.named_parameters())
        with torch.no_grad():
            next(w for name, w in sorted(weights.items()) if name.endswith("lora_B.default.weight"))[0, 0] = torch.nan
        response = await client.post("/predict", json={"inputs": [{"text": TEXTS[0]}], "options": {"mode": mode}})
    assert code(response) == (422, "unscorable_input")


async def test_swapping_to_and_fro_under_load_drops_nothing(
    sentiment_run: FinishedRun, mixture_run: FinishedRun, tmp_path: Path
) -> None:
    """Two real artifacts on one base: each answer has the numbers of the digest that it names."""
    names = ("tiny-sentiment", "tiny-mixture")
    for run, name in zip((sentiment_run, mixture_run), names, strict=True):
        shutil.copytree(run.artifact, tmp_path / name)
    body: dict[str, Any] = {"inputs": [{"text": TEXTS[0]}], "options": {"predictive": "laplace"}}
    done, seen = asyncio.Event(), set()
    async with served(tmp_path, names[0], also_load=names[1]) as (client, _):
        expected: dict[str, list[float]] = {}
        for name in names:
            found = (await client.post("/predict", json={**body, "artifact": name})).json()
            expected[found["artifact"]["digest"]] = list(found["predictions"][0]["probs"].values())
        first, second = expected.values()
        # Far apart, against 2e-4 for sums in another order, which the size of a batch changes.
        assert abs(first[0] - second[0]) > 2e-3

        async def ask(number: int) -> None:
            while not done.is_set():
                # Every other client names the artifact, the rest take what is active.
                named = {"artifact": names[number // 2 % 2]} if number % 2 else {}
                response = await client.post("/predict", json={**body, **named})
                assert response.status_code == 200, response.text
                answer = response.json()
                name, digest = answer["artifact"]["name"], answer["artifact"]["digest"]
                assert list(answer["predictions"][0]["probs"].values()) == pytest.approx(expected[digest], abs=2e-4)
                assert name == named.get("artifact", name)
                seen.add((name, bool(named)))

        clients = asyncio.gather(*(ask(number) for number in range(8)))
        for turn in range(20):
            response = await client.post(f"/artifacts/{names[(turn + 1) % 2]}/activate")
            assert response.status_code == 200, response.text
            await answers(client)
        while seen != {(name, named) for name in names for named in (True, False)} and not clients.done():
            await client.post(f"/artifacts/{names[len(seen) % 2]}/activate")
        done.set()
        await clients
