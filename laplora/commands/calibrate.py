"""``laplora calibrate``: from a decision model's URL, its questions and labelled rows to artifacts that correct it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laplora.commands import console
from laplora.data.near_copies import near_copies
from laplora.data.records import Record, read_records
from laplora.errors import ConfigError, DataError
from laplora.execution.terminal import program
from laplora.files.strict_json import strict_json
from laplora.prompts.questions import as_text

if TYPE_CHECKING:
    from laplora.fitting.heads import HeadsPosterior
    from laplora.upstream.remote_model import RemoteModel

#: The environment variable that has the key.
KEY = "LAPLORA_UPSTREAM_KEY"


def calibrate(
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Server with the decision model (POST /v1/systemone).")
    ],
    questions: Annotated[
        Path, typer.Option(metavar="FILE", help="JSON object of questions by name, as a request has them.")
    ],
    rows: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled rows, JSON Lines: state, and a label for each question.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="Model that is asked for.")] = "jev-latest",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the artifacts.")] = Path(
        "artifacts"
    ),
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"File with the model's key (default: {KEY}, if it is set).")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Rows of one value belong together, such as a customer's.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="Sentence encoder: an offline name, a folder or a hub id.")
    ] = "all-minilm-l6-v2",
    target_risk: console.TargetRiskOption = None,
    costs: console.CostsOption = None,
    at_once: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Requests at a time, at most.")] = 8,
    timeout_s: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Of one request.")] = 30.0,
    replace: Annotated[bool, typer.Option("--replace", help="Write in the place of other artifacts.")] = False,
) -> None:
    """Correct a decision model's answers by your own labels, and write an artifact for each question.

    The model is asked once for each row and question, and its answers are kept: if the command stops, the same command
    asks for the others. Heads on a small sentence encoder, which runs here, learn where
    it is wrong. Every row trains them, and is measured by heads that do not know it. An artifact holds no key, no URL
    and no state.
    """
    from laplora.artifact.folder import check_name, check_replaceable
    from laplora.execution.progress import Bars
    from laplora.fitting.entry import fit
    from laplora.fitting.heads import HeadsPosterior
    from laplora.settings import FitSettings
    from laplora.upstream.remote_model import remote_model

    settings = FitSettings(calibration=console.calibration(target_risk, costs))
    asked, key = _questions(questions), _key(key_file)
    records = read_records(rows)
    for name in asked:
        check_name(out / name)
        check_replaceable(out / name)
        if (out / name).exists() and not replace:
            raise ConfigError(f"{out / name} is there already: give --replace, or another folder by --out")
    of_model: dict[str, Any] = {
        "model": model,
        "key": key,
        "encoder": encoder,
        "at_once": at_once,
        "timeout_s": timeout_s,
    }
    remote = {name: remote_model(url, question, **of_model) for name, question in asked.items()}
    labelled = {name: labelled_rows(records, name, of, group, alone=len(asked) == 1) for name, of in remote.items()}
    answers = dict[str, tuple[list[dict[str, Any]], str]]()
    for name, of in remote.items():
        keep = out / f"{name}.answers.jsonl"
        console.say(f"{name}: asking the model about {len(labelled[name])} rows; {keep} keeps its answers ...")
        answers[name] = of.answered(labelled[name], keep=keep)
    found = dict[str, HeadsPosterior]()
    for name, (answered, its_name) in answers.items():
        classifier = remote[name].classifier(its_name)
        posterior = fit(classifier, answered, settings=settings, groups="group", progress=Bars())
        assert isinstance(posterior, HeadsPosterior)
        found[name] = posterior
    for name, posterior in found.items():  # all or none: the same command goes on
        posterior.save(out / name, base=encoder)
        console.write(_told(name, answers[name][1], posterior, rows.name))
    called, first = next(iter(answers.values()))[1], next(iter(remote.values()))
    console.write(f"serve it: {_serve(out, list(asked), url, key_file, None if first.known_as(called) else model)}")


def labelled_rows(
    records: Sequence[Record], name: str, of: RemoteModel, group: str | None = None, *, alone: bool
) -> list[dict[str, Any]]:
    """Return the rows that have a label of a question: under ``labels`` by name, or of the only question ``label``.

    Beside state and label they have ``group``, the value of that field; without one near-copies of a state are a group.

    A label is an option's name, of a noul true or false, of a score the number of its level; or an object of these with
    their probabilities.

    Raises:
        DataError: a row without a state, or with a label that the question does not have, by its line; no labelled row.
    """
    rows, by_text = list[dict[str, Any]](), {label.casefold(): label for label in of.labels}
    for record in records:
        values, labels = record.values, record.values.get("labels")
        given = labels.get(name) if isinstance(labels, Mapping) else values.get("label") if alone else None
        if given is None:
            continue
        label: Any
        if isinstance(given, Mapping):
            label = dict(given) if given and set(given) <= set(of.labels) else None
        else:
            text = json.dumps(given) if isinstance(given, bool | int) else str(given)
            label = text if text in of.labels else by_text.get(text.casefold())
        if label is None:
            raise DataError(f"line {record.line}: the label of {name!r} is none of {list(of.labels)[:8]}")
        if values.get("state") is None or not as_text(values["state"]).strip():
            raise DataError(f"line {record.line}: there is no 'state' that the model could be asked about")
        rows.append({"state": values["state"], "label": label, "group": None if group is None else values.get(group)})
    if not rows:
        raise DataError(
            f'no row has a label of {name!r}: a row is {{"state": ..., "labels": {{{json.dumps(name)}: ...}}}}'
        )
    if group is None:
        rows = grouped_copies(rows)
        if copies := len(rows) - len({row["group"] for row in rows}):
            console.say(f"{name}: {copies} rows are near-copies, and are measured by heads that know no copy of them")
    return rows


def grouped_copies(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose ``group`` is the same in near-copies of a state."""
    leaders, _ = near_copies([as_text(row["state"]) for row in rows])
    return [{**row, "group": leader} for row, leader in zip(rows, leaders, strict=True)]


