"""Base models and their tokenizers: located, loaded, frozen; and which base a model in memory is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from laplora.errors import ModelError, first_line, install
from laplora.models.checkpoints import MOST_BYTES, fetch_checkpoint
from laplora.models.held_weights import (
    HeldWeights,
    decide,
    dequantize_linears,
    expanded_bytes,
    keep_4bit_differentiable,
)
from laplora.models.offline import OFFLINE_ENCODERS, OFFLINE_MODELS, ensure_encoder, ensure_model, offline_name
from laplora.models.probe import check_head, check_readout, check_states
from laplora.models.quiet import only_errors_logged, quiet_loading
from laplora.models.spread import Spread, check_spread, first_device
from laplora.models.wheels import Progress
from laplora.remote.address import is_address

_CAUSAL = "causal language model"
#: Modules of classifiers' heads, which are not quantized: they are trained, or small.
_HEADS = ("score", "classifier", "pre_classifier", "pooler", "head")


@dataclass(frozen=True)
class BaseSpec:
    """Which base model, in which number format.

    Attributes:
        model: a name of the offline models, a folder, a hub id, or an address (``laplora.remote.address``).
        revision: of a hub id; None: the default branch.
        quantization: ``nf4`` (NormalFloat-4 with double quantization, QLoRA, arXiv 2305.14314) or ``none``.
        dtype: format of the unquantized weights and of the activations.
        classes: of the head of a sequence classification model; 0: a model without a head, such as an encoder; None: a
            causal language model.
    """

    model: str
    revision: str | None = None
    quantization: Literal["nf4", "none"] = "nf4"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    classes: int | None = None

    def __str__(self) -> str:
        return f"{self.model!r} ({self.quantization}, {self.dtype})"


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base model as loaded: frozen, in eval mode, without any adapter; and how its weights are held.

    Attributes:
        missing: names of parameters that its checkpoint does not have, as of a head that is still to come; random.
    """

    model: Any
    weights: HeldWeights
    missing: frozenset[str] = frozenset()


def resolve_device(device: str) -> torch.device:
    """Return the device to run on; ``auto`` is CUDA where there is one. Raises ModelError where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} needs a CUDA device and there is none: use 'cpu' or 'auto'")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f"no device is called {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ModelError(f"there is no device {device!r}: the last CUDA device is 'cuda:{last}'")
    return chosen


def locate_base(
    spec: BaseSpec,
    cache: Path | None = None,
    progress: Progress | None = None,
    *,
    kind: Literal["base", "tokenizer"] = "base",
    most_bytes: int = MOST_BYTES,
    pin: str | None = None,
) -> str:
    """Return what transformers can load: a folder, fetched if it is an offline model or an address; or a hub id.

    Args:
        kind: for ``tokenizer`` no weights are fetched from an address. The others, and errors, are those of
            ``fetch_checkpoint``; of an offline model those of ``ensure_model``.
    """
    if spec.model in OFFLINE_ENCODERS:
        return str(ensure_encoder(spec.model, cache=cache, progress=progress))
    if spec.model in OFFLINE_MODELS:
        return str(ensure_model(spec.model, cache=cache, progress=progress))
    if is_address(spec.model):
        fetched = fetch_checkpoint(spec.model, kind, cache=cache, progress=progress, most_bytes=most_bytes, pin=pin)
        return str(fetched)
    return spec.model


def load_tokenizer(location: str, revision: str | None = None) -> Any:
    """Return the tokenizer at a folder or hub id, with a padding token. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreachable(location, "tokenizer", error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(
    location: str,
    spec: BaseSpec,
    *,
    device: torch.device | Spread,
    dequantize: bool | None = None,
) -> LoadedBase:
    """Return the base model at what ``locate_base`` returned.

    Args:
        device: or how it is spread over several devices.
        dequantize: whether to expand 4-bit weights at load (``laplora.models.held_weights``); None: on a CPU with the
            memory for it.

    Raises:
        ModelError: nothing to load there, weights that are pickled or an architecture that is Python code of the
            model, one whose logits are not a plain linear read-out (of a classifier: its head's), or no bitsandbytes;
            a device map that does not fit the model, the GPUs that there are, or their memory.
    """
    from transformers import BitsAndBytesConfig

    dtype, first = getattr(torch, spec.dtype), first_device(device) if isinstance(device, Spread) else device
    options: dict[str, Any] = {}
    if spec.quantization == "nf4":
        try:
            with quiet_loading():
                import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ModelError(f"nf4 needs bitsandbytes: {install('quantization')}") from error
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(_HEADS) if spec.classes else None,
        )
        options["device_map"] = {"": device}
    if isinstance(device, Spread):
        options |= device.options
    try:
        _check_no_adapter(location, spec.revision)
        with quiet_loading(), only_errors_logged() if spec.classes else nullcontext():
            model, missing = _from_pretrained(
                location,
                spec.classes,
                revision=spec.revision,
                dtype=dtype,
                # Without it transformers would ask at the terminal whether to run the model's code.
                trust_remote_code=False,
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError) as error:
        what = "sequence classification model" if spec.classes else "model" if spec.classes == 0 else _CAUSAL
        raise _unreachable(location, what, error) from None
    if spec.quantization == "nf4":
        keep_4bit_differentiable(model)
    if isinstance(device, Spread):
        check_spread(model)
    if spec.quantization == "nf4":
        held = decide(expanded_bytes(model, dtype), first, dequantize)
        if held.held == "expanded":
            dequantize_linears(model, dtype)
    else:
        held = HeldWeights("plain", "the base is not quantized")
        if not isinstance(device, Spread):
            model.to(device)
    model.requires_grad_(False)
    model.eval()
    check = check_readout if spec.classes is None else check_head if spec.classes else check_states
    check(model)
    return LoadedBase(model, held, missing)


