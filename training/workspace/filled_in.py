"""A configuration whose training is filled in: its length in steps, and what it left to the size of the base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import ValidationError

from laplora.errors import ConfigError, ModelError, first_line
from laplora.models.quiet import quiet_loading
from training.config import OptimizerConfig, RunConfig
from training.config.run import problems_of
from training.config.size_defaults import STEPS, size_defaults
from training.workspace.terminal import say

#: More passes over the training rows than this are told of: the ready configurations have 8.
MANY_EPOCHS = 20


def filled_in(config: RunConfig, rows: int, parameters: Callable[[], int]) -> RunConfig:
    """Return the configuration with a learning rate and a number of steps; one that has both, as it is.

    Filled-in values are printed, if anything is fine-tuned, and count as if they had been written, for digests too.

    Args:
        rows: that are trained on; parameters: gives the base's number of parameters, and is asked where it matters.

    Raises:
        ConfigError: steps that do not go together with the rest of the configuration.
    """
    optimizer, tell = config.optimizer, say if config.fine_tune else lambda line: None
    rate, epochs, steps = optimizer.learning_rate, optimizer.epochs, optimizer.steps
    if rate is None or (epochs is None and steps is None):
        count = parameters()
        size = size_defaults(count)
        taken = [f"learning rate {size.learning_rate:g}"] if rate is None else []
        rate = rate or size.learning_rate
        if epochs is None and steps is None:
            steps = STEPS if size.epochs is None else min(optimizer.steps_of(size.epochs, rows), STEPS)
            taken.append(size.length if size.epochs is None else f"{size.length}: {steps} steps")
        tell(f"by the base's {count / 1e6:,.0f} million parameters: {', '.join(taken)} ({size.source})")
    if steps is None:
        assert epochs is not None
        steps = optimizer.steps_of(epochs, rows)
        tell(f"{epochs:g} epochs of {rows} rows, {optimizer.step_rows} a step: {steps} steps")
    if (passes := steps * optimizer.step_rows / max(1, rows)) > MANY_EPOCHS:
        tell(
            f"warning: {steps} steps of {optimizer.step_rows} rows go over {rows} training rows {passes:.0f} times, "
            "which memorises them: give optimizer.epochs, or leave both out"
        )
    fields = dict(optimizer) | {"learning_rate": rate, "epochs": None, "steps": steps}
    if fields == dict(optimizer):
        return config
    try:
        return RunConfig.model_validate(dict(config) | {"optimizer": OptimizerConfig.model_validate(fields)})
    except ValidationError as error:
        raise ConfigError("\n".join(problems_of(error, RunConfig))) from None


def parameter_count(location: str, revision: str | None) -> int:
    """Return the number of parameters of the base at a location, tied ones counted once; no weight is read.

    Raises:
        ModelError: no configuration of a causal language model is there.
    """
    try:
        model = _without_weights(location, revision)
    except ModelError as error:
        raise ModelError(
            f"{error}; name optimizer.learning_rate and optimizer.steps, which its size would choose"
        ) from None
    return sum(parameter.numel() for parameter in model.parameters())


def _without_weights(location: str, revision: str | None) -> Any:
    with quiet_loading():
        from transformers import AutoConfig, AutoModelForCausalLM

    empty: Any = AutoModelForCausalLM.from_config
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
        with torch.device("meta"), quiet_loading():
            return empty(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"base model {location!r}: no configuration can be loaded ({first_line(error)})") from None
