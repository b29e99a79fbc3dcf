"""The server's use of the library: an artifact read, and a predictor loaded. Imports torch at the first call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.artifacts.token_budget import DeviceMeter, meter_of
from service.settings import Settings

if TYPE_CHECKING:
    from laplora.artifact.fetched import FetchRules
    from laplora.artifact.folder import Artifact
    from laplora.encoder import Encoder
    from laplora.models.shared_base import SharedBases
    from laplora.predictor import Predictor

Progress = Callable[[str], None]


def fetch(address: str, settings: Settings, progress: Progress) -> Path:
    """Return the folder in the cache of an artifact that lies elsewhere; errors as ``fetch_artifact``."""
    from laplora.artifact.fetched import local_artifact

    return local_artifact(address, cache=settings.cache, progress=progress, rules=_rules(settings))


def _rules(settings: Settings) -> FetchRules:
    from laplora.artifact.fetched import FetchRules

    return FetchRules(
        settings.allowed_bases, settings.max_fetch_bytes, settings.max_fetch_files, settings.max_base_bytes
    )


def _encoder(path: Path, settings: Settings, progress: Progress) -> Encoder:
    from laplora.encoder import Encoder

    return Encoder.of_folder(path, cache_dir=settings.cache, progress=progress, most_base_bytes=settings.max_base_bytes)


@dataclass(frozen=True)
class Library:
    """The functions of library and device that the host uses; tests put fakes here.

    Attributes:
        load: returns a predictor, its golden answers not yet verified.
        read: returns an artifact without loading its base model.
        encoder: returns an artifact's encoder, which needs no weights.
        meter: returns what measures batches on a predictor's device; None: they are not measured.
        fetch: returns the folder that an artifact, which lies at an address, was fetched into.
    """

    load: Callable[[Path, Settings, Progress], Predictor]
    read: Callable[[Path], Artifact]
    meter: Callable[[Predictor], DeviceMeter | None] = meter_of
    fetch: Callable[[str, Settings, Progress], Path] = fetch
    encoder: Callable[[Path, Settings, Progress], Encoder] = _encoder


def default_library() -> Library:
    """Return the real calls; importing torch and transformers waits until the first of them."""
    bases: list[SharedBases] = []

    def load(path: Path, settings: Settings, progress: Progress) -> Predictor:
        from laplora.models.shared_base import SharedBases
        from laplora.predictor import Predictor

        if not bases:
            bases.append(SharedBases())
        return Predictor.load(
            path,
            device=settings.spread or settings.device,
            cache_dir=settings.cache,
            verify_golden=False,
            dequantize=settings.dequantize_weights,
            progress=progress,
            bases=bases[0],
            rules=_rules(settings),
        )

    def read(path: Path) -> Artifact:
        from laplora.artifact.folder import read_artifact

        return read_artifact(path)

    return Library(load, read)