def _check_no_adapter(location: str, revision: str | None) -> None:
    """Raise ModelError where transformers would load the base that an adapter there names, wherever that is."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(location, revision=revision) is not None:
        raise ModelError(
            f"base model {location!r}: holds an adapter_config.json, so it is an adapter of another model: name that "
            "one as the base, or merge the two and save the result without it"
        )


def _from_pretrained(location: str, classes: int | None, **options: Any) -> tuple[Any, frozenset[str]]:
    """Return the model, and the names of parameters that the checkpoint does not have in their shape.

    It has torch's fused attention where its class has that (Gemma 2 caps the attention's scores).
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    load: Any = AutoModelForCausalLM.from_pretrained
    if classes == 0:
        load = AutoModel.from_pretrained
    elif classes is not None:
        load = AutoModelForSequenceClassification.from_pretrained
        options |= {"num_labels": classes, "ignore_mismatched_sizes": True}
    options["output_loading_info"] = True
    try:
        model, info = load(location, attn_implementation="sdpa", **options)
    except ValueError as error:  # raised before any weight is read
        if "scaled_dot_product_attention" not in str(error):
            raise
        model, info = load(location, attn_implementation="eager", **options)
    missing = {*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])}
    return model, frozenset(missing) if classes else frozenset()


def _unreachable(location: str, what: str, error: Exception) -> ModelError:
    return ModelError(
        f"base model {location!r}: no {what} can be loaded from it; give an offline model's name, a folder, or a hub "
        f"id that this machine can reach ({first_line(error)})"
    )


def base_spec_of(model: Any, name: str | None = None) -> BaseSpec:
    """Return which base model one in memory is, so that it can be loaded again.

    Args:
        model: a causal language model or a classifier, without PEFT's wrapping.
        name: of the base; None: what the model says of itself.

    Raises:
        ModelError: one that was not loaded from a folder or the hub, or in a number format that no artifact has.
    """
    location = name or str(getattr(model.config, "_name_or_path", "") or "")
    if not location:
        raise ModelError(
            "the base model was not loaded from a folder or the hub, and an artifact could not load it again: save it "
            "with save_pretrained and load it from there, or name it with base="
        )
    given = getattr(model.config, "quantization_config", None)
    settings = given if isinstance(given, dict) or given is None else given.to_dict()
    quantization: Literal["nf4", "none"] = getattr(model, "expanded_from", "none")
    if settings is not None:
        is_nf4 = settings.get("load_in_4bit") and settings.get("bnb_4bit_quant_type") == "nf4"
        if not (is_nf4 and settings.get("bnb_4bit_use_double_quant")):
            raise ModelError(
                "an artifact's base is unquantized or in nf4 with double quantization; this model's quantization is "
                "another one: load it with bnb_4bit_quant_type='nf4' and bnb_4bit_use_double_quant=True"
            )
        quantization = "nf4"
    number_format = str(model.dtype).removeprefix("torch.")
    if number_format not in ("bfloat16", "float32"):
        raise ModelError(f"an artifact's base is in bfloat16 or float32, this model is in {number_format}: convert it")
    dtype: Literal["bfloat16", "float32"] = "float32" if number_format == "float32" else "bfloat16"
    known = None if name else offline_name(Path(location))
    revision = None if name or Path(location).is_dir() else getattr(model.config, "_commit_hash", None)
    return BaseSpec(known or location, revision, quantization, dtype)