def _questions(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        found = strict_json(path.read_bytes())
    except (ValueError, RecursionError):
        raise ConfigError(f"--questions {path}: no JSON") from None
    if not isinstance(found, dict) or not found or not all(isinstance(one, dict) for one in found.values()):
        raise ConfigError(f"--questions {path}: expected an object of questions by name, each an object with its type")
    if odd := [name for name in found if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name)]:
        raise ConfigError(
            f"--questions {path}: {odd[0][:64]!r} names an artifact, and has other signs than A-Za-z0-9._-"
        )
    return found


def _key(path: Path | None) -> str | None:
    if path is not None and os.environ.get(KEY):
        raise ConfigError(f"--key-file and {KEY} are both set: one is enough")
    try:
        key = os.environ.get(KEY) if path is None else path.read_text(encoding="utf-8-sig").strip()
    except ValueError:
        raise ConfigError(f"--key-file {path}: no text in UTF-8") from None
    return key or None


def _told(name: str, model: str, posterior: HeadsPosterior, source: str) -> str:
    """Return what the labels gain over the model's own answers, and what is accepted, in lines."""
    from laplora.fitting.cross_fitted import cross_fitted_report
    from laplora.report.verdict import in_words, judge

    choice, report = posterior.heads.choice, cross_fitted_report(posterior, name, source, {})
    own, best = choice.nll["map"], choice.cross_fitted
    gain = f"NLL {own:.3f} of {model} alone, {best:.3f} corrected"
    if choice.name == "map":
        gain = f"no gain: NLL {own:.3f} of {model} alone, and no correction by these labels is better"
    return f"{name}: {gain}\n{in_words(report, judge(report))}"


def _serve(out: Path, names: Sequence[str], url: str, key_file: Path | None, model: str | None) -> str:
    further = [f"--also-load {shlex.quote(','.join(names[1:]))}"] if names[1:] else []
    first = f"--artifacts-root {shlex.quote(str(out))}" if further else ""
    told = [
        f"{program()} serve {shlex.quote(str(out / names[0]))}",
        first,
        *further,
        f"--upstream-url {shlex.quote(url)}",
        "" if model is None else f"--upstream-model {shlex.quote(model)}",
        "" if key_file is None else f"--upstream-key-file {shlex.quote(str(key_file))}",
    ]
    return " ".join(part for part in told if part)
