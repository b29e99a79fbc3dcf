"""The sentence encoder that an artifact's heads read: loaded by its name, and refused where it is another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from laplora.artifact.folder import is_fetched
from laplora.artifact.manifest import EncoderRecord, Manifest
from laplora.errors import ArtifactIncompatibleError
from laplora.features.sentence_encoder import (
    SentenceEncoder,
    TextEncoding,
    load_sentence_encoder,
    load_text_encoding,
)
from laplora.models.checkpoints import check_hub_size
from laplora.models.hashes import tokenizer_hash, weights_hash

Progress = Callable[[str], None]

#: Encoders in memory by name, hash of the weights and device, each freed when nobody keeps it any more.
_loaded: WeakValueDictionary[tuple[str, str, str], SentenceEncoder] = WeakValueDictionary()
_loading = threading.Lock()


def encoder_record(encoder: SentenceEncoder) -> EncoderRecord:
    """Return a sentence encoder as an artifact records it; ModelError where its weights are no safetensors."""
    return EncoderRecord(
        name=encoder.name,
        weights_hash=weights_hash(encoder.location),
        tokenizer_hash=tokenizer_hash(encoder.tokenizer),
    )


def unsaved_encoder(encoder: SentenceEncoder) -> EncoderRecord:
    """Return the record of an encoder in memory alone, whose hashes nobody compares."""
    return EncoderRecord(name=encoder.name, weights_hash="in-memory", tokenizer_hash="in-memory")


def check_sizes(path: Path, manifest: Manifest, most_bytes: int) -> None:
    """Raise DownloadError where the base or the sentence encoder of a fetched artifact is too large on the hub."""
    if is_fetched(path):
        check_hub_size(manifest.base_model, manifest.revision, most_bytes=most_bytes)
        if manifest.encoder is not None:
            check_hub_size(manifest.encoder.name, None, most_bytes=most_bytes)


def text_encoding(manifest: Manifest, cache: Path | None, progress: Progress | None) -> TextEncoding | None:
    """Return what the texts of an artifact's sentence encoder are tokenised by; None where no head reads one.

    Raises:
        ArtifactIncompatibleError: another tokenizer than the artifact's.
        ModelError, DownloadError: as ``load_text_encoding``.
    """
    record = manifest.encoder
    if record is None:
        return None
    text = load_text_encoding(record.name, cache=cache, progress=progress)
    if tokenizer_hash(text.tokenizer) != record.tokenizer_hash:
        raise _another(manifest.name, record, "tokenizer")
    return text


def sentence_encoder(
    manifest: Manifest, device: torch.device, cache: Path | None, progress: Progress | None
) -> SentenceEncoder | None:
    """Return an artifact's sentence encoder, which artifacts share; None where no head reads one.

    Raises:
        ArtifactIncompatibleError: other weights or another tokenizer than the artifact's.
        ModelError, DownloadError: as ``load_sentence_encoder``.
    """
    record = manifest.encoder
    if record is None:
        return None
    key = (record.name, record.weights_hash, str(device))
    with _loading:
        encoder = _loaded.get(key)
        if encoder is None:
            encoder = load_sentence_encoder(record.name, device=device, cache=cache, progress=progress)
            if weights_hash(encoder.location, cache=cache) != record.weights_hash:
                raise _another(manifest.name, record, "weights")
            _loaded[key] = encoder
    if tokenizer_hash(encoder.tokenizer) != record.tokenizer_hash:
        raise _another(manifest.name, record, "tokenizer")
    return encoder


def _another(name: str, record: EncoderRecord, what: str) -> ArtifactIncompatibleError:
    return ArtifactIncompatibleError(
        f"artifact {name!r} was made with other {what} of the sentence encoder {record.name!r} than it has now: load "
        "the same one, or fit again"
    )
