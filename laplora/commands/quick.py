"""``laplora quick``: from a file of labelled texts to an artifact that serves, without fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laplora.commands import console
from laplora.data.records import Record, read_records
from laplora.errors import ArtifactWriteError, ConfigError
from laplora.execution.progress import Bars, Item, Silent
from laplora.execution.terminal import program

if TYPE_CHECKING:
    from laplora.data.columns import LabelledTexts
    from laplora.fitting.heads import HeadsPosterior
    from laplora.report.records import Report
    from laplora.report.verdict import Verdict
    from laplora.settings import CalibrationSettings

#: Rows, at most, that are read and train heads, to measure how long all of them will take.
_MEASURED_ROWS = 24
#: Heads of so many rows take twice as long as of hardly any, of twice as many three times as long, and so on. CPU
#: seconds on TREC: 0.9 for 24 rows, 2.5 for 200, 8.4 for 600.
_TWICE_AS_LONG = 75
#: Built-in texts that are read too.
_UNLIKE = 40
#: Time taken, in estimated times: 0.65 to 1.2 while other processes were busy.
_RANGE = (0.6, 1.6)
_LABELS_SHOWN = 12
#: Rows a label below which the column is probably another one, such as a date.
_FEW_ROWS = 4
#: Characters of a report that have its first figures.
_HEAD_OF_PAGE = 20_000
_NEXT = (
    "next: laplora audit lists unlikely labels: correct those that are wrong, and label more rows; serve it, if a "
    "person checks some of the accepted answers too\n"
)


class _Steps(Bars):
    """Bars, or a line for each where nobody watches, without the lines of a fit, which are not for newcomers."""

    def say(self, line: str) -> None:
        """Drop the line."""

    def track(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        """Yield items, under a bar on a terminal."""
        if not sys.stderr.isatty():
            console.say(f"computing: {title} ...")
        return super().track(items, title) if sys.stderr.isatty() else iter(items)


FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Labelled texts: CSV, JSON Lines or Parquet.")]
TextOption = Annotated[
    str | None, typer.Option("--text", metavar="COLUMN", help="Column of the texts (default: found).")
]
LabelOption = Annotated[
    str | None, typer.Option("--label", metavar="COLUMN", help="Column of the labels (default: found).")
]
GroupOption = Annotated[
    str | None,
    typer.Option("--group", metavar="COLUMN", help="Rows of one value belong together, such as a customer's."),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Go on without asking.")]
BaseOption = Annotated[
    str, typer.Option("--base", metavar="NAME", help="Offline name, folder or hub id of the base model.")
]
CorrectionsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Table of laplora audit in which labels were corrected.")
]
#: A caution about corrected rows.
FLATTERS = (
    "Labels were corrected: a person looked only at rows that the heads answer otherwise, so the shares of accepted "
    "and of wrong rows look better than they are"
)
#: The base model by default.
BASE = "smollm2-135m-instruct"


def quick(
    file: FileArgument,
    text: TextOption = None,
    label: LabelOption = None,
    group: GroupOption = None,
    yes: YesOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Artifact to write (default: beside FILE).")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write in the place of another artifact.")] = False,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What clients of POST /v1/systemone ask (default: the template).")
    ] = None,
    corrections: CorrectionsOption = None,
    base: BaseOption = BASE,
    target_risk: console.TargetRiskOption = None,
    costs: console.CostsOption = None,
    device: console.DeviceOption = "auto",
) -> None:
    """Make a classifier from a file of labelled texts, measure it, and say how to serve it.

    Nothing is fine-tuned: heads are trained on states of the base model and on sentence embeddings. Every row trains
    them, and is measured by heads that do not know it. Beside the artifact FOLDER stands FOLDER.report.html, which
    shows texts.
    """
    from laplora.report.page import html

    wanted = console.calibration(target_risk, costs)
    folder = out or file.with_name(re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:64] or "classifier")
    page = folder.with_name(f"{folder.name}.report.html")
    _check_free(folder, page, replace)
    earlier = earlier_figures(page)
    writes = f"{folder} (the artifact) and {page} (the report, with texts)"
    found, template = given_rows(file, text, label, group, corrections, writes=writes, yes=yes, terminal=on_terminal())
    try:
        posterior = fitted(found, template, base, device, wanted, question, yes=yes)
        report, verdict = _measured(posterior, file, folder, base, corrections)
    except (KeyboardInterrupt, typer.Abort):
        console.say("nothing was written")
        raise
    console.say("writing the artifact, and trying that it answers the same ...")
    posterior.save(folder, base=base, report=html(report.without_texts(), verdict))
    console.write_page(page, html(report, verdict))
    _write_results(report, verdict, earlier, folder, found.rows[0]["text"])


def on_terminal() -> bool:
    """Return whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def given_rows(
    file: Path,
    text: str | None,
    label: str | None,
    group: str | None,
    corrections: Path | None = None,
    *,
    writes: str,
    yes: bool,
    terminal: bool,
) -> tuple[LabelledTexts, str]:
    """Return the rows of a file, with the template of their prompts; says which columns they are of.

    Args:
        corrections: table of corrected labels; writes: what the command will write, in words.
        yes: whether the user agreed; terminal: whether somebody can be asked.

    Raises:
        ConfigError: nobody to ask, where columns are in doubt or nobody agreed; DataError: rows that cannot be used.
    """
    from laplora.data.columns import columns_of, find_label, find_text, labelled_texts
    from laplora.data.corrections import corrected, read_table

    columns, notes = columns_of(records := read_records(file)), tuple[str, ...]()
    count = len(records)
    text = text or find_text(records) or _asked("text", columns, records, terminal)
    label = label or find_label(records, text) or _asked("label", columns, records, terminal)
    if corrections is not None:
        records, notes = corrected(records, text, label, read_table(corrections))
    found = labelled_texts(file, records, text, label, group)
    template = f"{_words(text)}: {{text}}\n{_words(label)}:"
    likeliest = (row["label"] for row in found.rows)
    counts = Counter(max(one, key=one.__getitem__) if isinstance(one, dict) else one for one in likeliest)
    shown = ", ".join(f"{name[:32]} {counts[name]}" for name in found.labels[:_LABELS_SHOWN])
    shown += ", ..." if len(counts) > _LABELS_SHOWN else ""
    first = f"{file}: {count} rows; the text is {text!r}, the label is {label!r}"
    few = "" if len(found.rows) >= _FEW_ROWS * len(counts) else f" (few rows a label: is {label!r} the label?)"
    last = f"{len(found.rows)} rows train {len(counts)} labels: {shown}{few}", f"the model reads {template!r}"
    console.say("\n  ".join([first, *notes, *found.notes, *last]))
    console.say(f"will write {writes}; nothing is fine-tuned")
    if not yes and not terminal:
        raise ConfigError(
            "there is no terminal to ask whether that is right: give --yes if it is, or --text COLUMN --label COLUMN "
            f"--yes with two of {_listed(columns)}"
        )
    return found, template


