"""An artifact without its weights: from inputs to rows of token ids, and from predictions to decisions.

It needs only the artifact's folder and the base model's tokenizer. So requests can be encoded on a machine without a
device, and predicted on another one that has the weights (``laplora.predictor``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from laplora.answers.explaining import NothingAccepted, nothing_accepted
from laplora.answers.golden_inputs import synthetic_inputs
from laplora.answers.prediction import Prediction, decided_at
from laplora.answers.review_scores import ReviewScores, read_scores, thresholds_at
from laplora.artifact.adapted import check_tokenizer
from laplora.artifact.encoders import check_sizes, text_encoding
from laplora.artifact.folder import Artifact, read_artifact
from laplora.artifact.manifest import SCORES
from laplora.decisions.thresholds import PredictiveThresholds
from laplora.decisions.wanted import Wanted
from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.features.encoding import FeatureEncoding
from laplora.features.sentence_encoder import TextEncoding
from laplora.models.base import load_tokenizer, locate_base
from laplora.models.checkpoints import MOST_BYTES, keep_copy
from laplora.predictive.kinds import PredictiveName
from laplora.prompts.rows import EncodedRow, Side
from laplora.prompts.token_bounds import TokenBounds, token_bounds
from laplora.remote.address import is_address


class Encoder:
    """An artifact's tokenizer, template, labels, predictives and thresholds. May be called from any thread.

    Attributes:
        review_scores: by predictive, its review scores on the calibration rows.
    """

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: Any,
        review_scores: Mapping[str, ReviewScores],
        text: TextEncoding | None = None,
    ) -> None:
        """Take what was read; ``text``: the sentence encoder's tokenizer, where a head reads one."""
        self.artifact = artifact
        self._encoding = FeatureEncoding(artifact.manifest.sources, text)
        self.review_scores = review_scores
        self._tokenizer = tokenizer
        self._template = artifact.manifest.template.template()

    @classmethod
    def of_folder(
        cls,
        path: Path,
        *,
        cache_dir: Path | None = None,
        progress: Callable[[str], None] | None = None,
        most_base_bytes: int = MOST_BYTES,
    ) -> Encoder:
        """Return the encoder of the artifact in a folder, every file verified. No weights are read.

        Args:
            cache_dir: of offline models; progress: called with the name of each stage.
            most_base_bytes: of a base model or a sentence encoder on the hub, where the artifact was fetched.

        Raises:
            ArtifactError: not found, corrupt, replaced meanwhile, or of another tokenizer.
            ModelError: a base without a tokenizer; DownloadError: the offline base could not be fetched.
        """
        artifact = read_artifact(path)
        manifest = artifact.manifest
        model, pin = manifest.base_model, manifest.tokenizer_hash
        check_sizes(path, manifest, most_base_bytes)
        location = locate_base(manifest.base, cache_dir, progress, kind="tokenizer", pin=pin)
        tokenizer = load_tokenizer(location, manifest.revision)
        check_tokenizer(manifest, tokenizer)
        if is_address(model):
            keep_copy(model, "tokenizer", Path(location), cache=cache_dir, pin=pin)
        text = text_encoding(manifest, cache_dir, progress)
        scores = read_scores(path / SCORES, manifest.servable, manifest.calibration.rows)
        if read_artifact(path).digest != artifact.digest:  # replaced meanwhile: the scores may be of either
            raise ArtifactCorruptError(f"artifact {artifact.name!r} was replaced while it was read: load it again")
        return cls(artifact, tokenizer, scores, text)

    @property
    def tokenizer(self) -> Any:
        """The base model's."""
        return self._tokenizer

    @property
    def class_count(self) -> int:
        """Number of labels."""
        return len(self.artifact.manifest.labels)

    @property
    def max_tokens(self) -> int:
        """Longest prompt, in tokens."""
        return self.artifact.manifest.max_tokens

    @cached_property
    def token_bounds(self) -> TokenBounds:
        """Bounds on a prompt's tokens that are known before it is tokenised."""
        return token_bounds(self._tokenizer)

    @cached_property
    def side(self) -> Side:
        """The side on which rows are padded and prompts are cut."""
        return self.artifact.manifest.readout.readout().side

    def encode(self, inputs: Mapping[str, object], *, truncate: bool) -> EncodedRow:
        """Return one input as a row.

        Raises:
            InvalidInputError: fields that the template does not take, or text that cannot be used.
            TooManyTokensError: too long, with ``truncate`` off.
        """
        return self._encoding.row(
            self._tokenizer,
            self._template,
            self.artifact.manifest.labels,
            inputs,
            max_tokens=self.max_tokens,
            truncate=truncate,
            bounds=self.token_bounds,
            side=self.side,
        )

    def sample_row(self, tokens: int | None = None) -> EncodedRow:
        """Return a row of made-up text, such as a first one that everything is tried with; of so many tokens if given.

        A sentence encoder's part of it keeps its length.
        """
        (first, *_) = synthetic_inputs(self._template, self.artifact.manifest.labels)
        row = self.encode(first, truncate=True)
        if tokens is None:
            return row
        ids, roles = ((of_token * tokens)[:tokens] for of_token in (row.token_ids, row.roles))
        return replace(row, token_ids=ids, roles=roles, class_count=self.class_count)

    @property
    def recommended(self) -> PredictiveName:
        """The predictive that answers unless a request names another."""
        return self.artifact.manifest.recommended.predictive

    @property
    def predictives(self) -> tuple[PredictiveName, ...]:
        """The predictives that a request can name."""
        return self.artifact.manifest.servable

    def decided(self, predictions: Sequence[Prediction], wanted: Wanted | None) -> list[Prediction]:
        """Return predictions with the decisions for a target risk, one by answered label, or costs.

        Args:
            wanted: None is what the artifact states.

        Raises:
            ConfigError: as ``laplora.answers.review_scores.thresholds_at``.
        """
        decided, labels = list(predictions), self.artifact.manifest.labels
        for name in {p.predictive for p in predictions} if wanted is not None else ():
            places = [i for i, p in enumerate(predictions) if p.predictive == name]
            thresholds = self.thresholds(self.named(name), wanted)
            answers = decided_at([predictions[i] for i in places], thresholds, labels)
            for i, answer in zip(places, answers, strict=True):
                decided[i] = answer
        return decided

    def nothing_accepted(self, predictive: str, wanted: Wanted | None) -> NothingAccepted | None:
        """Return that a predictive accepts nothing at what is wanted, None being the artifact's; None where it does."""
        name = self.named(predictive)
        return nothing_accepted(name, self.thresholds(name, wanted), self.review_scores[name])

    def thresholds(self, name: PredictiveName, wanted: Wanted | None) -> PredictiveThresholds:
        """Return a predictive's thresholds for what is wanted; None: the artifact's."""
        manifest = self.artifact.manifest
        own = manifest.predictives[name].thresholds
        return own if wanted is None else thresholds_at(own, self.review_scores[name], wanted, manifest.labels)

    def named(self, predictive: str) -> PredictiveName:
        """Return a name as one of ``predictives``; ConfigError where it is none."""
        for name in self.predictives:
            if name == predictive:
                return name
        raise ConfigError(
            f"artifact {self.artifact.name!r} has no predictive {predictive[:64]!r}: it has {list(self.predictives)}"
        )
