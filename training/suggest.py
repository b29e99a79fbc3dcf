"""Suggest: which rows of an unlabelled file to label next, in the order to label them, by a finished artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laplora.data.labelled import Task, read_inputs
from laplora.errors import DataError
from laplora.files.atomic import write_whole
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from laplora.selection.suggest import SUGGESTED, Suggestion, check_fields
from laplora.selection.suggest import suggest as suggest_rows
from training.config.suggestion import SuggestRequest
from training.workspace.terminal import progress, say


def suggest(request: SuggestRequest) -> Path:
    """Write the rows to label next, in that order, say how they are spread, and return the file.

    Raises:
        ConfigError, DataError: as ``laplora.selection.suggest.suggest`` and ``check_fields``; rows without the
            template's fields; a file that would be lost.
        ArtifactError: an artifact that cannot be used.
    """
    out = _checked_out(request)
    predictor = Predictor.load(request.artifact, device=request.device, progress=say)
    manifest = predictor.artifact.manifest
    template = manifest.template.template()
    check_fields(template)
    examples = read_inputs(request.pool, Task(manifest.name, template, manifest.labels))
    rows = [predictor.encode(example.fields, truncate=True) for example in examples]
    suggestion = suggest_rows(
        predictor,
        rows,
        request.count,
        least_familiarity=request.least_familiarity,
        batch_size=request.batch_size,
        track=progress,
    )
    lines = [json.dumps(line, ensure_ascii=False) for line in suggested_lines(suggestion, examples)]
    write_whole(out, "\n".join(lines) + "\n")
    _tell(suggestion, len(examples))
    say(f"rows to label, in this order: {out}")
    return out


def _checked_out(request: SuggestRequest) -> Path:
    """Return the file to write; DataError where it is the pool, or one that nobody named and that is there."""
    if request.out is None:
        out = request.pool.with_suffix(".suggested.jsonl")
        if out.exists():
            raise DataError(
                f"{out} is there already, and its rows may have labels by now: name another file by --out, or the same "
                "one to overwrite it"
            )
        return out
    if request.out.resolve() == request.pool.resolve():
        raise DataError(f"--out {request.out} is the pool itself: name another file")
    return request.out


def suggested_lines(suggestion: Suggestion, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return what is written of each row, in the order to label: its id and fields, and under ``suggested`` why.

    With a field ``label`` added, such a line is a labelled row.
    """
    chosen = [examples[one.row] for one in suggestion.rows]
    reasons = suggestion.reasons()
    return [{"id": e.id, **e.fields, SUGGESTED: why} for e, why in zip(chosen, reasons, strict=True)]


def _tell(suggestion: Suggestion, pool: int) -> None:
    left = [f"{suggestion.repeated} repeat an earlier one"] if suggestion.repeated else []
    left += [f"{suggestion.unfamiliar} are too unlike the training rows"] if suggestion.unfamiliar else []
    say(f"{len(suggestion.rows)} of {pool} rows chosen" + "".join(f"; {part}" for part in left))
    predicted = Counter(
        label for one in suggestion.rows for label in one.prediction.labels_present or [one.prediction.label]
    )
    say("predicted labels: " + ", ".join(f"{label} {count}" for label, count in predicted.most_common(10)))
    say(f"gain: {suggestion.rows[0].gain:.3g} nats of the first row, {suggestion.rows[-1].gain:.3g} of the last")
