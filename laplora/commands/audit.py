"""``laplora audit``: the labels of a file that are probably wrong, for a person to correct."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laplora.commands import console, quick
from laplora.errors import ArtifactWriteError, DataError
from laplora.execution.terminal import program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laplora.fitting.heads import HeadsPosterior

#: Rows that are shown; the table has all.
_SHOWN = 20
_CHARACTERS = 80


def audit(
    file: quick.FileArgument,
    text: quick.TextOption = None,
    label: quick.LabelOption = None,
    group: quick.GroupOption = None,
    yes: quick.YesOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Table to write (default: beside FILE).")
    ] = None,
    base: quick.BaseOption = quick.BASE,
    target_risk: quick.RiskOption = 0.05,
    device: console.DeviceOption = "auto",
) -> None:
    """List labels that are probably wrong, rows that two labels fit, and near-copies with different labels.

    Heads answer each row without its label, as in quick. The table has a column correction for a person: a label, or -
    to leave the row out. On a terminal the heads are then fitted anew, in seconds; quick --corrections does the same.
    """
    from laplora.data.corrections import read_table, write_table

    table, terminal = out or file.with_name(f"{file.stem}.audit.csv"), quick.on_terminal()
    quick.check_risk(target_risk)
    if table.exists():
        raise ArtifactWriteError(f"{table} is there already, perhaps with corrections: give another file by --out")
    writes = f"{table} (with texts)"
    given, template = quick.given_rows(file, text, label, group, writes=writes, yes=yes, terminal=terminal)
    posterior = quick.fitted(given, template, base, device, target_risk, yes=yes)
    found = posterior.audit()
    listed = found.to_rows(posterior.rows, posterior.classifier.labels)
    write_table(table, listed)
    counts = Counter(row["found"].split(",")[0].split()[0] for row in listed)
    console.write(
        f"labels that are probably wrong: {len(found.wrong)} of {len(posterior.rows)}; rows that fit two labels: "
        f"{counts['ambiguous']}; groups of near-copies with different labels: {len(found.copies)}"
    )
    for row in listed[: min(_SHOWN, len(found.wrong))]:
        own, other = (f"{100 * row['probability'][name]:.0f} %" for name in ("label", "likelier"))
        shown = " ".join(row["text"].split())[:_CHARACTERS]
        console.write(f"{row['id']}: {row['label']!r} {own}, {row['likelier']!r} {other}: {shown}")
    console.say(f"{table} is written: fill in its column correction (a label, or - to leave the row out), and save it")
    while terminal and listed and typer.confirm("Is it saved, to fit without the mistakes?", default=True, err=True):
        try:
            after = posterior.corrected(wanted := _by_row(read_table(table), posterior))
            console.write(f"before: {_accepted(posterior)}\nafter {len(wanted)} corrections: {_accepted(after)}")
            break
        except DataError as error:
            console.say(str(error))
    again = f"{program()} quick {shlex.quote(str(file))} --corrections {shlex.quote(str(table))}"
    console.write(f"make the classifier of the corrected rows: {again}")


def _accepted(posterior: HeadsPosterior) -> str:
    """Return the share of labelled rows that are accepted, and of the wrong among these, in words."""
    from laplora.fitting.cross_fitted import accepted_rows, flagged_rows

    accepted = accepted_rows(posterior, flagged_rows(posterior))
    answers = posterior.experts[str(posterior.recommended)].held_out.argmax(1)
    count, wrong = int(accepted.sum()), int((accepted & (answers != posterior.heads.labelled.labels)).sum())
    risk, share = posterior.settings.calibration.target_risk, 100 * count / len(accepted)
    return f"at a target error rate of {100 * risk:g} %, {share:.0f} % of the rows accepted, {wrong} of {count} wrong"


def _by_row(corrections: Mapping[tuple[str, str], str | None], posterior: HeadsPosterior) -> dict[str, str | None]:
    """Return corrections by the ids of labelled rows."""
    from laplora.data.corrections import folded
    from laplora.selection.label_audit import text_of

    labels = posterior.classifier.labels
    names = {folded(name): name for name in labels}
    keys = {(folded(text_of(one.fields)), folded(labels[one.label])): one.id for one in posterior.rows}
    return {
        keys[key]: wanted and names.get(folded(wanted), wanted) for key, wanted in corrections.items() if key in keys
    }
