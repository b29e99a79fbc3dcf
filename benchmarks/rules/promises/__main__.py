"""How often an artifact's promises are kept: accepted risk and coverage of label sets, over draws of calibration rows.

    python -m benchmarks.rules.promises simulate
    python -m benchmarks.rules.promises project --config FILE [--artifact FOLDER] [--rows N] --out TABLE
    python -m benchmarks.rules.promises deal TABLE... [--risks 0.05 0.1]

Before: prior, temperature, review score, thresholds and sets are fitted on the same rows. Now: as
``training.calibration.calibrate`` does, thresholds and sets on what each row gets from a fit without it. Both on the
same draws; both serve what is fitted on all calibration rows. Rules are chosen on synthetic models alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.rules.promises.deals import METHODS, Kept, deal
from benchmarks.rules.promises.held_out_rows import held_out_table, read_table, write_table
from benchmarks.rules.promises.models import MODELS, synthetic_table
from benchmarks.rules.promises.table import Table

DRAWS, LEVEL, SYNTHETIC_ROWS = 1000, 0.9, 2000

HEAD = (
    "| predictive | rule | risk: mean ± its error (5 %, 95 %) | wrong / accepted | kept | accepted |\n"
    "| --- | --- | --- | ---: | ---: | ---: |"
)
SETS_HEAD = (
    "| predictive | rule | coverage: mean ± its error (5 %, 95 %) | at least nominal | size |\n"
    "| --- | --- | --- | ---: | ---: |"
)


def line(name: str, rule: str, kept: Kept, risk: float) -> str:
    """Return a predictive's row of the table of risks; a deal that accepts nothing keeps its promise."""
    some = kept.risk[~kept.risk.isnan()]
    share = float((kept.below.isnan() | (kept.below <= risk + 1e-9)).double().mean())
    error = math.sqrt(share * (1 - share) / len(kept.below))
    accepted = float(kept.accepted.mean())
    ratio = f"{float(kept.wrong.mean()) / accepted:.4f}" if accepted else "-"
    none = float(kept.risk.isnan().double().mean())
    return (
        f"| {name} | {rule} | {spread(some) if len(some) > 1 else '-'} | {ratio} | {share:.1%} ± {error:.1%} "
        f"| {accepted:.1%}{f' (nothing in {none:.1%} of draws)' if none else ''} |"
    )


def sets_line(name: str, rule: str, kept: Kept) -> str:
    """Return a predictive's row of the table of label sets."""
    enough = (kept.coverage >= LEVEL - 1e-9).double().mean()
    return f"| {name} | {rule} | {spread(kept.coverage)} | {float(enough):.1%} | {float(kept.size.mean()):.3f} |"


def spread(values: torch.Tensor) -> str:
    """Return mean, Monte-Carlo standard error of the mean, and two quantiles."""
    low, high = values.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    error = float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.4f} ± {error:.4f} ({low:.3f}, {high:.3f})"


def report(title: str, table: Table, calibration_rows: int, risks: Sequence[float], draws: int, seed: int) -> None:
    """Print the tables of risks and of sets of one table."""
    errors = float((table.columns["map"].probs[0].argmax(1) != table.labels).double().mean())
    print(
        f"\n**{title}**: {len(table.labels)} rows, {calibration_rows} of them calibration, MAP errs on {errors:.1%}.\n"
    )
    for risk in risks:
        found = {
            method: deal(table, fit, calibration_rows=calibration_rows, draws=draws, risk=risk, level=LEVEL, seed=seed)
            for method, fit in METHODS.items()
        }
        for guarantee in ("empirical", "upper_bound"):
            print(f"Target {risk:g}, {guarantee}:\n\n{HEAD}")
            for name in table.columns:
                for method, kept in found.items():
                    print(line(name, method, kept[guarantee, name], risk))
            print()
        if risk == risks[0]:
            print(f"Label sets, nominal {LEVEL}:\n\n{SETS_HEAD}")
            for name in table.columns:
                for method, kept in found.items():
                    print(sets_line(name, method, kept["empirical", name]))
            print(flush=True)


def main() -> None:
    """Simulate, project a run's held-out rows, or deal them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules.promises", description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    simulate = jobs.add_parser("simulate", help="synthetic models")
    simulate.add_argument("--models", type=int, nargs="+", default=list(range(len(MODELS))), help="by number, from 0")
    simulate.add_argument("--calibration-rows", type=int, default=150)
    simulate.add_argument("--draws", type=int, default=DRAWS)
    project = jobs.add_parser("project", help="write the table of a run's held-out rows")
    project.add_argument("--config", type=Path, required=True)
    project.add_argument("--artifact", type=Path, help="folder with adapter and posterior; the run's own by default")
    project.add_argument("--rows", type=int, help="so many of them; all by default")
    project.add_argument("--out", type=Path, required=True)
    real = jobs.add_parser("deal", help="deal tables that project wrote")
    real.add_argument("tables", type=Path, nargs="+")
    real.add_argument("--risks", type=float, nargs="+", default=[0.05])
    real.add_argument("--calibration-rows", type=int, default=150)
    real.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    if args.job == "project":
        write_table(args.out, held_out_table(args.config, args.artifact, args.rows))
    elif args.job == "deal":
        for path in args.tables:
            report(path.stem, read_table(path), args.calibration_rows, args.risks, args.draws, 0)
    else:
        for number in args.models:
            table = synthetic_table(MODELS[number], SYNTHETIC_ROWS, number)
            report(MODELS[number].name, table, args.calibration_rows, [0.05], args.draws, 0)


if __name__ == "__main__":
    main()
