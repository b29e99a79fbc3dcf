"""The passes that heads read, over one batch of encoded rows: the same for a fit and for a server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from laplora.classifier import frozen
from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.features.frozen import pooled_states, poolings
from laplora.features.layers import body_of
from laplora.features.options import option_blocks
from laplora.features.outputs import Blocks, FeatureSource, HeadSource, LogProbSource, Outputs
from laplora.features.sentence_encoder import SentenceEncoder
from laplora.linearised import class_log_probs
from laplora.models.readout import base_of, output_head
from laplora.models.spread import input_device
from laplora.prompts.rows import Batch, EncodedRow, collate
from laplora.readouts.base import ReadOut

#: The advice if the base's numbers overflow.
_BASE = "load the base in bfloat16 or float32"
#: Which part of a row a source reads.
_READ = {"frozen": "roles", "encoder": "encoder_ids", "options": "options"}
_READ |= dict.fromkeys(("rescaled", "corrected"), "model_log_probs")


@dataclass(frozen=True)
class FeaturePasses:
    """A model, and a sentence encoder beside it, that run rows for heads.

    Attributes:
        model: with or without an adapter, which is off in these passes.
        pad_token_id: of the model's tokenizer; class_count: labels of the task.
        ends_alike: whether the template has words after its last field.
        sources: of the features; encoder: of the source ``encoder``.
        answers: whether the base's own answer by label tokens is read too.

    Raises:
        ConfigError: options of a model that is no causal language model.
    """

    model: Any
    readout: ReadOut
    pad_token_id: int
    class_count: int
    ends_alike: bool
    sources: tuple[HeadSource, ...]
    encoder: SentenceEncoder | None = None
    answers: bool = False

    def __post_init__(self) -> None:
        if "options" in self.sources and output_head(self.model) is None:
            kind = type(base_of(self.model)).__name__
            raise ConfigError(
                f"experts: options are read by a causal language model, got a {kind}: name frozen instead"
            )

    @property
    def _reads_states(self) -> bool:
        return "frozen" in self.sources or "corrected" in self.sources

    def of_batch(self, rows: Sequence[EncodedRow]) -> Outputs:
        """Return what rows give that ``FeatureEncoding`` encoded for these sources; they run as one padded batch.

        A row's outputs do not depend on the rows beside it, except for rounding. Features of options do not depend on
        the order of a question's options.

        Raises:
            DataError: rows that were encoded for other sources.
            ModelError: a model whose layers are in no list, or give no (batch, tokens, hidden) states.
            NonFiniteError: features or answers with NaN or infinity.
        """
        for source in self.sources:
            if not all(getattr(row, _READ[source]) for row in rows):
                raise DataError(f"a row has no {_READ[source]}, which {source} reads: encode it by a FeatureEncoding")
        features, log_probs = dict[FeatureSource, Blocks](), dict[LogProbSource, torch.Tensor]()
        scores: Blocks = {}
        if rows and rows[0].model_log_probs:
            of_model = torch.tensor([row.model_log_probs for row in rows], dtype=torch.float64)
            log_probs["zero_shot"] = of_model
            scores = {"scores": (of_model - of_model.mean(1, keepdim=True)).float()}
        batch = collate(rows, class_count=self.class_count, pad_token_id=self.pad_token_id, side=self.readout.side)
        with frozen(self.model):
            if self._reads_states or self.answers:
                states, logits = self._base(batch.to(input_device(base_of(self.model))), rows)
                if states is not None:
                    features["frozen"] = _finite(states, "the base's states {} hold", _BASE)
                    if "corrected" in self.sources:
                        features["corrected"] = {**features["frozen"], **scores}
                if logits is not None:
                    _finite({"logits": logits}, "the base's {} hold", _BASE)
                    log_probs["zero_shot"] = class_log_probs(logits, batch.class_mask)
            if "rescaled" in self.sources:
                features["rescaled"] = scores
            if "options" in self.sources:
                given = [row.options for row in rows if row.options is not None]
                sizes = {"class_count": self.class_count, "pad_token_id": self.pad_token_id}
                features["options"] = _finite(
                    option_blocks(self.model, given, **sizes), "the base's {} of options hold", _BASE
                )
        if "encoder" in self.sources and self.encoder is not None:
            # In bfloat16 where the base is: it costs a third, and heads answer alike (NLL within .0003 on three tasks).
            device, half = self.encoder.model.device.type, base_of(self.model).dtype == torch.bfloat16
            with torch.autocast(device, torch.bfloat16, enabled=half):
                blocks = self.encoder.blocks([row.encoder_ids for row in rows])
            features["encoder"] = _finite(
                blocks, f"{{}} of {self.encoder.name!r} holds", "use another sentence encoder"
            )
        return Outputs(batch.class_mask, log_probs, features)

    def _base(self, batch: Batch, rows: Sequence[EncodedRow]) -> tuple[Blocks | None, torch.Tensor | None]:
        """Return the states and the logits of one pass, each None where it is not read."""
        names, side = poolings(self.readout.side, self.ends_alike), self.readout.side
        roles = [row.roles for row in rows]
        noted = pooled_states(self.model, batch, roles, names) if self._reads_states else nullcontext()
        with noted as blocks:
            if self.answers:
                return blocks, self.readout.scores(self.model, batch).logits.cpu()
            body_of(self.model)(**batch.inputs, **({"use_cache": False} if side == "left" else {}))
        return blocks, None


def _finite(blocks: Blocks, what: str, instead: str) -> Blocks:
    """Return blocks; NonFiniteError by the name of one that holds NaN or infinity."""
    if odd := [name for name, block in blocks.items() if not block.isfinite().all()]:
        raise NonFiniteError(f"{what.format(odd[0])} NaN or infinity: {instead}")
    return blocks
