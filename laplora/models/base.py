"""Base models, adapters, and the class logits read from them.

A classifier here is a causal language model whose class logits are the rows of ``lm_head`` for the label
tokens, at the last real token. Only those rows are computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from laplora.errors import ArtifactCorruptError, ModelError
from laplora.models.adapter_settings import check_settings
from laplora.models.held_weights import HeldWeights, decide
from laplora.models.quiet import quiet_loading
from laplora.prompts.templates import Batch

ADAPTER = "default"


@dataclass(frozen=True)
class BaseSpec:
    """Which base model, in which number format.

    Attributes:
        model: a name of the offline models, a folder, or a hub id.
        revision: hub revision, None for the default branch.
        quantization: ``nf4`` (bitsandbytes NormalFloat-4 with double quantization, QLoRA, arXiv
            2305.14314) or ``none``.
        dtype: format of the unquantized weights and of the activations.
    """

    model: str
    revision: str | None = None
    quantization: Literal["nf4", "none"] = "nf4"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


class Tape(Protocol):
    """What records the input and output of a linear map that is not called as a module."""

    def record(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """Return ``outputs``, after noting both tensors under ``name``."""
        ...


def resolve_device(device: str) -> torch.device:
    """Return the device to run on; ``auto`` is CUDA where there is one.

    Raises:
        ModelError: no device of that name, no CUDA device, or fewer of them than the number asks for.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for and no CUDA device is there: use 'cpu' or 'auto'")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ModelError(f"no device is called {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ModelError(f"device {device!r} was asked for and the last CUDA device is 'cuda:{last}'")
    return found


def locate_base(spec: BaseSpec, cache: Path | None = None, progress: Callable[[str], None] | None = None) -> str:
    """Return what transformers can load: a folder (fetched if it is an offline model) or a hub id."""
    from laplora.models.offline import OFFLINE_MODELS, ensure_model

    if spec.model in OFFLINE_MODELS:
        return str(ensure_model(spec.model, cache=cache, progress=progress))
    return spec.model


def load_tokenizer(location: str, revision: str | None = None) -> Any:
    """Return the tokenizer at a folder or hub id, with a padding token.

    Raises:
        ModelError: nothing there, or no tokenizer in it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(_unreachable(location, "tokenizer", error)) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(location: str, spec: BaseSpec, *, device: torch.device, dequantize: bool | None = None) -> Any:
    """Return the frozen base model in eval mode; the rest is as in ``load_held_base``."""
    return load_held_base(location, spec, device=device, dequantize=dequantize)[0]


def load_held_base(
    location: str, spec: BaseSpec, *, device: torch.device, dequantize: bool | None = None
) -> tuple[Any, HeldWeights]:
    """Return the frozen base model in eval mode, and how its weights are held.

    Args:
        location: what ``locate_base`` returned.
        dequantize: replace each 4-bit weight by its own dequantized values once, at load. The same
            numbers, faster on a CPU, in more memory; None means on a CPU with the memory for it.

    Raises:
        ModelError: nothing to load there, weights that are pickled or an architecture that is Python code of the
            model's own, one whose logits are not a plain linear read-out, or no bitsandbytes.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from laplora.models.probe import check_readout

    dtype = getattr(torch, spec.dtype)
    options: dict[str, Any] = {}
    if spec.quantization == "nf4":
        try:
            with quiet_loading():
                import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ModelError("nf4 needs bitsandbytes: pip install 'laplora[quantization]'") from error
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": device}
    try:
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(
                location,
                revision=spec.revision,
                dtype=dtype,
                attn_implementation="sdpa",
                # Said outright: left open, transformers asks whoever sits at the terminal whether to run it.
                trust_remote_code=False,
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise ModelError(_unreachable(location, "causal language model", error)) from None
    if spec.quantization == "nf4":
        keep_4bit_differentiable(model)
        held = decide(expanded_bytes(model, dtype), device, dequantize)
        if held.held == "expanded":
            dequantize_linears(model, dtype)
    else:
        held = HeldWeights("plain", "the base is not quantized")
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    check_readout(model)
    return model, held


def _unreachable(location: str, what: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"base model {location!r}: no {what} can be loaded from it; give an offline model's name, a folder, or a hub "
        f"id that this machine can reach ({reason})"
    )


def keep_4bit_differentiable(model: Any) -> None:
    """Turn off bitsandbytes' inference-only weight layout, in place.

    On CPUs with AVX512-BF16, ``Linear4bit`` repacks its weight at the first forward without gradient in
    eval mode, and every later backward through it silently yields no gradient (seen in bitsandbytes 0.50).
    """
    for module in packed_linears(model).values():
        module.support_avx512bf16_for_cpu = False


def packed_linears(model: Any) -> dict[str, Any]:
    """Return the bitsandbytes 4-bit linears by module path."""
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def expanded_bytes(model: Any, dtype: torch.dtype) -> int:
    """Return the bytes that the 4-bit weights take once expanded."""
    entries: int = sum(m.in_features * m.out_features for m in packed_linears(model).values())
    return entries * dtype.itemsize


def dequantize_linears(model: Any, dtype: torch.dtype) -> None:
    """Replace each bitsandbytes 4-bit linear by a plain one holding the dequantized weight, in place."""
    for name in list(packed_linears(model)):  # names alone, so that each packed weight goes as its own comes
        module = model.get_submodule(name)
        weight = plain_weight(module, dtype)
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    # transformers and peft dispatch on these two marks, and the weights are plain now.
    model.is_loaded_in_4bit = False
    model.is_quantized = False
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def plain_weight(linear: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a linear's weight (out, in), expanded where it is in 4 bits."""
    weight: Any = linear.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    result: torch.Tensor = weight.to(dtype)
    return result


def attach_adapter(model: nn.Module, folder: Path) -> Any:
    """Return the base model with the PEFT adapter in ``folder``, frozen, in eval mode.

    Raises:
        ModelError: an adapter of a kind the method does not cover, one that changes the base's weights, or one of a
            module that does not run once on every token (``laplora.models.probe.check_adapted``).
        ArtifactCorruptError: adapter files that cannot be read, or that do not hold exactly the LoRA
            matrices of this base, each finite.
    """
    from safetensors import SafetensorError

    from laplora.models.probe import check_adapted

    with quiet_loading():
        from peft import PeftModel

    try:
        check_settings(folder)
        with quiet_loading(), warnings.catch_warnings():
            # what peft only warns of is checked below, and refused
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactCorruptError(f"the adapter in {folder.name!r} does not load on this base: {reason}") from None
    layers = lora_layers(peft_model)
    verify_adapter(folder, layers)
    peft_model.requires_grad_(False)
    peft_model.eval()
    check_adapted(peft_model)
    return peft_model


def verify_adapter(folder: Path, layers: Mapping[str, Any]) -> None:
    """Raise ArtifactCorruptError where the file is not exactly the layers' matrices, each finite."""
    from safetensors import safe_open

    expected = {f"base_model.model.{name}.{side}.weight" for name in layers for side in ("lora_A", "lora_B")}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        found = set(file.keys())
        if found != expected:
            raise ArtifactCorruptError(
                f"the adapter in {folder.name!r} does not hold the LoRA matrices of this base: missing "
                f"{sorted(expected - found)[:2]}, not expected {sorted(found - expected)[:2]}"
            )
        tensors = {name: file.get_tensor(name) for name in sorted(found)}
    odd = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if odd:
        raise ArtifactCorruptError(f"the adapter in {folder.name!r} holds {tensors[odd[0]].dtype}: {odd[:2]}")
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ArtifactCorruptError(f"the adapter in {folder.name!r} holds NaN or infinity: {broken[:2]}")


def lora_layers(model: Any) -> dict[str, Any]:
    """Return the LoRA layers of a PEFT model by module path in the base model, in module order.

    Raises:
        ModelError: no LoRA layer, another kind of adapter, or trained parameters that the posterior would
            not cover (DoRA, LoRA biases, adapted embeddings, convolutions, ``modules_to_save``).
    """
    from peft.tuners.lora import LoraLayer

    config = model.peft_config[ADAPTER]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ModelError(f"the adapter is of the kind {kind}; only LoRA is covered")
    for name in ("trainable_token_indices", "target_parameters", "layer_replication"):
        if getattr(config, name, None):
            raise ModelError(f"the adapter sets {name}, which the posterior does not cover")
    if getattr(config, "modules_to_save", None):
        raise ModelError(f"the adapter retrains whole modules ({config.modules_to_save}); only LoRA is covered")
    if config.bias != "none" or getattr(config, "lora_bias", False):
        raise ModelError("the adapter trains biases; set bias='none' and lora_bias=False")
    layers: dict[str, Any] = {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if getattr(module, "lora_embedding_A", None):
            raise ModelError(f"{name} is an embedding with LoRA, which the posterior does not cover")
        if ADAPTER not in module.lora_A:
            continue
        if getattr(module, "use_dora", {}).get(ADAPTER) or getattr(module, "lora_variant", {}).get(ADAPTER):
            raise ModelError(f"{name} uses a LoRA variant (such as DoRA), which the posterior does not cover")
        plain = module.get_base_layer()
        if not isinstance(plain, nn.Linear) or not all(
            isinstance(s[ADAPTER], nn.Linear) for s in (module.lora_A, module.lora_B)
        ):
            raise ModelError(f"{name} is a {type(plain).__name__}; only adapted linear layers (nn.Linear) are covered")
        layers[name] = module
    if not layers:
        raise ModelError("the adapter has no LoRA layer on this base model")
    return layers


def last_hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Return the final hidden state at the last real token, (batch, hidden)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, base.base_model_prefix)
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    hidden: torch.Tensor = output.last_hidden_state[:, -1]
    return hidden


def label_logits(model: Any, hidden: torch.Tensor, label_ids: Sequence[int], tape: Tape | None = None) -> torch.Tensor:
    """Return the class logits, (batch, classes), float32 (float64 for a float64 model).

    Args:
        hidden: (batch, hidden), from ``last_hidden``.
        label_ids: token id of each class.
        tape: records the label rows of an adapted ``lm_head``'s ``lora_B``, which is no module call.
    """
    head = output_head(model)
    rows = torch.tensor(list(label_ids), device=hidden.device)
    layer = getattr(head, "base_layer", head)
    wide = torch.promote_types(torch.float32, hidden.dtype)
    bias = None if layer.bias is None else layer.bias[rows].to(wide)
    logits: torch.Tensor = F.linear(hidden.to(wide), layer.weight[rows].to(wide), bias)
    if layer is head or head.disable_adapters:
        return logits
    down = head.lora_A[ADAPTER]
    low = down(head.lora_dropout[ADAPTER](hidden.to(down.weight.dtype)))
    up = F.linear(low, head.lora_B[ADAPTER].weight[rows])
    if tape is not None:
        up = tape.record(head_name(model) + ".lora_B", low, up)
    scaling: float = head.scaling[ADAPTER]
    return logits + scaling * up.to(wide)


@torch.no_grad()
def label_mass(model: Any, hidden: torch.Tensor, label_ids: Sequence[int], class_mask: torch.Tensor) -> torch.Tensor:
    """Return the probability that the full-vocabulary softmax puts on the possible labels, (batch,) in [0, 1].

    Args:
        hidden: (batch, hidden).
        class_mask: (batch, classes) bool.
    """
    vocabulary: torch.Tensor = output_head(model)(hidden).float()
    rows = torch.tensor(list(label_ids), device=hidden.device)
    labels = vocabulary[:, rows].masked_fill(~class_mask, -torch.inf)
    mass: torch.Tensor = (labels.logsumexp(-1) - vocabulary.logsumexp(-1)).exp().clamp(0, 1)
    return mass


def output_head(model: Any) -> Any:
    """Return the output embedding, as PEFT wraps it where it is adapted."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_output_embeddings()


def head_name(model: Any) -> str:
    """Return the module path of the output embedding (``lm_head`` in most models)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    name: str = next(name for name, module in base.named_modules() if module is head)
    return name


def weights_hash(location: str, revision: str | None = None, cache: Path | None = None) -> str:
    """Return ``sha256:`` and the digest of a base model's weights, whatever files hold them.

    Tensors enter by sorted name with dtype, shape and bytes, so resharding does not change the hash. The files are
    those that transformers loads: ``model.safetensors``, or else exactly the shards that the index names; others in the
    folder do not count. The result is remembered per file size and modification time, since hashing reads every byte.

    Raises:
        ModelError: no safetensors weights, an index that cannot be read, or one that names a file that is not there.
    """
    from laplora.models.wheels import cache_root

    files = weight_files(location, revision)
    key = hashlib.sha256(
        json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]).encode()
    ).hexdigest()
    note = cache_root(cache) / "weight-hashes" / key
    if note.is_file():
        return note.read_text(encoding="ascii")
    value = "sha256:" + _hash_tensors(files)
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_suffix(f".{os.getpid()}")
    temporary.write_text(value, encoding="ascii")
    temporary.replace(note)
    return value


def weight_files(location: str, revision: str | None = None) -> list[Path]:
    """Return the files that hold a checkpoint's weights, in order of name; fetched if they are on the hub.

    Raises:
        ModelError: as ``weights_hash``.
    """
    folder, local = Path(location), Path(location).is_dir()
    if not local:
        folder = _fetch(location, revision, ["config.json", _WHOLE, _INDEX])
    names = [_WHOLE, _INDEX] if (name := _named_weights(folder)) is None else [name]
    if not local:
        folder = _fetch(location, revision, names)
    present = next((folder / name for name in names if (folder / name).is_file()), None)
    if present is None:
        raise ModelError(f"base model {location!r} has no safetensors weights; laplora loads no pickled ones")
    if not present.name.endswith(".index.json"):
        return [present]
    shards = _indexed(present, location)
    if not local:
        folder = _fetch(location, revision, shards)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"base model {location!r}: {present.name} names {missing[0]!r}, which is not there: fetch it again"
        )
    return [folder / shard for shard in shards]


_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def _named_weights(folder: Path) -> str | None:
    """Return the file that the configuration names for the weights, if it names one; transformers loads that one."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _indexed(index: Path, location: str) -> list[str]:
    """Return the names of an index's shards, each once, in order of name."""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not shards or any(s != Path(s).name or not s.endswith(".safetensors") for s in shards):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"base model {location!r}: {index.name} does not map tensors to safetensors files of its folder: fetch it "
            "again"
        ) from None
    return sorted(shards)


def _fetch(location: str, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(location, revision=revision, allow_patterns=names))


def _hash_tensors(files: Sequence[Path]) -> str:
    from safetensors import safe_open

    owners: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            owners.update(dict.fromkeys(handle.keys(), file))
    digest = hashlib.sha256()
    for name in sorted(owners):
        with safe_open(owners[name], framework="pt") as handle:
            tensor = handle.get_tensor(name).contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Return ``sha256:`` and the digest of the tokenizer's vocabulary, merges and processing."""
    state = tokenizer.backend_tokenizer.to_str()
    return "sha256:" + hashlib.sha256(state.encode()).hexdigest()
