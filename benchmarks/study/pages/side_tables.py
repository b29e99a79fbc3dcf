"""The study's tables beside the main ones: prediction sets, ensembles, option orders, and what ranks the mistakes."""

from __future__ import annotations

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


def over_seeds(values: pd.Series, seeds: int) -> str:
    """Return "0.376 ± 0.012", mean and deviation, with the number of seeds where they are not all; "-" for none."""
    known = values.dropna()
    if known.empty:
        return "-"
    spread = "" if len(known) < 2 else f" ± {known.std():.3f}"
    return f"{known.mean():.3f}{spread}" + (f" ({len(known)})" if len(known) < seeds else "")


def price_table(tables: Tables) -> str:
    """Return the served posterior's NLL against temperature scaling per task, with the accuracy of both.

    The last column is the recommended method's NLL less temperature scaling's, mean over the seeds whose models had no
    part in choosing the recommendation's rule; their test rows, which all seeds share, had.
    """
    pairs, setup = tables["comparisons"], tables["tasks"].set_index("task")
    compared = pairs[(pairs.method == "laplace") & (pairs.against == "temperature")].set_index("task")
    rows = []
    for task, scores in tables["scores"].groupby("task"):
        if task not in compared.index:
            continue
        served = scores[scores.recommended.astype(bool)].set_index("seed").nll
        differences = served - scores[scores.method == "temperature"].set_index("seed").nll
        untouched = differences.drop([*RULE_SEEDS], errors="ignore")
        rows.append(
            [
                *(task, _mean(scores[scores.method == "map"].accuracy), f"{1 / setup.classes[task]:.3f}"),
                *_difference(compared.loc[task]),
                f"{untouched.mean():+.3f}" if untouched.count() else "-",
            ]
        )
    title = f"recommended − temperature, without the seeds {', '.join(map(str, RULE_SEEDS))}"
    heading = ["task", "accuracy of MAP", "1 / classes", "Laplace − temperature", "", title]
    return markdown_table(heading, rows, left={0, 4})


def conformal_table(tables: Tables) -> str:
    """Return coverage and mean size of both kinds of prediction set, means over seeds, per task and method.

    The last column is what so many calibration rows leave to chance, standard deviation of the coverage.
    """
    titles = escaped_titles(tables)
    rows = []
    for task in tables["tasks"].itertuples():
        seeds = tables["seeds"][tables["seeds"].task == task.task]
        for method in _SETS:
            chosen = [s.conformal[method or s.recommended] for s in seeds.itertuples()]
            kinds = [pd.DataFrame([sets[kind] for sets in chosen]) for kind in ("lac", "aps")]
            nominal = kinds[0].nominal[0]
            figures = [text for sets in kinds for text in (_mean(sets.coverage), _mean(sets["size"], 2))]
            chance = f"± {coverage_error(nominal, task.calibration_rows):.3f}"
            rows.append([task.task, titles.get(method, "*recommended*"), f"{nominal:g}", *figures, chance])
    heading = ["task", "method", "nominal", "LAC coverage", "LAC size", "APS coverage", "APS size", "by chance"]
    return markdown_table(heading, rows, left={0, 1})


def orders_table(tables: Tables) -> str:
    """Return NLL and accuracy of the averages over option orders beside MAP's or its temperature's, seeds with both."""
    titles = escaped_titles(tables)
    compared = tables["comparisons"].set_index(["task", "method", "against"])
    rows = []
    for task, scores in tables["scores"].groupby("task"):
        for method, reference in _ORDERS.items():
            pair = [scores[scores.method == m].set_index("seed") for m in (method, reference)]
            both = pair[0].index.intersection(pair[1].index)
            if both.empty:
                continue
            averaged, single = (one.loc[both] for one in pair)
            few = f" ({len(both)})" if len(both) < scores.seed.nunique() else ""
            passes = sorted(averaged.option_orders.dropna().astype(int).unique())
            rows.append(
                [
                    *(task, titles[reference] + few, " or ".join(map(str, passes)) or "-"),
                    *(_mean(averaged.nll), _mean(single.nll), *_difference(compared.loc[(task, method, reference)])),
                    *(_mean(averaged.accuracy), _mean(single.accuracy)),
                ]
            )
    heading = ["task", "averaged", "passes a row", "NLL", "in one order", "difference", "", "accuracy", "in one order"]
    return markdown_table(heading, rows, left={0, 1, 6})


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
    return markdown_table([*heading, "AUROC by disagreement"], rows, left={0, 1, 5})


def rankings_table(tables: Tables) -> str:
    """Return the AUROC of every score to choose from, for the recommended method's mistakes on the test rows.

    Cells are means over seeds; the best as printed is bold where they differ and all seeds have them. *Chosen*: of
    the score that each seed chose on its calibration split, and which that is.
    """
    names, rows = list(tables["seeds"].rankings[0]), []
    for task, seeds in tables["seeds"].groupby("task"):
        areas = pd.DataFrame([*seeds.rankings], columns=names, dtype=float)
        whole = areas.mean()[areas.count() == len(seeds)].map(lambda mean: round(mean, 3))
        best = set(whole[whole == whole.max()].index) if whole.nunique() > 1 else set()
        texts = {name: over_seeds(areas[name], len(seeds)) for name in names}
        chosen = [rankings[score] for rankings, score in zip(seeds.rankings, seeds.review_score, strict=True)]
        which = ", ".join(f"{s.seed}: `{escaped(s.review_score)}`" for s in seeds.itertuples())
        cells = [f"**{text}**" if name in best else text for name, text in texts.items()]
        rows.append([task, *cells, over_seeds(pd.Series(chosen, dtype=float), len(seeds)), which])
    heading = ["task", *(f"`{escaped(n)}`" for n in names), "chosen", "chosen by seed"]
    return markdown_table(heading, rows, left={0, len(names) + 2})


def escaped_titles(tables: Tables) -> dict[str, str]:
    """Return each method's title, as a cell."""
    return dict(zip(tables["methods"].method, map(escaped, tables["methods"].title), strict=True))


def _difference(comparison: pd.Series) -> tuple[str, str]:
    """Return a paired difference with its interval, and what that means."""
    bounds = (comparison.difference, comparison.low, comparison.high)
    return shown(bounds), outcome(*bounds[1:])


def _mean(values: pd.Series, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f}" if len(values) else "-"
