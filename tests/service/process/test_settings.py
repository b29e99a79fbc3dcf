"""Environment variables, flags, and what --help says."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest

from laplora.predictor import Predictor
from service.artifacts.predictors import default_library
from service.process import exempt_from_collection, prepare_for_torch
from service.settings import Settings
from service.starting import parse_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LAPLORA_{name.upper()}", raising=False)


def test_flag_wins_over_environment_wins_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_settings(Settings, []).port == 8000
    monkeypatch.setenv("LAPLORA_PORT", "9000")
    assert parse_settings(Settings, []).port == 9000
    assert parse_settings(Settings, ["--port", "9001", "--max-body-bytes", "2048"]).port == 9001


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("auto", None), ("always", True), ("never", False)])
def test_dequantize_reaches_the_library(
    value: str | None, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    flags = ["--dequantize", value] if value else []
    monkeypatch.setattr(Predictor, "load", lambda path, **options: given.update(options))
    default_library().load(Path("a"), parse_settings(Settings, flags), lambda stage: None)
    assert given["dequantize"] is expected


def test_help_names_every_flag_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_settings(Settings, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"LAPLORA_{name.upper()}" in text
        assert field.description
        assert field.description in text


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--port", "70000"], "--port"),
        (["--prot", "80"], "--prot"),
        (["--device", "tpu"], "--device"),
        (["--request-timeout-s", "nan"], "--request-timeout-s"),
        (["--batch-tokens", "0"], "--batch-tokens"),
        (["--max-connections", "0"], "--max-connections"),
        (["--client-share", "0"], "--client-share"),
        (["--trusted-proxies", "*"], "--trusted-proxies"),
        (["--cors-origins", "https://a.example,*"], "is no origin"),
        (["--cors-origins", "https://a.example,null"], "is no origin"),
        (["--cors-origins", "https://*.example"], "is no origin"),
        (["--cors-origins", "https://a.example/"], "is no origin"),
        (["--allowed-hosts", "a.example,http://b.example"], "is no host's name"),
        (["--allowed-hosts", "a.example:80"], "is no host's name"),
        (["--trusted-proxies", "10.0.0.1/8"], "--trusted-proxies"),
        (["--max-inputs", "10", "--max-queue-rows", "5"], "max_queue_rows"),
        (["--max-inputs", "10", "--max-queue-rows", "10"], "client_share"),
        (["--max-inputs", "10", "--max-queue-rows", "40", "--client-share", "0.2"], "client_share"),
        (["--max-body-bytes", "2048", "--max-tokenize-bytes", "4095"], "max_tokenize_bytes"),
        (["--artifact", "http://host/a"], "--artifact"),
        (["--also-load", "mine,s3://bucket/../a"], "--also-load"),
        (["--also-load", "mine,yours,mine"], "--also-load (LAPLORA_ALSO_LOAD): these are named twice: mine"),
        (["--also-load", "https://host/a?key=1,https://host/a?key=1"], "these are named twice: https://host/a\n"),
        (["--client-share", "1.1"], "--client-share"),
        (["--hang-s", "50", "--stall-s", "100"], "service: hang_s (50) is below stall_s (100)"),
    ],
)
def test_bad_values_are_named(arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_settings(Settings, arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert flag in printed
    assert "Value error" not in printed


def test_the_largest_request_fits_into_one_callers_share_and_a_run_stalls_before_it_hangs() -> None:
    assert Settings(stall_s=2).run_limit_s == 10
    assert Settings(stall_s=2, hang_s=3).run_limit_s == 3
    assert parse_settings(Settings, ["--max-inputs", "10", "--max-queue-rows", "20"]).client_share == 0.5
    for share in ("1", "0.5", "0.3", "0.25"):
        settings = parse_settings(Settings, ["--client-share", share, "--max-body-bytes", "5000"])
        assert settings.tokenize_bytes * float(share) >= 2 * settings.max_body_bytes
    assert parse_settings(Settings, ["--max-body-bytes", "2048", "--max-tokenize-bytes", "4096"]).tokenize_bytes == 4096


def test_artifact_is_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    there = str(tmp_path / "elsewhere")
    paths = {"mine": "root/mine", "absent": "root/absent", "root/mine": "root/mine", "elsewhere": "elsewhere"}
    for artifact, path in {**paths, ".": ".", there: there}.items():
        assert Settings(artifact=artifact, artifacts_root=Path("root")).artifact_path == Path(path)


def test_torchs_native_code_is_bounded_unless_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9", "GOMP_SPINCOUNT": "7"}
    bounds = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "GOMP_SPINCOUNT": "2000"}
    for given, expected in (
        ({}, bounds),
        (own, own),
        ({"OMP_WAIT_POLICY": "active"}, bounds | {"GOMP_SPINCOUNT": None}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", dict(given))
            prepare_for_torch()
            assert {name: os.environ.get(name) for name in bounds} == expected, given


@pytest.mark.usefixtures("whole_heap")
def test_what_is_in_memory_is_left_out_of_collections_and_garbage_is_not() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    model, unloaded = Cycle(), Cycle()
    gone = weakref.ref(unloaded)
    try:
        exempt_from_collection()
        assert not any(one is model for one in gc.get_objects())
        del unloaded
        exempt_from_collection()
        assert gone() is None
    finally:
        gc.unfreeze()
