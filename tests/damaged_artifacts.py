"""Ways of damaging an artifact, and the code that a server refuses each with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import reseal

from laplora.artifact.manifest import GOLDEN, MANIFEST, POSTERIOR, SCORES

ADAPTER = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG = "adapter/adapter_config.json"
Damage = Callable[[Path], object]


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Return what changes a JSON file of an artifact; of the manifest whether or not the result can be one."""

    def damage(folder: Path) -> None:
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        change(fields)
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")
        if name != MANIFEST:
            reseal(folder)

    return damage


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Return what changes the tensors of a file, and seals the artifact again."""

    def damage(folder: Path) -> None:
        with safe_open(folder / name, framework="pt") as handle:
            metadata = handle.metadata()
        save_file({k: v.contiguous() for k, v in change(load_file(folder / name)).items()}, folder / name, metadata)
        reseal(folder)

    return damage


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor], which: str = "") -> Damage:
    """Return what changes the first tensor of a file whose name ends so, and seals the artifact again."""

    def of_first(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = min(k for k in of if k.endswith(which))
        return of | {key: change(of[key].clone())}

    return tensors(name, of_first)


def first_to(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what sets a tensor's first number."""

    def change(values: torch.Tensor) -> torch.Tensor:
        values.view(-1)[0] = value
        return values

    return change


def in_place_of(name: str, make: Damage) -> Damage:
    """Return what puts something else in a file's place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def _huge(path: Path) -> None:
    """Make a file of 2^40 bytes that takes no room: whoever reads it whole runs out of memory."""
    with path.open("wb") as file:
        file.truncate(2**40)


def _first_golden(**changes: Any) -> Damage:
    return edited(GOLDEN, lambda golden: golden["answers"][0].update(changes))


OTHER_HASH, NAN, INFINITY = "sha256:" + "0" * 64, float("nan"), float("inf")
ONE_GROUP = {"granularity": "group", "precision": {"lora_A": 1.0}}

#: By code and name: what damages a copy of an artifact with every predictive, so that it is refused with that code.
BY_CODE: dict[str, dict[str, Damage]] = {
    "artifact_incompatible": {
        "other base weights": edited(MANIFEST, lambda m: m.update(base_weights_hash=OTHER_HASH)),
        "other tokenizer": edited(MANIFEST, lambda m: m.update(tokenizer_hash=OTHER_HASH)),
        "a label of no single token": edited(MANIFEST, lambda m: m["readout"].update(verbalizers=["/etc", " yes"])),
        "unknown format": edited(MANIFEST, lambda m: m.update(format_version=99)),
    },
    "artifact_corrupt": {
        "precision 0": edited(MANIFEST, lambda m: m["prior"].update(precision={"all": 0.0})),
        "no precision of a group": edited(
            MANIFEST, lambda m: m["prior"].update(granularity="group", precision=ONE_GROUP)
        ),
        "a huge manifest": in_place_of(MANIFEST, _huge),
        "a huge file": in_place_of(GOLDEN, _huge),
        "an adapter with infinity": tensor(ADAPTER, first_to(INFINITY)),
        "scores below 0": tensor(SCORES, first_to(-1.0), ".score"),
        "factors of complex numbers": tensor(POSTERIOR, lambda t: t + 0j, "factor"),
        "half a character": edited(MANIFEST, lambda m: m.update(metrics={"nll": "\ud800"})),
        "no threshold of the label mass": edited(
            MANIFEST, lambda m: m["predictives"]["map"]["thresholds"].update(flags={})
        ),
        "target risks of other labels": edited(
            MANIFEST,
            lambda m: m["predictives"]["map"]["thresholds"]["review"].update(
                by_label={"other": {"threshold": 1.0, "target_risk": 0.1}}
            ),
        ),
        "costs of other labels": edited(
            MANIFEST,
            lambda m: m["predictives"]["map"]["thresholds"]["review"].update(
                costs={"review": 1, "wrong": {"other": 1, "*": 2}}
            ),
        ),
        "a rank that would fill the memory": edited(ADAPTER_CONFIG, lambda c: c.update(r=10**9)),
        "golden inputs that the template does not take": _first_golden(inputs={"wrong": "x"}),
    },
    "model_unsupported": {
        "an adapter that changes the base's weights": edited(
            ADAPTER_CONFIG, lambda c: c.update(init_lora_weights="pissa")
        ),
        "an adapter that cuts the base's weights": edited(ADAPTER_CONFIG, lambda c: c.update(kasa_config={})),
        "an expression that never ends": edited(ADAPTER_CONFIG, lambda c: c.update(alpha_pattern={"(.+)+x": 4})),
        "a base that is nowhere": edited(MANIFEST, lambda m: m.update(base_model="/nowhere/at/all")),
    },
    "golden_mismatch": {
        "other quantization": edited(MANIFEST, lambda m: m.update(quantization="nf4")),
        "an adapter of other weights": tensors(ADAPTER, lambda of: {name: 1.5 * of[name] for name in of}),
        "golden answers of another model": edited(GOLDEN, lambda g: g["answers"][0]["map_probs"].reverse()),
        "golden variances of another posterior": _first_golden(logit_variance=[30.0, 30.0]),
        "golden answers with NaN": _first_golden(map_probs=[NAN] * 2),
    },
}
#: By name: the damage and its code.
DAMAGES = {name: (damage, code) for code, damages in BY_CODE.items() for name, damage in damages.items()}
