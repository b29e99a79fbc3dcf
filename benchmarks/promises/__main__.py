"""How often an artifact's promises are kept: accepted risk and coverage of label sets, over draws of calibration rows.

    python -m benchmarks.promises simulate
    python -m benchmarks.promises project --config FILE [--artifact FOLDER] [--rows N] --out TABLE
    python -m benchmarks.promises deal TABLE... [--risks 0.05 0.1]

As ``laplora.fitting.calibrate`` does, thresholds and sets are fitted on what each row gets from a fit without it, and
what is served is fitted on all calibration rows. Rules are chosen on synthetic models alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.promises.deals import Kept, deal
from benchmarks.promises.models import MODELS, Table, held_out_table, read_table, synthetic_table, write_table
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


def main() -> None:
    """Simulate, project a run's held-out rows, or deal them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promises", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    dealing = argparse.ArgumentParser(add_help=False)
    dealing.add_argument("--calibration-rows", type=int, default=150)
    dealing.add_argument("--draws", type=int, default=1000)
    simulate = jobs.add_parser("simulate", help="synthetic models", parents=[dealing])
    simulate.add_argument("--models", type=int, nargs="+", default=list(range(len(MODELS))), help="by number, from 0")
    project = jobs.add_parser("project", help="write the table of a run's held-out rows")
    project.add_argument("--config", type=Path, required=True)
    project.add_argument("--artifact", type=Path, help="folder with adapter and posterior; by default the run's")
    project.add_argument("--rows", type=int, help="so many of them; all by default")
    project.add_argument("--out", type=Path, required=True)
    real = jobs.add_parser("deal", help="deal tables that project wrote", parents=[dealing])
    real.add_argument("tables", type=Path, nargs="+")
    real.add_argument("--risks", type=float, nargs="+", default=[0.05])
    args = parser.parse_args()
    if args.job == "project":
        write_table(args.out, held_out_table(args.config, args.artifact, args.rows))
    elif args.job == "deal":
        for path in args.tables:
            report(path.stem, read_table(path), args.calibration_rows, args.risks, args.draws)
    else:
        for number in args.models:
            table = synthetic_table(MODELS[number], SYNTHETIC_ROWS, number)
            report(MODELS[number].name, table, args.calibration_rows, [0.05], args.draws)


if __name__ == "__main__":
    main()
