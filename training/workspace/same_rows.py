"""Whether an artifact was made from the rows that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence

from laplora.artifact.manifest import Manifest
from laplora.errors import ConfigError
from training.config import RunConfig, config_hash_fields
from training.data.examples import Splits


def check_same_rows(
    config: RunConfig, manifest: Manifest, splits: Splits, counts: Sequence[str] = ("rows", "classes")
) -> None:
    """Raise ConfigError unless the artifact was made from this configuration's rows: none may have been trained on.

    Args:
        counts: parts of the splits' report that must be the same.
    """
    expected = config_hash_fields(config)
    # A field that artifacts from before lack is null.
    recorded = {**{name: None for name in expected["data"]}, **manifest.config.get("data", {})}
    same_fields = recorded == expected["data"] and manifest.config.get("seed") == expected["seed"]
    same_counts = all(manifest.data.get(count) == splits.report[count] for count in counts)
    if not (same_fields and same_counts):
        raise ConfigError(
            f"the artifact {manifest.name!r} was made from other rows than this configuration's, so its test rows are "
            "not known to be unseen: run 'python -m training run' with this configuration first"
        )