def _asked(what: str, columns: Sequence[str], records: Sequence[Record], terminal: bool) -> str:
    """Return the column that the user names; ConfigError where there is nobody to ask."""
    if not terminal:
        raise ConfigError(f"several columns, or none, may be the {what}: give --{what} with one of {_listed(columns)}")
    first = {name: value for record in reversed(records) for name, value in record.values.items()}
    shown, named = ", ".join(f"{name[:32]!r} (such as {str(first[name])[:24]!r})" for name in columns), ""
    while named not in columns:
        if named:
            console.say(f"there is no column {named!r}")
        named = str(typer.prompt(f"Which column has the {what}? One of {shown}", err=True))
    return named


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(repr(name[:32]) for name in columns)


def _words(column: str) -> str:
    """Return a column's name as a template has it."""
    return " ".join(column.split())[:40].replace("{", "{{").replace("}", "}}")


def _check_free(folder: Path, page: Path, replace: bool) -> None:
    """Raise an error where something is in the place of what is to be written, before anything is computed."""
    from laplora.artifact.folder import check_name, check_replaceable

    check_name(folder)
    check_replaceable(folder)
    if not replace and (taken := [one for one in (folder, page) if one.exists()]):
        raise ArtifactWriteError(f"{taken[0]} is there already: give --replace, or another folder by --out")


