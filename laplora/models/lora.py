"""Which LoRA adapters are covered: what their settings must not say, and their layers in a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from laplora.errors import ArtifactCorruptError, ModelError

#: Ways to start an adapter that leave the base alone. Others (PiSSA, OLoRA, CorDA, LoftQ) take something out of the
#: base's weights, in place, whenever such an adapter is loaded: every other adapter on that base would change with it.
_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
#: Settings of what the posterior does not cover; KaSA also takes something out of the base's weights.
_UNCOVERED = (
    *("trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens", "arrow_config"),
    *("kasa_config", "monteclora_config", "use_bdlora", "use_qalora", "velora_config"),
)
#: Signs of a regular expression over names of modules that ends soon, with no more repetitions and alternatives than
#: these; a repeated group could run for ever.
_QUICK, _REPETITIONS, _ALTERNATIVES, _PATTERNS = re.compile(r"([\w.^$\\|()\[\]-]|(?<!\))[*+?])*"), 2, 8, 1024


def check_settings(folder: Path, base: Any) -> None:
    """Raise unless peft can act on the settings of an adapter's folder, and give this base the adapter, without harm.

    Raises:
        ArtifactCorruptError: a rank beyond the adapter's matrices, which peft would allocate.
        ModelError: settings that change the base model's weights or its layers, or name code to import; an adapter
            of a kind that the posterior does not cover.
        OSError, ValueError, RecursionError, SafetensorError: files that cannot be read.
    """
    from peft import PeftType

    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError("its settings are no JSON object")
    if settings.get("peft_type") not in set(PeftType):
        raise ValueError("its settings name no kind of adapter that peft has")
    start = settings.get("init_lora_weights")
    if not any(start is harmless or start == harmless for harmless in _HARMLESS_STARTS):
        raise ModelError(
            f"the adapter is of init_lora_weights {str(start)[:32]!r}, which changes the base model's weights: convert "
            "it with peft's path_initial_model_for_weight_conversion"
        )
    if settings.get("megatron_config"):
        raise ModelError("the adapter sets megatron_config, which names code to import: only plain LoRA is covered")
    _check_class(settings, base)
    _check_kind(settings, base)
    rank = settings.get("r")
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as handle:
        names: Any = handle.keys()
        largest = max((size for name in names for size in handle.get_slice(name).get_shape()), default=0)
    if rank is not None and not (type(rank) is int and rank <= largest):
        raise ArtifactCorruptError(
            f"the adapter in {folder.name!r} states a rank that its matrices, of {largest} rows or columns at most, "
            "do not have"
        )
    for name, kind in (("alpha_pattern", dict), ("modules_to_save", list)):
        patterns = settings.get(name) or kind()
        if not isinstance(patterns, kind) or not all(isinstance(each, str) for each in patterns):
            raise ValueError(f"its {name} holds no names")
        if len(patterns) > _PATTERNS or not all(map(_ends_soon, patterns)):
            raise ModelError(f"the adapter's {name} has more than names of its modules: write their names out")


def _ends_soon(pattern: str) -> bool:
    """Return whether peft can try a regular expression on names of modules; ValueError where it is none."""
    few = sum(map(pattern.count, "*+?")) <= _REPETITIONS and pattern.count("|") <= _ALTERNATIVES
    if not few or not _QUICK.fullmatch(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        raise ValueError(f"{pattern[:64]!r} is no regular expression") from None
    return True


def named_settings(folder: Path) -> Any:
    """Return the LoraConfig of a folder, with the modules and the ranks of its file where expressions state them.

    An expression could run for ever.
    """
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(folder))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as handle:
        names: Any = handle.keys()
        ranks = {
            path.removeprefix("base_model.model."): handle.get_slice(name).get_shape()[0]
            for name in names
            for path, _, end in [name.rpartition(".lora_")]
            if end.removeprefix("embedding_").startswith("A")
        }
    if isinstance(config.target_modules, str) or isinstance(config.exclude_modules, str) or config.layers_pattern:
        config.target_modules = {*ranks}
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    if config.rank_pattern:
        config.rank_pattern = exact({path: rank for path, rank in ranks.items() if rank != config.r})
    return config


def exact(by_path: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pattern of peft's that has these values for the modules of these paths in the base, and no others."""
    return {f"^{re.escape(path)}": value for path, value in sorted(by_path.items())}


def trained_class(settings: Mapping[str, Any]) -> str | None:
    """Return the name of the model class that an adapter was trained on, which PEFT notes where there is no task_type.

    ``auto_mapping`` also names a library, which is ignored: nothing is imported.

    Raises:
        ModelError: an ``auto_mapping`` that names no class.
    """
    mapping = settings.get("auto_mapping")
    if not mapping:
        return None
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if not isinstance(name, str):
        raise ModelError("the adapter's auto_mapping names no base_model_class: leave it out, and set task_type")
    return name


def _check_class(settings: Mapping[str, Any], base: Any) -> None:
    """Raise ModelError where an adapter says that it was trained on another class of model than the base's."""
    name = trained_class(settings)
    if name is not None and name not in {kind.__name__ for kind in type(base).__mro__}:
        raise ModelError(
            f"the adapter was trained on a {name[:64]} (its auto_mapping), which the base is not, a "
            f"{type(base).__name__}: put it on a base of that class"
        )


