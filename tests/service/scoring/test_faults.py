"""Faults of the device: which errors are one, what they answer, and that nothing undoes them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import FakePredictor, library, serve, settings, started
from test_life import artifacts_in

import service.scoring.engine
from laplora.errors import ArtifactCorruptError, NonFiniteError
from service.app import create_app
from service.artifacts.host import Library
from service.errors import DeviceFaultError, DeviceMemoryError
from service.scoring.device_faults import DeviceHealth, is_device_fault, is_out_of_memory
from service.scoring.engine import Engine
from service.scoring.plan import Ask
from service.telemetry.batch_report import BatchReport

FAULT = "CUDA error: device-side assert triggered"
FAR = float("inf")


def accelerator_error(text: str, code: int | None = None) -> Exception:
    error = torch.AcceleratorError(text)
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


FAULTS = [
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: something that came with a later driver"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("HIP error: unspecified launch failure"),
    accelerator_error("CUDA error: unspecified launch failure"),
    accelerator_error("CUDA error: an illegal memory access was encountered", 700),
    accelerator_error("an accelerator of another kind failed"),
]
MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    accelerator_error("CUDA error: out of memory", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]
HARMLESS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    accelerator_error("CUDA error: no kernel image is available for execution on the device", 209),
    accelerator_error("CUDA error: too many resources requested for launch"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR: the input matrix may contain NaN"),
    ValueError("out of memory"),
    ValueError("an input that says CUDA error: device-side assert triggered"),
    NonFiniteError("NaN"),
    KeyError("bug"),
]


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_a_lost_context_is_a_fault_and_no_lack_of_memory(error: Exception) -> None:
    assert (is_device_fault(error), is_out_of_memory(error)) == (True, False)


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_a_lack_of_memory_passes(error: Exception) -> None:
    assert (is_device_fault(error), is_out_of_memory(error)) == (False, True)


@pytest.mark.parametrize("error", HARMLESS, ids=str)
def test_what_leaves_the_context_alone_is_no_fault(error: Exception) -> None:
    assert (is_device_fault(error), is_out_of_memory(error)) == (False, False)


def raised_from(cause: Exception, *, hidden: bool) -> Exception:
    """Return the library's own error, as it stands in for one of torch."""
    try:
        try:
            raise cause
        except Exception as error:
            raise ArtifactCorruptError("the adapter does not load") from (None if hidden else error)
    except ArtifactCorruptError as error:
        return error


@pytest.mark.parametrize("hidden", [True, False])
def test_a_fault_behind_another_error_is_found(hidden: bool) -> None:
    assert is_device_fault(raised_from(RuntimeError(FAULT), hidden=hidden))
    assert not is_device_fault(raised_from(RuntimeError("size mismatch"), hidden=hidden))


def test_errors_that_are_each_others_cause() -> None:
    first, second = ValueError(), ValueError()
    first.__context__, second.__context__ = second, first
    assert not is_device_fault(first)


# The engine.


@pytest.fixture
def predictor() -> Iterator[FakePredictor]:
    predictor = FakePredictor()
    yield predictor
    predictor.released.set()


@pytest.fixture
def start(predictor: FakePredictor) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def begin(*on_batch: Callable[[BatchReport], None]) -> Engine:
        engine = Engine(
            token_budget=16,
            max_queue_tokens=64,
            max_queue_rows=12,
            on_batch=on_batch,
            health=DeviceHealth(stall_s=FAR),
        )
        engine.start()
        engines.append(engine)
        return engine

    yield begin
    predictor.released.set()
    for engine in engines:
        engine.stop(join_timeout_s=60)


def submit(engine: Engine, predictor: FakePredictor, *tokens: int) -> Any:
    rows = [predictor.row(token) for token in tokens]
    return engine.submit(predictor, rows, ask=Ask("laplace"), deadline=FAR).future  # type: ignore[arg-type]


def assert_ended(engine: Engine, predictor: FakePredictor) -> None:
    """Everything new is refused, nothing is left over."""
    with pytest.raises(DeviceFaultError):
        submit(engine, predictor, 5)
    with pytest.raises(DeviceFaultError):
        engine.call(lambda: None)
    engine.stop(join_timeout_s=60)
    with pytest.raises(DeviceFaultError):
        submit(engine, predictor, 5)
    assert (engine.queued_rows, engine.queued_tokens, engine.open_tickets) == (0, 0, 0)


