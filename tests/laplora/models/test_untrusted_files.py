"""Base models are read, never run: no unpickling, no code that they bring; and what is no base is refused by name."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_base
from transformers import AutoModelForCausalLM

from laplora.errors import ModelError
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, resolve_device

ROOT = Path(__file__).resolve().parents[3]


def offences(tree: ast.AST) -> Iterator[str]:
    """Yield what of a file's syntax could run code of a model. ruff looks for pickles and ``eval``."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        trusted = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
        if any(not (isinstance(value, ast.Constant) and value.value is False) for value in trusted):
            yield "trust_remote_code is not False"
        called = ast.unparse(node.func)
        if "Auto" in called and called.endswith(".from_pretrained") and not trusted:
            yield f"{called} does not say trust_remote_code=False"
        if called == "torch.load" and "weights_only=True" not in ast.unparse(node):
            yield "torch.load without weights_only=True"


@pytest.mark.parametrize("package", ["laplora", "service", "training"])
def test_no_code_runs_what_it_loads(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    caught = {str(file): list(offences(ast.parse(file.read_text(encoding="utf-8")))) for file in files}
    assert {file: problems for file, problems in caught.items() if problems} == {}
    # What the search finds.
    bad = ("AutoModel.from_pretrained(p)", "f(trust_remote_code=flag)", "torch.load(p, weights_only=False)")
    assert all(list(offences(ast.parse(code))) for code in bad)
    assert not list(offences(ast.parse("AutoModel.from_pretrained(p, trust_remote_code=False)")))


@pytest.fixture
def with_code(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """A base of a kind that transformers does not have, whose classes are in a Python file beside it."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'was-run')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    change(folder / "config.json", model_type="own", auto_map=AUTO_MAP)
    return folder


AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
SPEC = BaseSpec("base", quantization="none", dtype="float32")
CPU = torch.device("cpu")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_base_with_code_of_its_own_is_refused_and_its_code_not_run(
    with_code: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    """Nor that of its tokenizer. The refusal is ours: transformers runs the same folder's code where it is told to."""
    with pytest.raises(ModelError, match="custom code"):
        load_base_model(str(with_code), SPEC, device=CPU)
    names = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    change(with_code / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
    with pytest.raises(ModelError, match="custom code"):
        load_tokenizer(str(with_code))
    assert not (tmp_path / "was-run").exists()
    own = json.loads((with_code / "config.json").read_text())["model_type"]
    change(
        with_code / "config.json", model_type=json.loads((tiny_base_folder / "config.json").read_text())["model_type"]
    )
    model = load_base_model(str(with_code), SPEC, device=CPU).model
    assert type(model).__module__.startswith("transformers.models.")
    assert not (tmp_path / "was-run").exists()
    change(with_code / "config.json", model_type=own)
    AutoModelForCausalLM.from_pretrained(with_code, trust_remote_code=True)
    assert (tmp_path / "was-run").exists()


def test_pickled_weights_are_not_loaded(tiny_base_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "pickled"))
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError):
        load_base_model(str(folder), SPEC, device=CPU)


def test_a_device_and_a_base_that_are_not_there(tmp_path: Path) -> None:
    for device in ("gpu", "cuda:x", "cuda:99"):
        with pytest.raises(ModelError, match="device"):
            resolve_device(device)
    for location in ("/nowhere/at/all", str(tmp_path)):
        with pytest.raises(ModelError, match=f"base model '{location}': no tokenizer can be loaded"):
            load_tokenizer(location)
        with pytest.raises(ModelError, match=f"base model '{location}': no causal language model can be loaded"):
            load_base_model(location, SPEC, device=CPU)


def test_a_base_that_is_an_adapter_of_another_model_is_refused(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Else transformers would load what the adapter names, which nobody looked at."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base_folder, folder)
    load_base_model(str(folder), BaseSpec(str(folder)), device=CPU)
    named = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(tiny_base_folder)}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    with pytest.raises(ModelError, match="it is an adapter of another model"):
        load_base_model(str(folder), BaseSpec(str(folder)), device=CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "this_module"},
        {"auto_mapping": {"parent_library": "this_module", "base_model_class": "A"}},
    ],
)
def test_adapter_that_names_modules_is_refused_before_one_is_imported(
    artifact_copy: Path, tmp_path: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "this_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = artifact_copy / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    with pytest.raises(ModelError, match=next(iter(settings))):
        attach_adapter(tiny_base("llama"), file.parent)
