"""Opening a run: its splits, tokenizer and device, and its folder claimed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from laplora.answers.golden_inputs import golden_inputs
from laplora.artifact.folder import check_replaceable
from laplora.errors import ConfigError, DownloadError, warn
from laplora.execution.workers import ALONE, Workers
from laplora.features.expert_passes import suiting
from laplora.features.sentence_encoder import load_text_encoding
from laplora.files.atomic import write_json
from laplora.fitting.rows import check_independent
from laplora.models.base import load_tokenizer, locate_base
from laplora.models.spread import first_device
from laplora.prompts.questions import check_question
from laplora.prompts.templates import PromptTemplate, default_verbalizers
from laplora.readouts.choice import named_readout
from laplora.settings import ExpertSettings
from training.config import RunConfig, config_hash_fields
from training.config.folders import owner
from training.data.examples import Splits
from training.data.section import load_splits
from training.workspace.filled_in import filled_in, parameter_count
from training.workspace.folders import claim, in_use, start_from, trained_from
from training.workspace.processes import joined, own_device, own_spread
from training.workspace.provenance import adapter_inputs
from training.workspace.run import Run, base_spec
from training.workspace.selection import split_off
from training.workspace.terminal import say


def open_run(config: RunConfig) -> Run:
    """Return the run of ``prepared_run`` with its folder begun, and no other job in it.

    The first of several processes fetches files, and has the folder.

    Raises:
        ConfigError: another job in the run's folder; and as ``prepared_run``.
    """
    workers = joined()
    return workers.in_turn(lambda: _opened(config, workers))


def _opened(config: RunConfig, workers: Workers) -> Run:
    run = prepared_run(config, workers)
    if workers.first:
        _begin_folder(run)
        run = replace(run, lock=in_use(run.config.run_dir))
        write_json(run.config.run_dir / "splits.json", run.splits.report)
    return run


def prepared_run(config: RunConfig, workers: Workers = ALONE) -> Run:
    """Return the run with its splits and tokenizer loaded; nothing is written, and what can be refused early is.

    Its configuration is filled in (``training.workspace.filled_in``), and says in which folder it lies.

    Raises:
        ConfigError: no calibration or test rows, a device map for several processes, or golden inputs that the
            template does not take.
        DataError, ModelError, LabelTokenError, DownloadError: data, base or labels that cannot be used.
        ArtifactWriteError: something that is no artifact has the finished one's place.
    """
    spread = own_spread(config.base)
    device = first_device(spread) if spread else own_device(config.base.device, workers)
    held_out = not config.calibration.cross_fits
    splits = load_splits(config.data, seed=config.seed, hold_out=held_out, progress=say)
    splits = as_cut(config, split_off(config, splits))
    _check_splits(config, splits)
    location = locate_base(base_spec(config), progress=say)
    parameters = partial(parameter_count, location, config.base.revision)
    config = filled_in(config, len(splits.train), parameters)
    check_replaceable(config.artifact_dir)
    tokenizer = load_tokenizer(location, config.base.revision)
    task = splits.task
    verbalizers = task.verbalizers or default_verbalizers(task.template, task.labels)
    readout = named_readout(tokenizer, task.template, verbalizers, config.readout)
    return Run(
        config,
        splits,
        location,
        tokenizer,
        verbalizers,
        readout,
        device,
        workers=workers,
        spread=spread,
        experts=suiting_experts(config.experts, task.template),
    )


def suiting_experts(given: ExpertSettings, template: PromptTemplate) -> ExpertSettings:
    """Return settings that name the heads: those that suit the template, where they name none.

    An encoder that nobody named and that cannot be fetched is left out, with a warning.

    Raises:
        ModelError, DownloadError: as of ``load_text_encoding``.
    """
    names = given.names or suiting(template, given.encoder is not None)
    if "encoder" in names and given.encoder is not None:
        try:
            load_text_encoding(given.encoder, progress=say)
        except DownloadError as error:
            if given.names:
                raise
            warn(f"the expert encoder is off: {error}")
            names = tuple(name for name in names if name != "encoder")
    return ExpertSettings(names=names, encoder=given.encoder, keep_rows=given.keep_rows)


def _begin_folder(run: Run) -> None:
    """Give a configuration without a folder one, with the results that it shares with another one of its name."""
    config, begun = run.config, False
    while not begun:  # another job, started at the same moment, may take the folder
        folder = config.run_dir
        if owner(folder) is not None:
            return
        if folder.name != config.name:
            say(f"{config.runs / config.name} belongs to another configuration; this one's results go to {folder}")
        fields, inputs = config_hash_fields(config), adapter_inputs(run)
        shared = trained_from(config.runs, config.name, inputs, fields)
        if shared and not folder.exists():
            say(f"the adapter was trained already, in {shared[0]}: starting from what lies there")
            begun = start_from(shared[0], folder, fields | {"made_from": inputs})
        else:
            begun = claim(folder, fields)


def as_cut(config: RunConfig, splits: Splits) -> Splits:
    """Return the splits with a task that cuts prompts as the configuration says; ConfigError where it cannot."""
    task = splits.task
    if config.cut is None:
        return replace(splits, task=replace(task, template=task.template.cutting_texts()))
    return splits if config.cut.field == "prompt" else replace(splits, task=task.cutting(**dict(config.cut)))


def _check_splits(config: RunConfig, splits: Splits) -> None:
    template = splits.task.template
    for name, rows in (("calibration", splits.calibration), ("test", splits.test)):
        if not rows and not (name == "calibration" and config.calibration.cross_fits):
            raise ConfigError(f"the {name} split is empty, and a run needs it: set data.{name} to a number of rows")
    if config.question is not None:
        check_question(config.question, template, splits.task.labels, several=False)
    check_independent(splits.calibration, config.calibration.guarantee)
    golden_inputs(config.golden_inputs, template, splits.task.labels, [])
