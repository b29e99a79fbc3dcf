"""An artifact and a base model: whether they belong together, and its adapters and posteriors put on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from laplora.artifact.manifest import (
    ADAPTER_FOLDER,
    FAMILIARITY,
    HEAD,
    POSTERIOR,
    Manifest,
)
from laplora.artifact.readout_records import ClassificationHeadRecord
from laplora.errors import ArtifactCorruptError, ArtifactIncompatibleError, LabelTokenError, PriorError
from laplora.familiarity.file import read_familiarity_for
from laplora.jacobians.contrasts import covered_blocks
from laplora.models.adapters import attach_adapter
from laplora.models.base import LoadedBase
from laplora.models.classifier_head import (
    attach_head,
    check_ending,
    check_length,
    check_supplied,
    head_side,
    output_layer,
    trained_linears,
)
from laplora.models.hashes import tokenizer_hash, weights_hash
from laplora.models.readout import base_of
from laplora.models.shared_base import share
from laplora.models.spread import block_devices
from laplora.posterior.base import block_precisions
from laplora.posterior.file import read_posterior
from laplora.posterior.many_classes import check_class_count
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.predictive.lora_weights import lora_parameters
from laplora.readouts.label_sequences import LabelSequences


def check_base(manifest: Manifest, location: str, tokenizer: Any, cache_dir: Path | None) -> None:
    """Raise ArtifactIncompatibleError where the base's weights are not the artifact's, or as ``check_tokenizer``."""
    weights = weights_hash(location, manifest.revision, cache_dir)
    if weights != manifest.base_weights_hash:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r} belongs to base weights {manifest.base_weights_hash[:19]}..., "
            f"{manifest.base_model!r} has {weights[:19]}...: load the same revision, or fit again"
        )
    check_tokenizer(manifest, tokenizer)


def base_pin(manifest: Manifest) -> str:
    """Return what ``check_base`` finds in the base of an artifact, as one text."""
    return f"{manifest.base_weights_hash} {manifest.tokenizer_hash}"


def check_tokenizer(manifest: Manifest, tokenizer: Any) -> None:
    """Raise ArtifactIncompatibleError where the tokenizer or its label tokens are not the artifact's."""
    if tokenizer_hash(tokenizer) != manifest.tokenizer_hash:
        raise ArtifactIncompatibleError(
            f"artifact {manifest.name!r} was made with another tokenizer than {manifest.base_model!r} has now"
        )
    try:
        manifest.readout.verify(manifest.name, tokenizer, manifest.template.template())
    except LabelTokenError as error:
        raise ArtifactIncompatibleError(f"artifact {manifest.name!r}: {error}") from None


def attach(path: Path, manifest: Manifest, base: LoadedBase, tokenizer: Any) -> Any:
    """Return an artifact's model: its base with the adapter, or with the head alone, frozen, in eval mode.

    Raises:
        ArtifactCorruptError: an adapter or a head that is not one of this base, or not what the manifest says.
        ModelError: as ``attach_adapter``; parameters that would be random (``check_supplied``), a head that was
            trained at another token than is read (``check_ending``), or too few positions for ``max_tokens``.
    """
    model, record = share(base.model), manifest.readout
    readout = record.readout()
    if not manifest.has_adapter:
        check_length(
            model, manifest.max_tokens, readout.tree.extra_tokens if isinstance(readout, LabelSequences) else 0
        )
        return model
    check_length(model, manifest.max_tokens, readout.tree.extra_tokens if isinstance(readout, LabelSequences) else 0)
    if not isinstance(record, ClassificationHeadRecord):
        return attach_adapter(model, path / ADAPTER_FOLDER)
    check_ending(model, tokenizer)
    if record.alone:
        (last, _), side = output_layer(model), head_side(model)
        if (last, side) != (record.trained[-1], record.side):
            raise ArtifactCorruptError(
                f"artifact {manifest.name!r}: the logits are those of {last}, of rows padded on the {side}; the "
                f"manifest says {record.trained[-1]!r} and {record.side}"
            )
        check_supplied(model, base.missing, record.trained)
        return attach_head(model, path / HEAD, record.trained)
    model = attach_adapter(model, path / ADAPTER_FOLDER)
    ours = (head_side(model), trained_linears(model))
    if ours != (record.side, record.trained):
        raise ArtifactCorruptError(
            f"artifact {manifest.name!r}: its adapter trains {ours[1]} of the head, the manifest says {record.trained}"
        )
    check_supplied(model, base.missing, record.trained)
    return model


def load_adapted(path: Path, manifest: Manifest, model: Any, device: torch.device) -> AdaptedModel:
    """Return everything that an artifact's predictives are made of, for what ``attach`` returned.

    Args:
        device: of the model's inputs; where it is spread over several, each block's bases are on its module's.

    Raises ArtifactCorruptError where a file does not hold what the manifest says.
    """
    readout = manifest.readout.readout()
    if manifest.prior is None:
        return AdaptedModel(model, {}, readout)
    blocks = covered_blocks(model, readout)
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    by_block = block_devices(base_of(model), (block.name for block in blocks))

    posterior, familiar = read_posterior(path / POSTERIOR, blocks), manifest.familiarity
    check_class_count(posterior, readout.class_count)
    try:
        precisions = block_precisions(manifest.prior.prior(), posterior.blocks).to(device)
    except PriorError as error:
        raise ArtifactCorruptError(f"the prior is not this posterior's: {error}") from None
    return AdaptedModel(
        model=model,
        parameters=lora_parameters(model),
        readout=readout,
        posterior=posterior.to(device, dtype, by_block),
        precisions=precisions,
        familiarity=read_familiarity_for(model, path / FAMILIARITY, familiar.layers, familiar.tokens)
        if familiar
        else None,
    )
