"""How much a training row counts by its label, as numbers."""

from __future__ import annotations

from laplora.errors import ConfigError
from laplora.linearised import targets_of
from laplora.prompts.examples import label_tensor
from training.config import RunConfig
from training.data.examples import Splits
from training.workspace.terminal import say


def weighed(config: RunConfig, splits: Splits) -> RunConfig:
    """Return the configuration with a weight for each label, in class order, of mean 1 over the training rows.

    So all rows together count as often as they are, and a prior means what it does without weights. A label that is not
    named, or that no training row has, counts as 1 before that.

    Raises:
        ConfigError: a weight of something that is no label.
    """
    given, labels = config.optimizer.class_weights, splits.task.labels
    if given is None:
        return config
    each = targets_of(label_tensor(splits.train, len(labels)), len(labels)).sum(0).tolist()
    rows = dict(zip(labels, each, strict=True))
    if given == "balanced":
        raw = {label: 1 / rows[label] if rows[label] else None for label in labels}
    else:
        if unknown := sorted(given.keys() - set(labels)):
            raise ConfigError(f"optimizer.class_weights names {unknown}, which are not among the labels {list(labels)}")
        raw = {label: given.get(label, 1.0) for label in labels}
    total = sum(weight * rows[label] for label, weight in raw.items() if weight is not None)
    weights = {
        label: 1.0 if weight is None else float(f"{weight * len(splits.train) / total:.6g}")
        for label, weight in raw.items()
    }
    if given == "balanced":
        say("class weights: " + ", ".join(f"{label} {weight:.3g}" for label, weight in weights.items()))
    optimizer = config.optimizer.model_copy(update={"class_weights": weights})
    return config.model_copy(update={"optimizer": optimizer})