def fitted(
    found: LabelledTexts,
    template: str,
    base: str,
    device: str,
    wanted: CalibrationSettings,
    question: str | None = None,
    *,
    yes: bool,
) -> HeadsPosterior:
    """Return heads on all rows, once the user knows how long it takes and wants them."""
    from laplora.classifier import Classifier
    from laplora.features.expert_passes import expert_passes
    from laplora.fitting.entry import fit_as_it_is
    from laplora.fitting.rows import read_rows
    from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base, resolve_device
    from laplora.prompts.questions import Question
    from laplora.settings import FitSettings

    wanted.check(found.labels)
    asked = None if question is None else Question(instructions=question)
    settings = FitSettings(calibration=wanted, question=asked)
    spec = BaseSpec(base, quantization="none")
    location, start = locate_base(spec, progress=console.say), time.monotonic()
    console.say(f"loading the base model {base} ...")
    model = load_base_model(location, spec, device=resolve_device(device)).model
    classifier = Classifier(model, load_tokenizer(location), template, found.labels)
    rows = read_rows(found.rows, classifier, "label", groups="group")
    loading = time.monotonic() - start  # the artifact loads the model once more
    passes = expert_passes(classifier, (), settings.experts.encoder, console.say)
    seconds = loading + _seconds(passes, rows, settings)
    low, high = _RANGE[0] * seconds, _RANGE[1] * seconds
    shown = f"{low:.0f} to {high:.0f} seconds" if high < 120 else f"{low / 60:.0f} to {high / 60:.0f} minutes"
    console.say(f"takes {shown} more, if this machine stays as busy as it is now")
    if not yes and not typer.confirm("Go on?", default=True, err=True):
        console.say("nothing was written")
        raise typer.Exit(console.Status.INTERRUPTED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ rows repeat another row's prompt")  # said with their lines
        return fit_as_it_is(classifier, rows, settings, _Steps(), None, passes)


def _seconds(passes: Any, rows: Sequence[Any], settings: Any) -> float:
    """Return about how long the rows take to be read and to train heads, by a few of them, short ones and long ones."""
    from laplora.fitting.fitted_heads import fit_experts
    from laplora.fitting.rows import shared_folds

    some = sorted(rows, key=lambda row: len(row.fields["text"]))[:: -(-len(rows) // _MEASURED_ROWS)]
    passes.outputs(some[:2], Silent(), "")  # what only the first pass takes
    start = time.monotonic()
    outputs = passes.outputs(some, _Steps(), "a few rows")
    read = time.monotonic()
    labelled = shared_folds(passes.classifier, (), some, settings.calibration.folds, settings.seed)
    fit_experts(passes.names, outputs, labelled, settings.seed, Silent())
    heads = (time.monotonic() - read) / (1 + len(some) / _TWICE_AS_LONG)
    return (read - start) * (len(rows) + _UNLIKE) / len(some) + heads * (1 + len(rows) / _TWICE_AS_LONG)


def _measured(
    posterior: HeadsPosterior, file: Path, folder: Path, base: str, corrections: Path | None
) -> tuple[Report, Verdict]:
    """Return the report of the rows, and its verdict."""
    from laplora.files.atomic import file_sha256
    from laplora.fitting.cross_fitted import built_in_texts, cross_fitted_report
    from laplora.report.verdict import judge

    provenance = {"data": f"{file.name}, {file_sha256(file)}", "base model": base}
    if corrections is not None:
        provenance["corrections"] = f"{corrections.name}, {file_sha256(corrections)}"
    console.say("measuring ...")
    report = cross_fitted_report(posterior, folder.name, file.name, provenance, [built_in_texts(posterior)])
    if corrections is not None:
        first, *others = report.notes
        report = dataclasses.replace(report, notes=[f"{FLATTERS}. {first}", *others])
    return report, judge(report)


def earlier_figures(page: Path) -> str:
    """Return a line of what the report that is replaced says first; "" without one."""
    said = page.read_text(encoding="utf-8", errors="replace")[:_HEAD_OF_PAGE] if page.is_file() else ""
    found = re.findall("(?:<dd>| target error rate of )([0-9.]{1,5}\u00a0%|\u2013)</d", said)
    if len(found) != 3:
        return ""
    line = "before, at a target error rate of {}: {} accepted, {} of these wrong (a small difference may be noise)\n"
    return line.format(*found).replace("\u2013", "none")


def _write_results(report: Report, verdict: Verdict, earlier: str, folder: Path, text: str) -> None:
    """Write what the classifier is worth, beside an earlier one, and how it is served."""
    from laplora.report.verdict import in_words

    body = shlex.quote(json.dumps({"inputs": [{"text": text}]}, ensure_ascii=False))
    console.write(
        f"{in_words(report, verdict, earlier)}"
        f"{'' if verdict.kind in ('ship', 'review') else _NEXT}"
        f"serve it: {program()} serve {shlex.quote(str(folder))}\n"
        "ask it, here with a row that trained it; put in your own text, and the port if you name another one:\n"
        f"curl -s localhost:8000/predict -H 'content-type: application/json' -d {body}"
    )