def _check_kind(settings: Mapping[str, Any], base: Any) -> None:
    """Raise ModelError where a PEFT configuration's fields say that more or other than is covered was trained.

    LoRA matrices are, and the head of a sequence classification model.
    """
    kind = getattr(settings.get("peft_type"), "value", settings.get("peft_type"))
    if kind != "LORA":
        raise ModelError(f"the adapter is of the kind {str(kind)[:32]}; only LoRA is covered")
    for name in _UNCOVERED:
        if (found := settings.get(name)) or isinstance(found, dict):  # one without entries has its defaults
            raise ModelError(f"the adapter sets {name}, which the posterior does not cover")
    if settings.get("modules_to_save"):
        modules = tuple(sorted(map(str, settings["modules_to_save"])))
        if not is_classifier(base):
            raise ModelError(f"the adapter retrains whole modules ({list(modules)}); only LoRA is covered")
        inside = f"{base.base_model_prefix}."  # peft takes every module whose path ends with one of the names
        retrained = [name for name, _ in base.named_modules() if name.startswith(inside) and name.endswith(modules)]
        if retrained:
            raise ModelError(f"the adapter retrains {retrained[0]} whole: only the head may be in modules_to_save")
    if settings.get("bias", "none") != "none" or settings.get("lora_bias"):
        raise ModelError("the adapter trains biases; set bias='none' and lora_bias=False")
    if settings.get("use_dora"):
        raise ModelError("the adapter is DoRA, which the posterior does not cover: train it with use_dora=False")


@dataclass(frozen=True, eq=False)
class Lora:
    """One layer's active adapter, ``y = W x + scaling * up(down(dropout(x)))``.

    Attributes:
        down: ``lora_A``, of a weight (rank, in); up: ``lora_B``, of a weight (out, rank).
        scaling: ``alpha / rank``, or ``alpha / sqrt(rank)`` of rsLoRA (Kalajdzievski, arXiv 2312.03732).
    """

    down: Any
    up: Any
    dropout: Any
    scaling: float

    @property
    def sides(self) -> dict[str, Any]:
        return {"lora_A": self.down, "lora_B": self.up}


def adapter_name(model: Any) -> str:
    """Return the name of a PEFT model's active adapter.

    Raises:
        ModelError: no PEFT model (as after merging), none or several active adapters, or merged ones.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ModelError(
            f"expected a PEFT model with a LoRA adapter, got a {type(model).__name__} without one: if its adapter was "
            "merged into it, load the base and the adapter again with peft.PeftModel.from_pretrained"
        )
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ModelError(
            f"the model has {len(names)} active adapters {sorted(names)}, expected one: call "
            "model.set_adapter(NAME), or make one of several with model.add_weighted_adapter"
        )
    merged = {name for m in model.modules() for name in getattr(m, "merged_adapters", ())}
    if merged:
        raise ModelError(f"the adapters {sorted(merged)} are merged into the base: call model.unmerge_adapter()")
    return str(names[0])


def is_classifier(base: nn.Module) -> bool:
    """Return whether a model without PEFT's wrapping is one of ``AutoModelForSequenceClassification``."""
    return any(kind.__name__.endswith("ForSequenceClassification") for kind in type(base).__mro__)


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear map: ``nn.Linear``, or GPT-2's ``Conv1D``, the same with W transposed."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def lora_of(layer: Any) -> Lora:
    """Return the active adapter of one of ``lora_layers``, also while adapters are disabled."""
    (name,) = layer.active_adapters
    return Lora(layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name], layer.scaling[name])


def runs_lora(module: Any) -> bool:
    """Return whether a module now runs the active adapter, which is one that covers it and is not disabled."""
    return (
        hasattr(module, "lora_A")
        and not module.disable_adapters
        and any(name in module.lora_A for name in module.active_adapters)
    )


def lora_layers(model: Any) -> dict[str, Any]:
    """Return the LoRA layers of a PEFT model by module path in the base model, in module order.

    Its adapter is the active one, whatever its name; others do not matter. Raises ModelError as ``adapter_name``, where
    there is no layer, or parameters were trained that the posterior would not cover (other kinds of adapter, DoRA, LoRA
    biases, adapted embeddings, convolutions, ``modules_to_save`` but the head of a classifier).
    """
    from peft.tuners.lora import LoraLayer

    active = adapter_name(model)
    _check_kind(model.peft_config[active].to_dict(), model.get_base_model())
    layers: dict[str, Any] = {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if active in module.lora_embedding_A:
            raise ModelError(f"{name} is an embedding with LoRA, which the posterior does not cover")
        if active not in module.lora_A:
            continue
        if list(module.active_adapters) != [active]:
            raise ModelError(
                f"{name} runs the adapters {list(module.active_adapters)}, the model {active!r}: call "
                f"model.set_adapter({active!r})"
            )
        if module.use_dora.get(active) or module.lora_variant.get(active):
            raise ModelError(
                f"{name} uses a LoRA variant (such as aLoRA), which the posterior does not cover: train plain LoRA"
            )
        plain = module.get_base_layer()
        if not is_linear(plain) or not all(isinstance(s[active], nn.Linear) for s in (module.lora_A, module.lora_B)):
            raise ModelError(f"{name} is a {type(plain).__name__}; only adapted linear layers are covered")
        layers[name] = module
    if not layers:
        raise ModelError("the adapter has no LoRA layer on this base model")
    return layers


def check_enabled(model: Any) -> None:
    """Raise ModelError where a PEFT model's adapter does not run, as after ``disable_adapter_layers``."""
    if off := [name for name, layer in lora_layers(model).items() if not runs_lora(layer)]:
        raise ModelError(f"the adapter is disabled, at {off[0]}: call model.base_model.enable_adapter_layers()")
