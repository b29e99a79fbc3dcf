"""docs/scaling.md, the tables between its markers, from results.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.record import read
from benchmarks.scaling.capacity import CARDS, fleet, predictions_per_s, usd_per_million
from benchmarks.scaling.cells import simulated_cell
from benchmarks.scaling.costs import HostCost
from benchmarks.scaling.replicas import engines_table, spread
from laplora.files import write_whole
from training.report.markdown import fill, markdown_table

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results.json", ROOT / "docs" / "scaling.md"
#: What is planned for on paper: a model of so many parameters, prompts of so many tokens, and devices so busy.
PARAMETERS, TOKENS, BUSY = 7e9, 128, 0.7
#: Cost of a predictive in MAP answers: which records of benchmarks/results.json measured it, by how their names begin.
#: The middle of them is taken, and their range.
PREDICTIVES = {
    "MAP alone": (),
    "laplace, 2 classes": ("predict: bfloat16, 2 classes",),
    "laplace, 4 classes": ("predict: bfloat16, 4 classes",),
}
#: The one that fleets and cells are planned with.
PLANNED = "laplace, 2 classes"
FLEETS = (1, 8, 64, 1000)
PARTS = ("against", "engines")
_NOT_YET = "not measured yet"


def publish(found: Mapping[str, Any]) -> None:
    """Put what was measured in its place among what results.json has, and write the page's tables."""
    content = {**committed(), **found}
    write_whole(RESULTS, json.dumps(content, indent=1) + "\n")
    write_whole(PAGE, render(PAGE.read_text(encoding="utf-8"), content))


