"""``python -m benchmarks.study --approximation TASK SEED``: how close each structure comes, from kept Jacobians."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.compute.approximation import compare
from benchmarks.study.config import StudyConfig
from benchmarks.study.publish import publish_variants
from laplora.errors import ConfigError

SPLITS = ("train", "calibration", "test")


def approximate(config: StudyConfig, task: str, seed: str, rows: int, docs: Path) -> list[Path]:
    """Compare every variant of the posterior with the exact one, publish it, and return the files written.

    Args:
        seed: as the command line has it.
        rows: of the test split, from its first; all where it has fewer.

    Raises:
        ConfigError: no such task or seed, too few rows, or Jacobians that were not kept.
        DataError: a damaged published file, or a page without the tables' markers.
    """
    seeds = {str(s): s for s in config.seeds}
    if task not in config.tasks or seed not in seeds:
        raise ConfigError(
            f"the study {config.name!r} has no task {task!r} with seed {seed!r}: its tasks are "
            f"{', '.join(config.tasks)}, its seeds {', '.join(seeds)}"
        )
    if rows < 2:
        raise ConfigError(f"a correlation needs at least two rows, got --rows {rows}")
    folder = config.folder(task, seeds[seed])
    files = [*(f"{split}.jacobians.safetensors" for split in SPLITS), "gathered.json"]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} holds no {', '.join(missing)}: a study keeps Jacobians only when asked to. "
            "Delete result.json there, if any, then run python -m benchmarks.study --keep-jacobians"
        )
    return publish_variants(compare(config, task, seeds[seed], rows), docs)
