"""How many parameters a base has, without its weights."""

from __future__ import annotations

from typing import Any

import torch

from laplora.errors import ModelError, first_line
from laplora.models.quiet import quiet_loading


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