def committed() -> dict[str, Any]:
    """Return what results.json holds; nothing where there is none."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.is_file() else {}


def render(page: str, content: Mapping[str, Any]) -> str:
    """Return the page with its tables made anew."""
    measured = content.get("measured", {})
    against, engines, cells = content.get("against"), content.get("engines"), content.get("cells")
    host = None if against is None else HostCost(**against["laplace"]["host"])
    texts = {
        "costs": None if against is None else _costs(against),
        "against": None if against is None else _against(against),
        "paper": _paper(),
        "fleet": None if host is None else _fleet(host),
        "cells": None if cells is None else _cells(cells),
        "engines": None if engines is None else engines_table(engines),
    }
    of = {f"measured_{part}": _measured(measured[part]) if part in measured else _NOT_YET for part in PARTS}
    return fill(page, "scaling", of | {name: "\n" + (text or f"*{_NOT_YET}.*\n") for name, text in texts.items()})


def _measured(m: Mapping[str, Any]) -> str:
    return f"{m['hardware']}, {m['date']}, commit {m['commit']}, {m['artifact']}; {m['versions']}"


def _costs(against: Mapping[str, Any]) -> str:
    rows = [
        (
            mode,
            f"{1000 * one['device']['base_s']:.1f}",
            f"{1000 * one['device']['token_s']:.3f}",
            f"{1000 * one['host']['request_s']:.1f}",
            f"{1000 * one['host']['row_s']:.1f}",
            f"{1000 * one['host']['refusal_s']:.1f}",
        )
        for mode, one in against.items()
    ]
    heading = (
        "mode",
        "device: a batch, ms",
        "and a padded token, ms",
        "host: a request, ms",
        "a further row, ms",
        "a refusal, ms",
    )
    return markdown_table(heading, rows)


def _against(against: Mapping[str, Any]) -> str:
    rows = []
    for mode, one in against.items():
        capacity = one["capacity_per_s"]
        rows.append((mode, "capacity", *(f"{capacity[who]:.1f}" for who in ("server", "simulation")), *[""] * 6))
        for load in dict.fromkeys(seen["load"] for seen in one["server"]):
            sides = [[seen for seen in one[who] if seen["load"] == load] for who in ("server", "simulation")]
            cells = [mode, f"{load:g}"]
            cells += [spread([seen["answered_per_s"] for seen in side], 1) for side in sides]
            for i in (0, 2):
                cells += [spread([seen["latencies_s"][i] for seen in side], 2) for side in sides]
            cells += [spread([100 * seen["refused"] for seen in side], 0) for side in sides]
            rows.append(tuple(cells))
    heading = ["mode", "load"]
    for what in ("answers /s", "p50 s", "p99 s", "refused %"):
        heading += [what, "simulated"]
    return markdown_table(heading, rows, left=(0, 1))


def map_answers() -> dict[str, tuple[float, float, float]]:
    """Return what each predictive costs in MAP answers: the middle of the shapes measured, the least and the most."""
    records = [(record["name"], float(record["value"])) for record in read(ROOT / "benchmarks")]
    costs = {}
    for name, beginnings in PREDICTIVES.items():
        found = [value for of, value in records if of.startswith(beginnings)] if beginnings else [1.0]
        costs[name] = (statistics.median(found), min(found), max(found))
    return costs


def _paper() -> str:
    rows = []
    for card in CARDS:
        for name, costs in map_answers().items():
            middle, most, least = (
                predictions_per_s(card, parameters=PARAMETERS, tokens=TOKENS, map_answers=cost, used=used)
                for cost, used in zip(costs, (card.used[1], card.used[2], card.used[0]), strict=True)
            )
            dollars = [usd_per_million(card.usd_per_hour, per_s, BUSY) for per_s in (middle, most, least)]
            ratio = f"{costs[0]:.2f}" + (f" ({costs[1]:.2f} to {costs[2]:.2f})" if costs[1] < costs[2] else "")
            rows.append(
                (
                    card.name,
                    name,
                    ratio,
                    f"{middle:.0f} ({least:.0f} to {most:.0f})",
                    f"{dollars[0]:.2f} ({dollars[1]:.2f} to {dollars[2]:.2f})",
                )
            )
    heading = ("card", "answer", "in MAP answers", "a second", "USD a million")
    return markdown_table(heading, rows, left=(0, 1))


def _h100() -> float:
    card, cost = CARDS[-1], map_answers()[PLANNED][0]
    return predictions_per_s(card, parameters=PARAMETERS, tokens=TOKENS, map_answers=cost, used=card.used[1])


def _fleet(host: HostCost) -> str:
    per_s, rows = _h100(), []
    for devices in FLEETS:
        load = devices * per_s * BUSY
        cells = [f"{devices:,}", f"{load:,.0f}", f"{usd_per_million(CARDS[-1].usd_per_hour, per_s, BUSY):.2f}"]
        for rows_per_request in (1, 32):
            row_s = host.of(rows_per_request) / rows_per_request
            found = fleet(load, device_per_s=per_s, row_s=row_s, busy=BUSY)
            cells += [f"{found.cells:,}", f"{found.devices_per_cell:,}"]
        rows.append(tuple(cells))
    heading = ["devices", "predictions /s", "USD a million"]
    for of in ("1 row a request", "32 rows"):
        heading += [f"cells, {of}", "devices that one feeds"]
    return markdown_table(heading, rows)


def simulated_cells(request_s: float) -> list[dict[str, Any]]:
    """Return what the simulation says of cells of some sizes, for an event loop that takes so long for a request."""
    sizes = (1, 2, 4, 8, 16)
    return [asdict(simulated_cell(n, device_per_s=_h100(), tokens=TOKENS, request_s=request_s)) for n in sizes]


def _cells(cells: Sequence[Mapping[str, Any]]) -> str:
    heading = ("devices", "arithmetic /s", "simulated /s", "offered /s", "p50 ms", "p99 ms", "limited by")
    rows = [
        (
            cell["devices"],
            f"{cell['arithmetic_per_s']:.0f}",
            f"{cell['saturated_per_s']:.0f}",
            f"{cell['offered_per_s']:.0f}",
            spread([1000 * p for p in cell["p50_s"]], 0),
            spread([1000 * p for p in cell["p99_s"]], 0),
            cell["limit"],
        )
        for cell in cells
    ]
    return markdown_table(heading, rows)
