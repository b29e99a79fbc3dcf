"""``laplora audit``: the unlikely labels of a file, for a person to correct."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laplora.commands import console, quick
from laplora.errors import ArtifactWriteError, ConfigError, DataError
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
    corrections: quick.CorrectionsOption = None,
    base: quick.BaseOption = quick.BASE,
    target_risk: console.TargetRiskOption = None,
    costs: console.CostsOption = None,
    device: console.DeviceOption = "auto",
) -> None:
    """List unlikely labels, rows that two labels fit, and near-copies with different labels.

    Heads answer each row without its label, as in quick. The table has a column correction for a person: a label, or -
    to leave the row out. On a terminal the heads are then fitted anew, in seconds; quick --corrections does the same.
    """
    from laplora.data.corrections import read_table, write_table

    table, terminal = out or file.with_name(f"{file.stem}.audit.csv"), quick.on_terminal()
    calibration = console.calibration(target_risk, costs)
    if table.suffix != ".csv":
        raise ConfigError(f"--out {table}: the table is CSV, and its name ends in .csv")
    if table.exists():
        raise ArtifactWriteError(f"{table} is there already, perhaps with corrections: give another file by --out")
    writes = f"{table} (with texts)"
    given, template = quick.given_rows(file, text, label, group, corrections, writes=writes, yes=yes, terminal=terminal)
    if any(isinstance(row["label"], dict) for row in given.rows):
        raise DataError("an audit takes rows with one certain label each")
    posterior = quick.fitted(given, template, base, device, calibration, yes=yes)
    listed = (found := posterior.audit()).to_rows(posterior.rows, posterior.classifier.labels)
    write_table(table, listed)
    console.write(
        f"unlikely labels: {len(found.unlikely)} of {len(posterior.rows)}; rows that fit two labels: "
        f"{len(found.ambiguous)}; groups of near-copies with different labels: {len(found.copies)}"
    )
    for row in listed[: min(_SHOWN, len(found.unlikely))]:
        own, other = (f"{100 * row['probability'][name]:.0f} %" for name in ("label", "likelier"))
        name, shown = (" ".join(str(row[one]).split())[:_CHARACTERS] for one in ("id", "text"))
        console.write(f"{name}: {row['label'][:32]!r} {own}, {row['likelier'][:32]!r} {other}: {shown}")
    console.say(f"{table} is written: fill in its column correction (a label, or - to leave the row out), and save it")
    asks = terminal and not yes and bool(listed)
    while asks and typer.confirm("Is it saved, to fit without the mistakes?", default=True, err=True):
        try:
            after = posterior.corrected_at(wanted := _by_place(read_table(table), posterior))
            console.write(f"before: {_accepted(posterior)}\nafter {len(wanted)} corrections: {_accepted(after)}")
            console.write(quick.FLATTERS)
            break
        except DataError as error:
            console.say(str(error))
    again = [program(), "quick", str(file), "--corrections", str(table)]
    stated = {"text": text, "label": label, "group": group, "target-risk": target_risk, "costs": costs}
    for name, value in stated.items():
        again += [] if value is None else [f"--{name}", value]
    again += [] if base == quick.BASE else ["--base", base]
    if corrections is None:
        console.write(f"make the classifier of the corrected rows: {shlex.join(again)}")


def _accepted(posterior: HeadsPosterior) -> str:
    """Return the share of labelled rows that are accepted, and of the wrong among these, in words."""
    from laplora.fitting.cross_fitted import accepted_rows, answered_rows, flagged_rows

    accepted = accepted_rows(posterior, flagged_rows(posterior))
    mistaken = answered_rows(posterior).answered != posterior.heads.labelled.labels
    count, wrong, calibration = int(accepted.sum()), int((accepted & mistaken).sum()), posterior.settings.calibration
    costs, risk = calibration.costs, 100 * calibration.highest_risk
    most = (
        "a target error rate of"
        if isinstance(calibration.target_risk, float)
        else "target error rates by label of at most"
    )
    at = f"at {most} {risk:g} %" if costs is None else "by their costs"
    return f"{at}, {100 * count / len(accepted):.0f} % of the rows accepted, {wrong} of {count} wrong"


def _by_place(corrections: Mapping[tuple[str, str], str | None], posterior: HeadsPosterior) -> dict[int, str | None]:
    """Return corrections by the places of labelled rows."""
    from laplora.data.corrections import folded
    from laplora.selection.label_audit import text_of

    labels = posterior.classifier.labels
    names = {folded(name): name for name in labels}
    wanted = {key: one and names.get(folded(one), one) for key, one in corrections.items()}
    keys = [(folded(text_of(one.fields)), folded(labels[one.label])) for one in posterior.rows]
    return {place: wanted[key] for place, key in enumerate(keys) if key in wanted}
