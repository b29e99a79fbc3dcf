"""The study's tables beside the main ones: prediction sets, ensembles, option orders, and what ranks the mistakes."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from benchmarks.study.results.records import Tables
from benchmarks.study.results.scores import outcome, shown
from benchmarks.study.results.targets import coverage_error
from training.report.markdown import escaped, markdown_table

#: Methods whose prediction sets are shown, the recommended one of each seed after them.
_SETS = ("map", "temperature", "laplace", "")
#: Averages over option orders, with the method of the user's order alone that each is held against.
_ORDERS = {"order_average": "map", "order_average_temperature": "temperature"}
#: Seeds under whose models the rule of the recommendation was tuned, on the test rows of all (docs/lab-notes.md).
RULE_SEEDS = (0, 1)
#: Ensembles over seeds, as the table names them.
_SEEDS = {"seeds": "{} MAP", "seeds_temperature": "{} MAP, one temperature", "seeds_laplace": "{} Laplace"}


def side_tables(tables: Tables) -> dict[str, str]:
    """Return each of these tables by the name of its markers."""
    return {
        "price": price_table(tables),
        "conformal": conformal_table(tables),
        "ensembles": ensembles_table(tables),
        "orders": orders_table(tables),
        "rankings": rankings_table(tables),
    }


def over_seeds(values: pd.Series, seeds: int) -> str:
    """Return "0.376 ± 0.012", mean and standard deviation, with the number of seeds where they are not all.

    A dash where nothing was measured.
    """
    found = values.dropna()
    if found.empty:
        return "-"
    spread = "" if len(found) < 2 else f" ± {found.std():.3f}"
    return f"{found.mean():.3f}{spread}" + (f" ({len(found)})" if len(found) < seeds else "")


def price_table(tables: Tables) -> str:
    """Return the served posterior's NLL against temperature scaling per task, with the accuracy of both.

    The last column is the recommended method's NLL less temperature scaling's, mean over the seeds whose models had no
    part in choosing the recommendation's rule; their test rows, which all seeds share, had.
    """
    pairs = tables["comparisons"]
    compared = pairs[(pairs.method == "laplace") & (pairs.against == "temperature")].set_index("task")
    rows = []
    for task, own in tables["scores"].groupby("task"):
        if task not in compared.index:
            continue
        found, setup = compared.loc[task], tables["tasks"].set_index("task").loc[task]
        served = own[own.recommended.astype(bool)].set_index("seed").nll
        untouched = (served - own[own.method == "temperature"].set_index("seed").nll).drop(
            [*RULE_SEEDS], errors="ignore"
        )
        bounds = (found.difference, found.low, found.high)
        rows.append(
            [
                *(task, _mean(own[own.method == "map"].accuracy), f"{1 / setup.classes:.3f}"),
                *(shown(bounds), outcome(*bounds[1:])),
                f"{untouched.mean():+.3f}" if untouched.count() else "-",
            ]
        )
    title = f"recommended − temperature, without the seeds {', '.join(map(str, RULE_SEEDS))}"
    heading = ["task", "accuracy of MAP", "1 / classes", "Laplace − temperature", "", title]
    return _table(heading, rows, {0, 4}, "No published task has both.")


def conformal_table(tables: Tables) -> str:
    """Return coverage and mean size of both kinds of prediction set, means over seeds, per task and method.

    The last column is what so many calibration rows leave to chance, standard deviation of the coverage.
    """
    titles = dict(zip(tables["methods"].method, map(escaped, tables["methods"].title), strict=True))
    rows = []
    for task in tables["tasks"].itertuples():
        seeds = tables["seeds"][tables["seeds"].task == task.task]
        for method in _SETS:
            chosen = [s.conformal[m] for s in seeds.itertuples() if (m := method or s.recommended) in s.conformal]
            if not chosen:
                continue
            kinds = [pd.DataFrame([sets[kind] for sets in chosen if kind in sets]) for kind in ("lac", "aps")]
            nominal = kinds[0].nominal[0]
            few = f" ({len(chosen)})" if len(chosen) < len(seeds) else ""
            figures = [text for sets in kinds for text in (_mean(sets.coverage), _mean(sets["size"], 2))]
            chance = f"± {coverage_error(nominal, task.calibration_rows):.3f}"
            rows.append([task.task, titles.get(method, "*recommended*") + few, f"{nominal:g}", *figures, chance])
    heading = ["task", "method", "nominal", "LAC coverage", "LAC size", "APS coverage", "APS size", "by chance"]
    return _table(heading, rows, {0, 1}, "No published task has prediction sets.")


def orders_table(tables: Tables) -> str:
    """Return NLL and accuracy of the averages over option orders beside the same method's in the user's order alone.

    Both are means over the seeds that have both; the difference in NLL is the paired one.
    """
    titles = dict(zip(tables["methods"].method, map(escaped, tables["methods"].title), strict=True))
    compared = tables["comparisons"].set_index(["task", "method", "against"])
    rows = []
    for task, own in tables["scores"].groupby("task"):
        for method, reference in _ORDERS.items():
            pair = [own[own.method == m].set_index("seed") for m in (method, reference)]
            both = pair[0].index.intersection(pair[1].index)
            if both.empty:
                continue
            averaged, single = (one.loc[both] for one in pair)
            found = compared.loc[(task, method, reference)]
            bounds = (found.difference, found.low, found.high)
            few = f" ({len(both)})" if len(both) < own.seed.nunique() else ""
            passes = sorted(averaged.option_orders.dropna().astype(int).unique())
            rows.append(
                [
                    *(task, titles[reference] + few, " or ".join(map(str, passes)) or "-"),
                    *(_mean(averaged.nll), _mean(single.nll), shown(bounds), outcome(*bounds[1:])),
                    *(_mean(averaged.accuracy), _mean(single.accuracy)),
                ]
            )
    heading = ["task", "averaged", "passes a row", "NLL", "in one order", "difference", "", "accuracy", "in one order"]
    return _table(heading, rows, {0, 1, 6}, "No published task was asked in other orders of its options.")


def ensembles_table(tables: Tables) -> str:
    """Return NLL, ECE and AUROC of the ensembles over seeds, beside their members and beside one model's Laplace."""
    rows = [
        [
            *(e.task, _SEEDS[e.method].format(e.seeds), f"{e.nll:.3f}", f"{e.member_nll:.3f}"),
            *(shown(e.against_laplace), outcome(*e.against_laplace[1:]), f"{e.ece:.3f}"),
            *("-" if pd.isna(a) else f"{a:.3f}" for a in (e.auroc_error, e.member_auroc, e.auroc_disagreement)),
        ]
        for e in tables["ensembles"].itertuples()
    ]
    heading = ["task", "average of", "NLL", "a member's", "one Laplace: difference", "", "ECE", "AUROC", "a member's"]
    return _table([*heading, "AUROC by disagreement"], rows, {0, 1, 5}, "No published task has more than one seed.")