def test_a_fault_answers_everyone_and_is_not_retried(start: Callable[..., Engine], predictor: FakePredictor) -> None:
    engine = start()
    predictor.poison[666] = RuntimeError(FAULT)
    predictor.hold()
    first = submit(engine, predictor, 2)
    predictor.entered.wait()
    # One batch of 16 tokens, and rows beyond it.
    doomed = [submit(engine, predictor, 666, 10, 11), submit(engine, predictor, 12)]
    waiting = submit(engine, predictor, *[1] * 7)
    predictor.released.set()
    assert first.result()
    for future in (*doomed, waiting):
        with pytest.raises(DeviceFaultError, match="RuntimeError"):
            future.result()
    assert len([rows for _, rows in predictor.batches if any(666 in row.token_ids for row in rows)]) == 1
    assert_ended(engine, predictor)


def test_a_fault_in_a_call_ends_the_engine(start: Callable[..., Engine], predictor: FakePredictor) -> None:
    engine = start()
    predictor.golden_error = RuntimeError(FAULT)
    predictor.hold()
    first = submit(engine, predictor, 2)
    predictor.entered.wait()
    call, behind = engine.call(predictor.verify_golden), engine.call(lambda: None)
    waiting = submit(engine, predictor, 3)
    predictor.released.set()
    assert first.result()
    for future in (call, behind, waiting):
        with pytest.raises(DeviceFaultError):
            future.result()
    assert_ended(engine, predictor)


def test_memory_and_bugs_do_not_latch(start: Callable[..., Engine], predictor: FakePredictor) -> None:
    engine = start()
    predictor.poison |= {
        600: torch.OutOfMemoryError("CUDA out of memory"),
        601: RuntimeError("shapes"),
        602: KeyError(),
    }
    for token, raised in ((600, DeviceMemoryError), (601, RuntimeError), (602, KeyError)):
        with pytest.raises(raised):
            submit(engine, predictor, token).result()
    assert engine.health.fault is None
    assert submit(engine, predictor, 7).result()


@pytest.mark.parametrize("error", [KeyError("bug"), SystemExit("stop")], ids=lambda error: type(error).__name__)
def test_the_thread_that_dies_takes_nobody_with_it(
    start: Callable[..., Engine], predictor: FakePredictor, error: BaseException
) -> None:
    """An error outside of a prediction: every request would wait for ever."""
    engine = start()
    predictor.hold()
    running = submit(engine, predictor, 2)
    predictor.entered.wait()
    waiting, call = submit(engine, predictor, 3), engine.call(lambda: None)

    def report(*arguments: object) -> None:
        raise error

    engine._report = report  # type: ignore[method-assign]
    predictor.released.set()
    for future in (running, waiting, call):
        with pytest.raises(DeviceFaultError, match=type(error).__name__):
            future.result()
    assert_ended(engine, predictor)


