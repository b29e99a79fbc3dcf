"""Real artifacts behind HTTP: each answers as it does alone; a broken one is refused and changes nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from damaged_artifacts import DAMAGES
from exhaustive import drawn
from mutations import mutate
from safetensors.torch import load_file, save_file
from serving import changed, code, settings, started
from tiny_runs import FinishedRun, reseal

from laplora.models.hashes import weights_hash
from laplora.predictor import Predictor
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = [f"The {noun} was {word}." for noun in ("film", "plot", "cast") for word in ("superb", "dull", "moving")]
#: Float32: sums in another order, as padding and the size of a batch change them.
TOLERANCE = 2e-4


@pytest.fixture
def root(sentiment_run: FinishedRun, mixture_run: FinishedRun, tmp_path: Path) -> Path:
    for run in (sentiment_run, mixture_run):
        shutil.copytree(run.artifact, tmp_path / run.artifact.name)
    return tmp_path


@asynccontextmanager
async def served(
    root: Path, artifact: str = "tiny-sentiment", **values: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """Yield a client of the real library on the artifacts of a folder, and the state behind it."""
    app = create_app(settings(artifact=artifact, artifacts_root=root, device="cpu", **values))
    async with started(app) as client:
        yield client, app.state


async def check(client: httpx.AsyncClient, alone: dict[str, Any], i: int, name: str | None = None) -> str:
    """Ask for a text, of an artifact or of the active one; see that its answer is that of the artifact alone."""
    options = {"predictive": "laplace", "covariance": True}
    named = {} if name is None else {"artifact": name}
    body = {"inputs": [{"text": TEXTS[i]}], "options": options, **named}
    answer = (await client.post("/predict", json=body)).json()
    answered: str = answer["artifact"]["name"]
    digest, probs = alone[answered]
    assert answered == (name or answered)
    assert answer["artifact"]["digest"] == digest
    assert answer["predictions"][0]["probs"] == pytest.approx(probs[i], abs=TOLERANCE)
    return answered


async def change(client: httpx.AsyncClient, *changes: str) -> None:
    for one in changes:
        response = await changed(client, f"tiny-{one}")
        assert response.status_code == 200, response.text


async def test_swapping_to_and_fro_under_load_drops_nothing(
    root: Path, sentiment_predictor: Predictor, mixture_predictor: Predictor
) -> None:
    """Each answer has the numbers of the digest that it names, and the two, of one base, are far apart."""
    alone, seen, done = {}, set(), asyncio.Event()
    for predictor in (sentiment_predictor, mixture_predictor):
        rows = [predictor.encode({"text": text}, truncate=True) for text in TEXTS]
        probs = [p.probs for p in predictor.predict(rows, "laplace")]
        alone[predictor.artifact.name] = predictor.artifact.digest, probs
    (_, first), (_, second) = alone.values()
    assert abs(first[0]["negative"] - second[0]["negative"]) > 10 * TOLERANCE
    async with served(root, also_load="tiny-mixture") as (client, state):
        loaded = [state.artifacts.shelf.find(name) for name in alone]
        listing = (await client.get("/artifacts")).json()["artifacts"]
        assert [a["memory_bytes"] for a in listing] == [one.own_bytes for one in loaded]
        assert len({id(one.base) for one in loaded}) == 1
        loaded.clear()

        async def ask(number: int) -> None:
            while not done.is_set():
                # Every other client names the artifact, the rest take what is active.
                name = [*alone][number // 2 % 2] if number % 2 else None
                seen.add((await check(client, alone, number % len(TEXTS), name), name is None))

        clients = asyncio.gather(*(ask(number) for number in range(8)))
        for _ in range(10):
            for name in ("mixture", "sentiment"):
                await change(client, f"{name}/activate")
                await answers(client)
        while len(seen) < 4 and not clients.done():
            await change(client, f"{('mixture', 'sentiment')[len(seen) % 2]}/activate")
        done.set()
        await clients
        await change(
            client, "sentiment/activate", "mixture/unload", "mixture/load", "mixture/activate", "sentiment/unload"
        )
        assert [await check(client, alone, i) for i in range(len(TEXTS))] == ["tiny-mixture"] * len(TEXTS)


async def test_rows_that_run_alone_are_the_same_to_the_last_bit(root: Path) -> None:
    """With ``batch_tokens=1`` no two rows share a batch: traffic cannot change a digit of an answer."""
    async with served(root, "tiny-mixture", batch_tokens=1) as (client, _):

        async def ask(*texts: str) -> list[dict[str, float]]:
            response = await client.post("/predict", json={"inputs": [{"text": text} for text in texts]})
            return [{**p["probs"], **p["map_probs"]} for p in response.json()["predictions"]]

        quiet = [await ask(text) for text in TEXTS]
        busy = await asyncio.gather(*(ask(text) for text in TEXTS), *(ask(*TEXTS) for _ in range(3)))
    assert busy[: len(TEXTS)] == quiet
    for together in busy[len(TEXTS) :]:
        assert together == [answers[0] for answers in quiet]


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


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
async def test_every_broken_artifact_is_refused_and_the_old_one_answers_the_same(
    root: Path, mixture_run: FinishedRun
) -> None:
    """One damage for each code, and changes at random; the library's tests have the rest."""
    candidate = root / "candidate"
    by_code = {expected: damage for damage, expected in DAMAGES.values()}
    body = {"artifact": "candidate", "inputs": [{"text": "A film."}], "options": {"detail": "full", "target_risk": 0.1}}
    async with served(root) as (client, _):
        before = await answers(client)
        for number in range(drawn(80)):
            restore(candidate, mixture_run)
            mutate(candidate, number)
            loaded = await changed(client, "candidate/load")
            assert loaded.status_code in (200, 404, 409)
            assert "server's log" not in loaded.text  # what no error of the library's said
            assert (await client.get("/artifacts")).status_code == 200
            if loaded.status_code == 200:
                answer = await client.post("/predict", json=body)
                assert answer.status_code in (200, 422)
                json.loads(answer.text, parse_constant=pytest.fail)
                assert (await client.post("/artifacts/candidate/unload")).status_code == 200
            (root / "moved").unlink(missing_ok=True)
        assert await answers(client) == before
        for expected, damage in by_code.items():
            restore(candidate, mixture_run)
            damage(candidate)
            assert code(await changed(client, "candidate/activate")) == (409, expected)
            assert await answers(client) == before
            assert (await client.get("/artifacts")).status_code == 200
        restore(candidate, mixture_run)
        assert (await changed(client, "candidate/activate")).status_code == 200


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
    for name in ("tiny-sentiment", "candidate"):
        shutil.copytree(sentiment_run.artifact, root / name)
    reseal(root / "candidate", name="candidate", base_model=str(base), base_weights_hash=weights_hash(str(base)))
    async with served(root) as (client, _):
        before = await answers(client)
        refused = await changed(client, "candidate/activate")
        assert await answers(client) == before
    assert code(refused) == (409, "artifact_incompatible")
    assert "NaN" in refused.json()["error"]["message"]


async def test_weights_that_become_nan_are_no_answer(root: Path) -> None:
    async with served(root) as (client, state):
        weights = dict(state.artifacts.active._adapted.model.named_parameters())
        with torch.no_grad():
            next(w for name, w in sorted(weights.items()) if name.endswith("lora_B.default.weight"))[0, 0] = torch.nan
        for name in ("laplace", "map"):
            body = {"inputs": [{"text": TEXTS[0]}], "options": {"predictive": name}}
            assert code(await client.post("/predict", json=body)) == (422, "unscorable_input"), name
        labelled = {"inputs": [{"text": TEXTS[0], "label": "positive"}]}
        assert code(await client.post("/evaluate", json=labelled)) == (422, "unscorable_input")
