"""RESULTS.md and its plots, made of the committed figures alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence import tables
from benchmarks.evidence.decision import Cell, cells, reported
from benchmarks.evidence.plan import DEVELOPING, DRAWS, REPORTED
from benchmarks.evidence.plots import picture_name, write_plots
from benchmarks.evidence.recovered import Recovered, recovered
from benchmarks.evidence.results import Results
from benchmarks.evidence.reviewed import Reviewed, reviewed
from laplora.files import write_whole
from training.report.markdown import fill

FOLDER = Path(__file__).parent
PAGE = FOLDER / "RESULTS.md"
#: Pages that quote its first answer.
QUOTED_ON = (Path("README.md"), Path("docs/evidence.md"))

#: Set before any result: wins in NLL and in AURC on tasks with skill without a loss, and the largest ECE.
NLL_WINS, AURC_WINS, LARGEST_ECE = 6, 4, 0.03

#: Methods that are said in words: ours, and what else won somewhere or is served.
_IN_WORDS = ("conditioned", "laplace_conditioned", "laplace", "sms", "svs", "vector")

_TITLE = "# When is a posterior worth its price?"
_QUESTION = (
    "Written by `python -m benchmarks.evidence --publish` from docs/results/evidence.json and the resamples beside it. "
    "The question: a user has a number of labels. Two thirds train, one third calibrates. Which method gives the best "
    "probabilities for a new row, and what does an answer cost?",
    "Everything is compared with temperature scaling, at the same labels and on the same trained model. A **win** is a "
    "difference whose interval lies below 0 (95 %; of five trainings 97.5 %), a **loss** one above it, the rest are "
    "ties. With one training it is open: its interval is too narrow to decide. NLL is in nats. AURC is the mean error "
    "rate over all coverages when the least sure rows are left out first. ECE has 15 bins. An answer's cost is in "
    "forward passes of the model.",
)
_HOW = (
    "**Halves.** Rules and defaults are chosen on the developing half: {developing}. Conclusions rest on the reporting "
    "half alone: {reported}. The tasks were dealt in `plan.py` before any result.",
    "**Rows.** All labelled rows of a task, official splits put together and dealt again, so that calibration rows are "
    "of the same kind as test rows. 500 test rows are the same for all budgets and seeds.",
    "**Training.** LoRA of rank 8 on q_proj and v_proj, AdamW at 5e-4 falling to 0, dropout 0.1, batches of 8. One "
    "training gives two models: *long*, after 8 epochs, and *early*, after 3 of the 8. No label chooses when to stop.",
    "**Draws.** {draws} of calibration rows for each trained model, disjoint where a pool of at most 1,000 rows has "
    "them.",
    "**Trainings.** Three of each task and budget were planned. On the five small tasks of the reporting half two more "
    "were added at 450 labels, after a look at the three, whose intervals were too wide. Where there are five, the "
    "intervals are of 97.5 %, and their verdict takes the place of the first one, whatever that was. The first was of "
    "95 %, so the two looks together are wrong in up to 7.5 % of cases.",
    "**Intervals** are over test rows, trainings and calibration draws (`decision.py`). Of a task with one seed they "
    "say nothing of other trainings, and decide nothing. Nothing corrects for the number of comparisons: of 40 between "
    "equal methods, about one is a win and one a loss.",
    "**Skill.** MAP is more accurate than the most frequent label on 97.5 % of the resamples of the test rows.",
    "**Laplace** is the exact posterior of the generalised Gauss-Newton matrix over all LoRA weights, one prior "
    "precision for all, chosen by the NLL of the calibration rows. Maps on top of it are fitted on the same rows.",
)
#: What is said of methods where one of them has run, by that one.
_HOW_OF = {
    "retrained_folds": "**All labels.** One adapter is trained on all labels, those of the first draw too, and five "
    "more on four fifths of them each. The five answer the labelled rows that they have not seen, which gives the "
    "temperature of the first (*all labels, cross-fitted*) and of their own average. The *student* learns that average "
    "from rows of the pool without their labels, and has no temperature of its own.",
    "dropout": "**Dropout.** Ten masks at the rate of the training, each one for all tokens and rows.",
    "swag": "**SWAG** has 20 snapshots of the last quarter of the steps, while the learning rate falls to 0. Its paper "
    "takes a high constant rate, which makes its Gaussian wider: this is SWAG after an ordinary training.",
    "tfb": "**Training-free Bayesian** adapters have noise as large as MAP's own answers of 100 rows without labels "
    "bear, by the tolerance of the authors' runs.",
    "orders": "**2 orders.** A question is asked with its options as they come and in reverse. Every option is then "
    "on average as far from the first place as from the last, not equally often at each.",
}


def write_page(results: Results) -> None:
    """Write the page and its plots."""
    every = cells(results)
    write_plots(every, FOLDER)
    write_whole(PAGE, render(results))
    for page in QUOTED_ON:
        write_whole(page, quoted(page.read_text(encoding="utf-8"), every))


def quoted(page: str, every: Sequence[Cell]) -> str:
    """Return a page with the table for readers who only ask whether conditioning is worth it."""
    return fill(page, "evidence", {"worth": tables.worth(every, "conditioned")})


def render(results: Results) -> str:
    """Return the page."""
    every = cells(results)
    budgets = [b for b in sorted({cell.budget for cell in every}) if any(reported(every, b))]
    how = [text.format(developing=", ".join(DEVELOPING), reported=", ".join(REPORTED), draws=DRAWS) for text in _HOW]
    how += [text for method, text in _HOW_OF.items() if any(cell.method == method for cell in every)]
    parts = [_TITLE, *map(_filled, _QUESTION), *_short(every, budgets), *_targets(every, budgets)]
    for budget in budgets:
        parts += _budget(list(reported(every, budget)), budget)
    parts += _retraining(recovered(results.records))
    parts += _review(reviewed(results))
    parts += _aside(
        "The developing half",
        "Rules and defaults were chosen here, so nothing is concluded from it. NLL less that of temperature scaling.",
        [cell for cell in every if cell.developing and cell.skill],
    )
    parts += _aside(
        "Tasks without skill",
        "MAP is not clearly better than the most frequent label here, and there is little to tell rows apart by. NLL "
        "less that of temperature scaling.",
        [cell for cell in every if not cell.skill],
    )
    ran = (
        "Trained models, by task and budget. Three trainings were planned, each with two models, long and early. "
        "`subjects` and `fields` have too few rows for 1,500 labels. Which ran first was chosen by hand, not in the "
        "plan's order: those that are there are no random part."
    )
    parts += ["## What has run", _filled(ran), tables.finished(every), "## How it was measured", *map(_filled, how)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _short(every: Sequence[Cell], budgets: Sequence[int]) -> list[str]:
    """Return the answer for a reader in a hurry."""
    if not budgets:
        return ["## In short", "No task of the reporting half has run yet, so there is no answer."]
    counts = ", ".join(f"{len({c.task for c in reported(every, b)})} at {b} labels" for b in budgets)
    first = (
        f"Tasks of the reporting half on which the model has any skill: {counts}. The NLL beside that of temperature "
        "scaling, by the intervals below:"
    )
    text = (
        "On how many tasks every method's NLL is better than that of temperature scaling / level with it / worse, and "
        "the mean difference, nats:"
    )
    words = tables.in_words(every, budgets, _IN_WORDS)
    return ["## In short", _filled(first), words, _filled(text), tables.overview(every, budgets)]


def _targets(every: Sequence[Cell], budgets: Sequence[int]) -> list[str]:
    """Return the targets, and what comes near them."""
    text = (
        f"Set before the study, of tasks with skill: NLL won on {NLL_WINS} and lost on none, AURC won on {AURC_WINS} "
        f"and lost on none, an ECE of at most {LARGEST_ECE} on each. "
    )
    found = tables.winners(every, budgets)
    if not found:
        return ["## Targets", _filled(text + "No method has won a task of the reporting half without losing another.")]
    return ["## Targets", _filled(text + "Methods that won at least one in NLL and lost none:"), found]


def _budget(of: Sequence[Cell], budget: int) -> list[str]:
    """Return the section of one budget."""
    text = (
        "Won / tied / lost against temperature scaling, and means over tasks of the differences. In brackets: the ECE "
        "that a calibrated model would measure on the same confidences, which is not 0 with so few rows."
    )
    return [
        f"## {budget} labels",
        _filled(text),
        tables.by_method(of),
        "NLL less that of temperature scaling, with its interval; **bold** excludes 0:",
        tables.by_task(of),
        f"![differences of NLL with {budget} labels]({picture_name(budget)})",
        "What there is to mend:",
        tables.before(of),
    ]


def _retraining(of: Sequence[Recovered]) -> list[str]:
    """Return what the labels give without training, beside what they give as training rows."""
    text = (
        "The calibration labels could have trained the adapter. By how much is its NLL then below temperature "
        "scaling's? And by how much without training, where the labels condition? In brackets: the share of that gain. "
        "All figures are of the first calibration draw. The retrained adapter gets its temperature from further "
        "labels that nothing else here has, which favours it."
    )
    return ["## Conditioning beside retraining", _filled(text), tables.recovered_shares(of)] if of else []


def _review(of: Sequence[Reviewed]) -> list[str]:
    """Return what review scores gain over the entropy of the same answers, on both halves."""
    text = (
        "Do other signs than the entropy rank the mistakes of conditioned answers better? AURC less that of the "
        "entropy, 1/1000, with its 95 % interval: below 0 is better, **bold** excludes 0. PRR is the "
        "prediction-rejection ratio. "
        f"The developing half is {', '.join(DEVELOPING)}."
    )
    return ["## Review scores", _filled(text), tables.review_scores(of)] if of else []


def _aside(title: str, text: str, of: Sequence[Cell]) -> list[str]:
    return [f"## {title}", _filled(text), tables.by_task(of, budgets=True)] if of else []


def _filled(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)
