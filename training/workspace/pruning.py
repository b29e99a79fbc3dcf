"""Which decoder layers a run's base is without: chosen once, by the run's own training prompts, and kept in its folder.

The choice needs no labels. The folds of a run have its choice, so that they share its base.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ConfigError, ModelError
from laplora.files import write_json
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch
from training.config import RunConfig
from training.data.examples import Splits
from training.workspace.layer_similarity import LayerBlock, most_similar_block, states_between_layers
from training.workspace.terminal import say

#: What a run's folder has about the layers that were removed.
REMOVED = "removed_layers.json"
#: Training prompts that choose them, at most.
PROMPTS = 64


@dataclass(frozen=True)
class Pruning:
    """How many layers a run removes, and what chooses them.

    Attributes:
        count: of consecutive layers; prompts: training rows whose states are compared.
        folder: where the choice is kept; None: nowhere, as of a run that is only checked.
    """

    count: int
    prompts: tuple[Example, ...]
    folder: Path | None = None

    def layers(self, made_from: str, load: Callable[[], Any], batches: Callable[[], Sequence[Batch]]) -> LayerBlock:
        """Return the layers to remove: those that were kept, else those that are chosen and kept now.

        Args:
            made_from: digest of what the choice depends on, beside ``count``.
            load: gives the whole base; batches: the prompts, on its device.

        Raises:
            ModelError, NonFiniteError: as of ``training.workspace.layer_similarity``.
        """
        if (kept := self._kept(made_from)) is not None:
            return kept
        model = load()
        block = most_similar_block(torch.cat([states_between_layers(model, batch) for batch in batches()]), self.count)
        del model
        gc.collect()  # modules refer to each other, and the base is loaded again, without these layers
        say(
            f"{_named(block.layers)} removed, counted from 0: of {self.count} in a row the least change of the state "
            f"at the last token, {block.distance:.3f} of a half turn in the mean of {len(self.prompts)} prompts"
        )
        if self.folder is not None:
            fields = {"made_from": made_from, **asdict(block), "prompts": len(self.prompts)}
            write_json(self.folder / REMOVED, fields)
        return block

    def _kept(self, made_from: str) -> LayerBlock | None:
        if self.folder is None or not (self.folder / REMOVED).is_file():
            return None
        try:
            fields = json.loads((self.folder / REMOVED).read_bytes())
            block = LayerBlock(tuple(fields["layers"]), float(fields["distance"]))
            whole = fields["made_from"] == made_from and len(block.layers) == self.count
        except (ValueError, TypeError, LookupError):
            say(f"{self.folder / REMOVED} cannot be read: the layers are chosen again, by the same prompts")
            return None
        return block if whole else None


def pruning_of(config: RunConfig, splits: Splits, layers: Callable[[], int]) -> Pruning | None:
    """Return a run's pruning, its prompts drawn from the training rows by the run's seed; None without.

    Args:
        layers: gives the number of the base's layers, and is asked where it matters.

    Raises:
        ConfigError: as many layers as the base has, or more; or a base whose layers are not found.
    """
    count, rows = config.base.prune_layers, splits.train
    if not count:
        return None
    try:
        available = layers()
    except ModelError as error:
        raise ConfigError(f"base.prune_layers: no layers can be removed ({error})") from None
    if count >= available:
        raise ConfigError(
            f"base.prune_layers is {count}, and the base model has {available} layers: remove {available - 1} at most"
        )
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))[:PROMPTS]
    return Pruning(count, tuple(rows[i] for i in drawn.sort().values.tolist()))


def _named(layers: Sequence[int]) -> str:
    return f"layer {layers[0]} is" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]} are"