def rankings_table(tables: Tables) -> str:
    """Return the AUROC of every score to choose from, for the recommended method's mistakes on the test rows.

    Cells are means over seeds; the best as printed is bold where they differ and all seeds have them. *Chosen*: of
    the score that each seed chose on its calibration split, and which that is.
    """
    seeds = tables["seeds"]
    names = list(dict.fromkeys(name for rankings in seeds.rankings for name in rankings))
    rows = []
    for task, own in seeds.groupby("task") if names else ():
        areas = pd.DataFrame([*own.rankings], columns=names, dtype=float)
        whole = areas.mean()[areas.count() == len(own)].map(lambda mean: round(mean, 3))
        best = set(whole[whole == whole.max()].index) if whole.nunique() > 1 else set()
        texts = {name: over_seeds(areas[name], len(own)) for name in names}
        chosen = pd.Series([r.get(s) for r, s in zip(own.rankings, own.review_score, strict=True)], dtype=float)
        which = ", ".join(f"{s.seed}: `{escaped(s.review_score)}`" for s in own.itertuples())
        cells = [f"**{text}**" if name in best else text for name, text in texts.items()]
        rows.append([task, *cells, over_seeds(chosen, len(own)), which])
    heading = ["task", *(f"`{escaped(n)}`" for n in names), "chosen", "chosen by seed"]
    return _table(heading, rows, {0, len(names) + 2}, "No published seed measured the scores that it chose from.")


def _mean(values: pd.Series, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f}" if len(values) else "-"


def _table(heading: list[str], rows: list[list[object]], left: Iterable[int], otherwise: str) -> str:
    return markdown_table(heading, rows, left=set(left)) if rows else f"{otherwise}\n"
