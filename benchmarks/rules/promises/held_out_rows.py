"""A finished artifact's held-out rows at every setting of its calibration: the table that real rows are dealt from."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file

from benchmarks.rules.promises.models import real_table
from benchmarks.rules.promises.table import Column, Table
from laplora.jacobians.contrasts import find_blocks
from laplora.models.adapters import attach_adapter
from laplora.posterior.file import read_posterior
from laplora.posterior.subset import select_blocks
from training.calibration.projected import project_split
from training.config import load_config
from training.workspace.runtime import open_run


def held_out_table(config_file: Path, artifact: Path | None, rows: int | None) -> Table:
    """Return rows that a run did not train on: those of its calibration and test splits, in that order.

    Args:
        config_file: of the run.
        artifact: folder with ``adapter/`` and ``posterior.safetensors``; None: where the run puts its artifact.
        rows: so many of them, the first ones; None: all.
    """
    config = load_config(config_file)
    with TemporaryDirectory() as folder:
        run = open_run(config.model_copy(update={"runs": Path(folder)}))
    artifact = artifact or config.artifact_dir
    model = attach_adapter(run.load_base(), artifact / "adapter")
    blocks = select_blocks(find_blocks(model, run.class_count), config.laplace.subset)
    posterior = read_posterior(artifact / "posterior.safetensors", blocks)
    examples = (*run.splits.calibration, *run.splits.test)[:rows]
    return real_table(project_split(run, model, posterior, examples, "held-out rows"), posterior, blocks)


def write_table(path: Path, table: Table) -> None:
    """Write a table as safetensors."""
    tensors = {"labels": table.labels, "class_mask": table.class_mask, "label_mass": table.label_mass}
    for name, column in table.columns.items():
        tensors |= {f"{name}.{field}": value for field, value in vars(column).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def read_table(path: Path) -> Table:
    """Return the table in a file."""
    tensors = load_file(path)
    names = dict.fromkeys(name.split(".")[0] for name in tensors if "." in name)
    fields = ("probs", "std", "expected_entropy", "losses")
    columns = {name: Column(**{field: tensors[f"{name}.{field}"] for field in fields}) for name in names}
    return Table(columns, tensors["labels"], tensors["class_mask"], tensors["label_mass"])