def test_metrics_and_traces_that_fail_do_not_fail_the_device(
    start: Callable[..., Engine], predictor: FakePredictor, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[BatchReport] = []

    def broken_watcher(report: BatchReport) -> None:
        raise ValueError("SECRET")

    engine = start(broken_watcher, seen.append)
    assert [submit(engine, predictor, token).result()[0].predictive for token in (5, 6)] == ["laplace"] * 2
    assert engine.health.fault is None
    assert len(seen) == 2, "what comes after it is still told"
    (logged,) = (r for r in caplog.records if getattr(r, "event", "") == "watcher_failed")
    assert "broken_watcher" in logged.watcher  # type: ignore[attr-defined]
    assert (logged.error, "SECRET" in caplog.text) == ("ValueError", False)  # type: ignore[attr-defined]


def test_a_fault_ends_the_engine_even_where_nobody_can_be_told(predictor: FakePredictor) -> None:
    def untold() -> None:
        raise ValueError("SECRET")

    engine = Engine(
        token_budget=16, max_queue_tokens=64, max_queue_rows=12, health=DeviceHealth(stall_s=FAR, on_fault=untold)
    )
    engine.start()
    predictor.poison[666] = RuntimeError(FAULT)
    with pytest.raises(DeviceFaultError):
        submit(engine, predictor, 666).result()
    assert_ended(engine, predictor)


def test_a_run_that_does_not_end_is_a_fault(start: Callable[..., Engine], predictor: FakePredictor) -> None:
    engine = start()
    engine.health = DeviceHealth(stall_s=0.001, hang_s=0.01)
    engine.end_if_hung()
    predictor.hold()
    hanging, waiting = submit(engine, predictor, 2), submit(engine, predictor, 3)
    predictor.entered.wait()
    while not engine.health.hung:
        time.sleep(0.001)
    engine.end_if_hung()
    for future in (hanging, waiting):
        with pytest.raises(DeviceFaultError, match="DeviceHungError"):
            future.result()
    predictor.released.set()
    assert_ended(engine, predictor)


def test_releasing_memory_that_does_not_end_is_a_fault(
    start: Callable[..., Engine], predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the device: after running out of memory on a sick one, for ever."""
    engine = start()
    engine.health = DeviceHealth(stall_s=0.001, hang_s=0.01)
    releasing, let_go = threading.Event(), threading.Event()

    def release() -> None:
        releasing.set()
        let_go.wait()

    monkeypatch.setattr(service.scoring.engine, "_release_device_memory", release)
    predictor.most_rows = 1
    hanging = submit(engine, predictor, 2, 3)
    releasing.wait()
    began = engine.health._run_began
    while began is not None and not engine.health.hung:
        time.sleep(0.001)
    engine.end_if_hung()
    let_go.set()
    with pytest.raises(DeviceFaultError, match="DeviceHungError"):
        hanging.result()
    assert_ended(engine, predictor)


def test_a_fault_while_memory_is_released_is_latched(
    start: Callable[..., Engine], predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()

    def release() -> None:
        raise RuntimeError(FAULT)

    monkeypatch.setattr(service.scoring.engine, "_release_device_memory", release)
    predictor.most_rows = 1
    with pytest.raises(DeviceFaultError, match="RuntimeError"):
        submit(engine, predictor, 2, 3).result()
    assert_ended(engine, predictor)


def test_a_call_that_ends_the_thread_is_answered_too(start: Callable[..., Engine], predictor: FakePredictor) -> None:
    engine = start()

    def leave() -> None:
        raise SystemExit

    with pytest.raises(DeviceFaultError, match="SystemExit"):
        engine.call(leave).result()
    assert_ended(engine, predictor)


def test_the_first_fault_is_the_one_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    health = DeviceHealth(stall_s=FAR, on_fault=lambda: told.append("x"))
    assert "RuntimeError" in str(health.latch(RuntimeError(FAULT)))
    assert "RuntimeError" in str(health.latch(KeyError()))
    assert (health.fault, told) == ("RuntimeError", ["x"])
    assert [r.levelname for r in caplog.records] == ["CRITICAL"]


# The application.


@pytest.mark.anyio
async def test_a_slow_replay_of_many_answers_is_no_hung_device(tmp_path: Path) -> None:
    """Each answer is a run of its own, and a request that waits goes before the next."""
    first, second = artifacts_in(tmp_path, "first", "second")
    second.golden_answers = 4
    begun: list[float | None] = []
    answered: list[int] = []

    def golden_answer() -> list[Any]:
        engine = served.state.engine
        begun.append(engine.health._run_began)
        answered.append(len(first.batches))
        requests.append(asyncio.run_coroutine_threadsafe(served.predict("7"), loop))
        while not engine.queued_rows:
            time.sleep(0.001)
        return []

    requests: list[Any] = []
    loop = asyncio.get_running_loop()
    second.golden_answer = golden_answer  # type: ignore[method-assign]
    async with serve(first, second, artifact="first", artifacts_root=tmp_path) as served:
        loaded = await served.client.post("/artifacts/second/load")
        responses = [await asyncio.wrap_future(request) for request in requests]
    assert loaded.status_code == 200
    assert len({*begun, None}) == 5, "the time of a run begins anew with each answer"
    assert answered == [0, 1, 2, 3]
    assert [response.status_code for response in responses] == [200] * 4


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.anyio
async def test_every_endpoint_says_that_the_device_failed(caplog: pytest.LogCaptureFixture) -> None:
    predictor = FakePredictor()
    predictor.poison[666] = RuntimeError(f"{FAULT} SECRET")
    async with serve(predictor) as served:
        assert "laplora_ready 1.0" in (await served.client.get("/metrics")).text
        predictor.hold()
        running = asyncio.create_task(served.predict("666"))
        await asyncio.to_thread(predictor.entered.wait)
        waiting = asyncio.create_task(served.predict("a", options={"mode": "map"}))
        await served.until(lambda: served.state.engine.queued_rows == 1)
        predictor.released.set()
        answers = [
            await running,
            await waiting,
            await served.predict("b"),
            await served.client.post("/evaluate", json={"inputs": [{"text": "a", "label": "positive"}]}),
            await served.client.post("/artifacts/fake/activate"),
            await served.client.get("/health/ready"),
            await served.client.get("/v2/health/ready"),
            await served.client.get("/v2/models/fake"),
        ]
        for response in answers:
            assert code(response) == (503, "device_fault")
            assert int(response.headers["retry-after"]) >= 1
            assert "SECRET" not in response.text
        assert (await served.client.get("/health/live")).json() == {"status": "live"}
        assert (await served.client.get("/v2/health/live")).json() == {"live": True}
        assert "laplora_ready 0.0" in (await served.client.get("/metrics")).text
        served.state.lifecycle.drain()
        assert code(await served.predict("b")) == (503, "device_fault")
    (event,) = [r for r in caplog.records if getattr(r, "event", "") == "device_fault"]
    assert vars(event)["error"] == "RuntimeError"
    assert vars(event)["frames"]
    assert not any("SECRET" in str(vars(record)) for record in caplog.records)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["load", "hidden in load", "golden", "first answer"])
async def test_a_fault_while_another_artifact_loads(tmp_path: Path, where: str) -> None:
    """The context is the process's: the artifact that answers has lost it too."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    first = FakePredictor("first", path=tmp_path / "first")
    second = FakePredictor("second", path=tmp_path / "second")
    known = library(first, second)

    def load(path: Path, *others: Any) -> Any:
        if path.name == "second" and "load" in where:
            raise raised_from(RuntimeError(FAULT), hidden=True) if "hidden" in where else RuntimeError(FAULT)
        return known.load(path, *others)

    if where == "golden":
        second.golden_error = RuntimeError(FAULT)
    elif where == "first answer":
        second.poison[1] = RuntimeError(FAULT)
    app = create_app(settings(artifact="first", artifacts_root=tmp_path), library=Library(load, known.read))
    async with started(app) as client:
        refused = await client.post("/artifacts/second/activate")
        ready = await client.get("/health/ready")
    assert code(refused) == code(ready) == (503, "device_fault")


@pytest.mark.anyio
async def test_a_run_that_is_overdue_is_not_ready_until_it_ends() -> None:
    async with serve(stall_s=0.05) as served:
        served.predictor.hold()
        running = asyncio.create_task(served.predict("a"))
        await asyncio.to_thread(served.predictor.entered.wait)
        for path in ("/health/ready", "/v2/health/ready"):
            while (response := await served.client.get(path)).status_code == 200:
                await asyncio.sleep(0.005)
            assert code(response) == (503, "device_stalled")
            assert int(response.headers["retry-after"]) >= 1
        assert (await served.client.get("/health/live")).status_code == 200
        waiting = asyncio.create_task(served.predict("b"))
        await served.until(lambda: served.state.engine.queued_rows == 1)
        served.predictor.released.set()
        assert [(await task).status_code for task in (running, waiting)] == [200, 200]
        while (await served.client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.005)


@pytest.mark.anyio
async def test_a_call_that_is_overdue_is_not_ready_either() -> None:
    may_end = threading.Event()
    async with serve(stall_s=0.05) as served:
        call = served.state.engine.call(may_end.wait)
        while (response := await served.client.get("/health/ready")).status_code == 200:
            await asyncio.sleep(0.005)
        may_end.set()
        assert code(response) == (503, "device_stalled")
        assert call.result()
