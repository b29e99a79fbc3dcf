"""Check: rows and model are loaded, one step of each kind is timed, and nothing is written."""

from __future__ import annotations

import time
from statistics import mean

from laplora.features.expert_passes import expert_passes
from laplora.readouts.label_tokens import LabelTokens
from laplora.report.verdict import rows_to_show
from training.config import RunConfig
from training.fine_tuning.new_adapter import add_adapter
from training.fine_tuning.trial import Trial, tried
from training.workspace.run import Run
from training.workspace.runtime import prepared_run
from training.workspace.targets import labelled_targets
from training.workspace.terminal import say


def check(config: RunConfig) -> None:
    """Print what a run would do: its rows, labels and prompt, what is cut, and what it takes in time and memory.

    Raises:
        ConfigError, DataError, ModelError, LabelTokenError, DownloadError, ArtifactError: what would stop the run.
    """
    run = prepared_run(config)
    for line in (*rows_lines(run), verdict_line(run), *prompt_lines(run)):
        say(line)
    say(frozen_line(run))
    if run.config.fine_tune:
        model = run.adapted(lambda base: add_adapter(base, run.config))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        say(f"model: {run.config.base.model} with an adapter of {trained:,} trained numbers, {held / 1e6:,.0f} MB")
        for line in trial_lines(run, tried(run, model, labelled_targets(run, run.splits.train))):
            say(line)
    else:
        say("nothing is fine-tuned unless asked for: --set fine_tune=true")
    say(f"results would go to {run.config.run_dir}, the artifact to {run.config.artifact_dir}")
    say("nothing is wrong; nothing was written")


def rows_lines(run: Run) -> list[str]:
    """Return where the rows are from, and of each split how many rows each label has."""
    report = run.splits.report
    lines = [f"rows: {report['source_detail']}"]
    for split, count in report["rows"].items():
        labels = ", ".join(f"{label} {rows}" for label, rows in report["classes"][split].items())
        lines.append(f"  {split}: {count}" + (f" ({labels})" if count else ""))
    return lines


def verdict_line(run: Run) -> str:
    """Return how many test rows a verdict on the target risk needs."""
    run.config.calibration.check(run.splits.task.labels)
    if run.config.calibration.costs is not None:
        return f"a verdict on costs compares them with a person's look; there are {len(run.splits.test)} test rows"
    target = run.config.calibration.highest_risk
    none, half = rows_to_show(target), rows_to_show(target, target / 2)
    return (
        f"a verdict on a target risk of {100 * target:g} % needs {none} accepted test rows if none of them is wrong, "
        f"and {half} if {50 * target:g} % are; there are {len(run.splits.test)} test rows, accepted or not"
    )


def prompt_lines(run: Run) -> list[str]:
    """Return the text and tokens of each label, an example prompt, and how long prompts are and how many are cut."""
    splits, task = run.splits, run.splits.task
    if isinstance(run.readout, LabelTokens):
        tokens = [f"token {token}" for token in run.readout.token_ids]
    else:
        tokens = [f"tokens {' '.join(map(str, ids))}" for ids in run.readout.token_ids]
    labels = [
        f"  {label}: {text!r}, {token}" for label, text, token in zip(task.labels, run.verbalizers, tokens, strict=True)
    ]
    prompt = task.prompt(splits.train[0]).splitlines()
    rows = run.encode((*splits.train, *splits.selection, *splits.calibration, *splits.test))
    lengths = [len(row.token_ids) for row in rows]
    cut = sum(row.truncated for row in rows)
    return [
        "labels, as they stand after the prompt:",
        *labels,
        "prompt of the first training row:",
        *(f"  | {line}" for line in prompt),
        f"prompts: {mean(lengths):.0f} tokens on average, at most {max(lengths)}; {cut} of {len(rows)} are cut at "
        f"{run.config.max_tokens}",
    ]


def frozen_line(run: Run) -> str:
    """Return what the frozen fit takes, by one batch of passes that is timed."""
    size, classifier = 8, run.classifier(run.adapted(lambda base: base))
    passes = expert_passes(classifier, run.experts.names, run.experts.encoder, say)
    rows = sorted((passes.encode(one.fields) for one in run.labelled), key=lambda row: len(row.token_ids))
    middle, started = rows[len(rows) // 2 :][:size], time.perf_counter()
    passes.of_rows.of_batch(middle)
    seconds = (time.perf_counter() - started) / len(middle)
    return (
        f"frozen fit: heads {', '.join(passes.names)} of {len(rows)} labelled rows, in passes of about "
        f"{duration(seconds * len(rows))}, and of {duration(seconds * len(run.splits.test))} over the test rows"
    )


def trial_lines(run: Run, trial: Trial) -> list[str]:
    """Return what a run takes, in words."""
    optimizer = run.config.optimizer
    total = trial.training_s + trial.fit_s + trial.evaluate_s
    return [
        f"training: {optimizer.step_count} steps of {optimizer.step_rows} rows, {trial.step_s:.2f} s each as measured, "
        f"learning rate {optimizer.peak_rate:g}: about {duration(trial.training_s)}",
        f"fit: about {duration(trial.fit_s)}, evaluation: about {duration(trial.evaluate_s)}, by one batch of "
        f"Jacobians, {trial.jacobians_s:.2f} s; in all about {duration(total)}",
        f"memory: {trial.peak_bytes / 1e6:,.0f} MB at most so far, with batches of the longest rows",
    ]


def duration(seconds: float) -> str:
    """Return a time in the unit that it is easily read in."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
