"""Examples from a data set of the hub that the configuration names, through a prompt template and label words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from laplora.data.labelled import Task, examples_of, without_gaps
from laplora.data.parquet import plain
from laplora.data.records import Record
from laplora.errors import ConfigError, DownloadError, first_line, install
from training.data.examples import ROLES, Pool, Role, Source
from training.data.files import check_label_field

#: The prefix of a configuration's data set from the hub.
PREFIX = "hub:"


class HubSplits(BaseModel):
    """Which rows of a data set of the hub. A split that is not named is taken out of ``train``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str | None = Field(default=None, description="the data set's configuration (subset); null: its only one")
    revision: str | None = Field(default=None, description="branch, tag or commit; null: the default branch")
    train: str = Field(default="train", description="the hub's split, as train or train[:1000]")
    calibration: str | None = Field(default=None, description="the same; null: rows of train")
    test: str | None = Field(default=None, description="the same; null: rows of train")


def read_hub_splits(
    hub_id: str,
    splits: HubSplits,
    task: Task,
    label_field: str,
    label_map: Mapping[str, str],
    columns: Mapping[str, str],
    groups: str | None = None,
) -> Source:
    """Return the rows of a data set of the hub, or of a folder that is called so, through ``datasets`` and its cache.

    A class number becomes the name that the data set has for it, unless ``label_map`` has none of these names: it is
    then from the numbers.

    Raises:
        ConfigError: a split named twice, a reader of files' name, or as of ``check_label_field``.
        DownloadError: a split that cannot be loaded.
        DataError: rows that cannot be used; the message names split, row and field.
    """
    check_label_field(task, label_field, columns)
    given: dict[Role, str | None] = {"calibration": splits.calibration, "test": splits.test}
    roles: dict[str, tuple[Role, ...]] = {splits.train: tuple(role for role in ROLES if given.get(role) is None)}
    for role, name in given.items():
        if name in roles:
            raise ConfigError(f"hub names {name} for more than one split: give it as train alone to have it split")
        if name is not None:
            roles[name] = (role,)
    pools, warnings = [], []
    for name, of in roles.items():
        place, records = f"{hub_id} {name}", _rows(hub_id, splits, name, label_field, label_map)
        records, lines = without_gaps(place, records, task, label_field, label_map, columns)
        pools.append(Pool(place, examples_of(place, records, task, label_field, label_map, columns, groups=groups), of))
        warnings += lines
    words = [hub_id, *([splits.config] if splits.config else []), *([splits.revision] if splits.revision else [])]
    kind = "folder" if Path(hub_id).is_dir() else "hub"
    return Source(task, tuple(pools), "hub", f"{kind}: {' '.join(words)} ({', '.join(roles)})", tuple(warnings))


def _rows(hub_id: str, splits: HubSplits, name: str, label_field: str, label_map: Mapping[str, str]) -> list[Record]:
    try:
        import datasets
    except ImportError as error:
        raise DownloadError(f"a data set of the hub needs datasets: {install('training')}") from error
    if hub_id in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # it would read what lies where the job runs
        raise ConfigError(
            f"'{PREFIX}{hub_id}' is a reader of files and no data set: rows in a file are dataset: file with data.path"
        )
    try:
        table = datasets.load_dataset(hub_id, splits.config, split=name, revision=splits.revision)
    except Exception as error:  # whatever the network, the hub or its cache raise
        raise DownloadError(
            f"the hub's {hub_id} ({name}) could not be loaded ({type(error).__name__}: {first_line(error)}): check its "
            "name, data.hub, the connection and HF_ENDPOINT"
        ) from error
    label = table.features.get(label_field)
    names = label.names if isinstance(label, datasets.ClassLabel) else None
    if label_map and names is not None and not set(names) & set(label_map):
        names = None

    def values(row: dict[str, Any]) -> dict[str, Any]:
        made = {key: plain(value) for key, value in row.items()}
        number = made.get(label_field)
        if names is not None and isinstance(number, int) and 0 <= number < len(names):
            made[label_field] = names[number]
        return made

    return [Record(number, values(row)) for number, row in enumerate(table, 1)]
