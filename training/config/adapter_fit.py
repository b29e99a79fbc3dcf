"""The options of ``python -m training fit --adapter``: a command line as one checked value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from laplora.errors import ConfigError
from laplora.prompts.templates import TEMPLATES


@dataclass(frozen=True)
class AdapterFit:
    """The options of a fit, and its inputs.

    Attributes:
        adapter: PEFT folder, hub id of one, or an address where one lies.
        initial_adapter: folder of it before training, None where nobody kept it.
        data: file of the rows that it was trained on; calibration, test: of others, None without. ``split``: a fifth of
            ``data`` calibrates, and it was trained on none of its rows.
        template: a name, ``@FILE`` with its text, or the text.
        labels: in class order. None: those that the model names for a classification head, else those of the rows,
            sorted.
        base: None: the one that the adapter names.
        task_type: PEFT's, of a causal language model or a classification head; None: what the adapter says.
        out: folder of the artifact.
        device_map, max_memory: how the base is spread over several devices (``laplora.models.spread``).
    """

    adapter: str
    data: Path
    out: Path
    template: str
    labels: tuple[str, ...] | None = None
    label_field: str = "label"
    groups: str | None = None
    calibration: Path | Literal["split"] | None = None
    test: Path | None = None
    initial_adapter: Path | None = None
    base: str | None = None
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] | None = None
    quantization: Literal["nf4", "none"] = "none"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    max_tokens: int | None = None
    overrides: tuple[str, ...] = ()


def add_options(job: argparse.ArgumentParser) -> None:
    """Give a command line the options that go with ``--adapter``."""
    group = job.add_argument_group("an adapter that was trained elsewhere, in place of --config")
    group.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="PEFT folder, hub id, or hf://, s3://, gs://, https://; gets a posterior without being trained again",
    )
    data = "JSON Lines, CSV or Parquet file of the rows that it was trained on"
    group.add_argument("--data", metavar="FILE", type=Path, help=data)
    group.add_argument("--out", metavar="FOLDER", type=Path, help="folder of the artifact")
    group.add_argument("--template", help=f"the prompt: {', '.join(TEMPLATES)}, @FILE with its text, or the text")
    labels = "in class order (default: those of the rows, sorted; of a classification head, the model's id2label)"
    group.add_argument("--labels", metavar="LABEL", nargs="+", help=labels)
    group.add_argument("--label-field", metavar="NAME", help="field of a row that has its label (default: label)")
    groups = "field whose value rows share that belong together, near-duplicates or turns of a conversation"
    group.add_argument("--groups", metavar="NAME", help=groups)
    calibration = "file of rows that it was not trained on; split: a fifth of --data, of which it was trained on none"
    group.add_argument(
        "--calibration", metavar="FILE", type=lambda value: value if value == "split" else Path(value), help=calibration
    )
    test = "file of rows to measure on; the artifact records the figures, and brings a report of them"
    group.add_argument("--test", metavar="FILE", type=Path, help=test)
    before = "folder of the adapter before training: the prior's centre"
    group.add_argument("--initial-adapter", metavar="FOLDER", type=Path, help=before)
    base = "folder, hub id, offline name or address (default: what the adapter says)"
    group.add_argument("--base", metavar="MODEL", help=base)
    kinds = "CAUSAL_LM, or SEQ_CLS for a classification head (default: what the adapter says)"
    group.add_argument("--task-type", choices=("CAUSAL_LM", "SEQ_CLS"), help=kinds)
    group.add_argument("--quantization", choices=("nf4", "none"), help="of the base (default: none)")
    group.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the base (default: bfloat16)")
    group.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    spread = "over several GPUs: auto, balanced, balanced_low_0, sequential, or a JSON object of each module's GPU"
    group.add_argument("--device-map", metavar="MAP", help=spread)
    limits = 'most weights on each GPU with --device-map, such as \'{"0": "20GiB", "1": "20GiB"}\''
    group.add_argument("--max-memory", metavar="JSON", help=limits)
    group.add_argument("--max-tokens", metavar="COUNT", type=int, help="longest prompt (default: 512)")


#: The options that add_options adds, by their names in the parsed values.
OPTIONS = tuple(name for name in AdapterFit.__dataclass_fields__ if name != "overrides")
_NEEDED = ("data", "out", "template", "calibration")


def request_of(options: argparse.Namespace) -> AdapterFit | None:
    """Return what the command line asks for with ``--adapter``; None where it has ``--config``.

    Raises:
        ConfigError: both, neither, or options of one with the other.
    """
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if options.config is not None:
        if given:
            raise ConfigError(f"--config is a run of training, and {flags} of an adapter trained elsewhere: give one")
        return None
    missing = [f"--{name}" for name in _NEEDED if name not in given]
    if "adapter" not in given:
        raise ConfigError("give --config FILE for a run of training, or --adapter FOLDER for one trained elsewhere")
    if missing:
        rows = ". Calibration rows are such that it was not trained on" if "--calibration" in missing else ""
        raise ConfigError(f"--adapter needs {', '.join(missing)} too{rows}")
    given |= {"labels": tuple(given["labels"])} if "labels" in given else {}
    return AdapterFit(**given, overrides=tuple(options.overrides))
