"""Whether the base model at hand is the one that an artifact was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laplora.artifact.manifest import Manifest
from laplora.errors import ArtifactIncompatibleError
from laplora.models.hashes import tokenizer_hash, weights_hash
from laplora.prompts.templates import resolve_label_tokens


def check_base(manifest: Manifest, location: str, tokenizer: Any, cache_dir: Path | None) -> None:
    """Raise ArtifactIncompatibleError where base weights, tokenizer or label tokens are not the artifact's."""
    weights = weights_hash(location, manifest.revision, cache_dir)
    if weights != manifest.base_weights_hash:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r} belongs to base weights {manifest.base_weights_hash[:19]}..., "
            f"{manifest.base_model!r} has {weights[:19]}...: load the same revision, or fit again"
        )
    if tokenizer_hash(tokenizer) != manifest.tokenizer_hash:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r} was made with another tokenizer than {manifest.base_model!r} has now"
        )
    tokens = resolve_label_tokens(tokenizer, manifest.template.template(), manifest.labels)
    if tuple(tokens) != manifest.label_token_ids:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r}: its labels are tokens {tokens} here, {list(manifest.label_token_ids)} there"
        )
