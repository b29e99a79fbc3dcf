"""How often an artifact's promises are kept: accepted risk and coverage of label sets, over draws of calibration rows.

    python -m benchmarks.promises simulate
    python -m benchmarks.promises experts --runs FOLDER

As ``laplora.fitting.calibrate`` does, thresholds and sets are fitted on what each row gets from a fit without it, and
what is served is fitted on all calibration rows. ``experts`` reads the answers that ``benchmarks.experts`` keeps in
--runs, and writes results.json and the page.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.experts.__main__ import RUNS
from benchmarks.experts.cells import DEVELOPING, SEEDS, Cell
from benchmarks.promises.deals import Kept, deal
from benchmarks.promises.models import MODELS, Table, synthetic_table
from benchmarks.promises.page import PAGE, RESULTS, render
from benchmarks.promises.populations import EXPERTS, ROWS, TARGETS, figures, population
from laplora.files import write_whole
from training.report.markdown import markdown_table

LEVEL, SYNTHETIC_ROWS = 0.9, 2000

RISKS = ["predictive", "risk: mean ± its error (5 %, 95 %)", "wrong / accepted", "kept", "accepted"]
SETS = ["predictive", "coverage: mean ± its error (5 %, 95 %)", "at least nominal", "size"]


def risk_cells(kept: Kept, risk: float) -> list[str]:
    """Return a predictive's figures of risk; a deal that accepts nothing keeps its promise."""
    some = kept.risk[~kept.risk.isnan()]
    share = float((kept.below.isnan() | (kept.below <= risk + 1e-9)).double().mean())
    error = math.sqrt(share * (1 - share) / len(kept.below))
    accepted = float(kept.accepted.mean())
    none = float(kept.risk.isnan().double().mean())
    return [
        spread(some) if len(some) > 1 else "-",
        f"{float(kept.wrong.mean()) / accepted:.4f}" if accepted else "-",
        f"{share:.1%} ± {error:.1%}",
        f"{accepted:.1%}{f' (nothing in {none:.1%} of draws)' if none else ''}",
    ]


def set_cells(kept: Kept) -> list[str]:
    """Return a predictive's figures of label sets."""
    enough = (kept.coverage >= LEVEL - 1e-9).double().mean()
    return [spread(kept.coverage), f"{float(enough):.1%}", f"{float(kept.size.mean()):.3f}"]


def spread(values: torch.Tensor) -> str:
    """Return mean, Monte-Carlo standard error of the mean, and two quantiles."""
    low, high = values.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    error = float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.4f} ± {error:.4f} ({low:.3f}, {high:.3f})"


def report(title: str, table: Table, calibration_rows: int, risks: Sequence[float], draws: int) -> None:
    """Print the tables of risks and of sets of one table."""
    errors = float((table.columns["map"].probs[0].argmax(1) != table.labels).double().mean())
    print(
        f"\n**{title}**: {len(table.labels)} rows, {calibration_rows} of them calibration, MAP errs on {errors:.1%}.\n"
    )
    for risk in risks:
        kept = deal(table, calibration_rows=calibration_rows, draws=draws, risk=risk, level=LEVEL)
        for guarantee in ("empirical", "upper_bound"):
            rows = [[name, *risk_cells(kept[guarantee, name], risk)] for name in table.columns]
            print(f"Target {risk:g}, {guarantee}:\n\n{markdown_table(RISKS, rows)}")
        if risk == risks[0]:
            rows = [[name, *set_cells(kept["empirical", name])] for name in table.columns]
            print(f"Label sets, nominal {LEVEL}:\n\n{markdown_table(SETS, rows)}", flush=True)


def of_experts(tasks: Sequence[str], runs: Path, draws: int) -> dict[str, Any]:
    """Return what results.json holds, of every method that the tasks have answers of."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"draws": draws, "figures": [], "transfer": []}
    populations = {}
    for cell in ({"task": task, "method": method} for task in tasks for method in EXPERTS):
        made = [population(Cell(cell["task"], seed, runs), cell["method"]) for seed in SEEDS]
        if some := [one for one in made if one is not None]:
            means = torch.tensor([one.transfer for one in some]).mean(0).tolist()
            shares = zip(("labelled", "test", "coverage"), means, strict=True)
            found["transfer"].append(cell | {name: round(share, 4) for name, share in shares})
            populations[tuple(cell.items())] = some
    for target, rows in product(TARGETS, ROWS):
        for key, some in populations.items():
            place: dict[str, Any] = dict(key) | {"rows": rows, "target": target}
            found["figures"] += [place | {"rule": rule} | of for rule, of in figures(some, rows, target, draws).items()]
    return found


def main() -> None:
    """Simulate on synthetic models, or on the experts' answers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promises", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    dealing = argparse.ArgumentParser(add_help=False)
    dealing.add_argument("--calibration-rows", type=int, default=150)
    dealing.add_argument("--draws", type=int, default=1000)
    simulate = jobs.add_parser("simulate", help="synthetic models", parents=[dealing])
    simulate.add_argument("--models", type=int, nargs="+", default=list(range(len(MODELS))), help="by number, from 0")
    real = jobs.add_parser("experts", help="answers of the developing tasks' experts")
    real.add_argument("--draws", type=int, default=1000)
    real.add_argument("--runs", type=Path, default=RUNS, help="what benchmarks.experts keeps")
    real.add_argument("--task", choices=DEVELOPING, nargs="+", default=DEVELOPING, help="these tasks alone")
    args = parser.parse_args()
    if args.job == "experts":
        results = of_experts(args.task, args.runs, args.draws)
        lines = [
            f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}".replace("},{", "},\n{")
            for k, v in results.items()
        ]
        write_whole(RESULTS, "{" + ",\n".join(lines) + "}\n")
        write_whole(PAGE, render(results))
    else:
        for number in args.models:
            table = synthetic_table(MODELS[number], SYNTHETIC_ROWS, number)
            report(MODELS[number].name, table, args.calibration_rows, [0.05], args.draws)


if __name__ == "__main__":
    main()
