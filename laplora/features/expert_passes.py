"""The passes that the experts of a classifier read, over labelled rows, and which experts suit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from laplora.classifier import Classifier
from laplora.errors import ConfigError, DownloadError, warn
from laplora.features.encoding import FeatureEncoding
from laplora.features.outputs import HeadSource, Outputs
from laplora.features.passes import FeaturePasses
from laplora.features.sentence_encoder import SentenceEncoder, load_sentence_encoder
from laplora.models.classifier_head import is_adapted
from laplora.prompts.examples import Example
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import PromptTemplate
from laplora.readouts.no_answer import NoAnswer


class Tracks(Protocol):
    """Watches loops, as ``laplora.execution.progress`` does."""

    def track(self, items: Sequence[list[int]], title: str) -> Iterator[list[int]]:
        """Yield items, and show how many are done."""


@dataclass(frozen=True)
class ExpertPasses:
    """Runs a classifier's inputs for its experts, which are named after the sources of ``of_rows``."""

    classifier: Classifier
    of_rows: FeaturePasses

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        names: tuple[HeadSource, ...],
        encoder: SentenceEncoder | None = None,
        *,
        answers: bool = False,
    ) -> ExpertPasses:
        """Return the passes of named experts; arguments and errors as of ``FeaturePasses``."""
        model, readout, ends_alike = classifier.model, classifier.readout, classifier.template.ends_alike
        sizes = (classifier.pad_token_id, classifier.class_count)
        return cls(classifier, FeaturePasses(model, readout, *sizes, ends_alike, names, encoder, answers))

    @property
    def names(self) -> tuple[HeadSource, ...]:
        """The experts, in order."""
        return self.of_rows.sources

    @property
    def encoder(self) -> SentenceEncoder | None:
        """The sentence encoder of the expert ``encoder``; None without it."""
        return self.of_rows.encoder

    def encode(self, inputs: Mapping[str, Any], *, truncate: bool = True) -> EncodedRow:
        """Return one input as a row with what the experts need; errors as of ``FeatureEncoding.row``."""
        given = self.classifier
        return FeatureEncoding(self.names, self.encoder).row(
            given.tokenizer,
            given.template,
            given.labels,
            inputs,
            max_tokens=given.max_tokens,
            truncate=truncate,
            bounds=given.token_bounds,
            side=given.readout.side,
        )

    def outputs(self, examples: Sequence[Example], progress: Tracks, title: str, batch_size: int = 8) -> Outputs:
        """Return what experts read of examples, in order; a prompt that is too long is cut.

        Raises:
            InvalidInputError, ConfigError: as of ``FeatureEncoding.row``.
            ModelError, NonFiniteError: as of ``FeaturePasses.of_batch``.
        """
        rows = [self.encode(example.fields) for example in examples]

        def passed(index: list[int]) -> Outputs:
            return self.of_rows.of_batch([rows[i] for i in index])

        parts, order = self.classifier.over_rows(rows, batch_size, passed, lambda items: progress.track(items, title))
        return Outputs.joined(*parts).take(order)


def expert_passes(
    classifier: Classifier, named: tuple[HeadSource, ...], encoder: str | None, say: Callable[[str], None]
) -> ExpertPasses:
    """Return the passes of the named experts; of a model as it is without names those that suit its template.

    An encoder that nobody asked for and that cannot be fetched is left out, with a warning.

    Args:
        encoder: name of the sentence encoder, as of ``load_sentence_encoder``; None: off.

    Raises:
        ConfigError: experts that the classifier cannot have, or none.
        ModelError, DownloadError: as of ``load_sentence_encoder``.
    """
    names = named or (() if classifier.is_trained else suiting(classifier.template, encoder is not None))
    if "options" in names and not classifier.template.takes_choices:
        raise ConfigError(
            f"experts: options need a template with {{choices}}, got the fields {list(classifier.template.fields)}"
        )
    if classifier.is_trained and not is_adapted(classifier.model) and names != ("encoder",):
        raise ConfigError(
            "experts: the base below a trained head may have been trained too, and its states then know the labels of "
            "the training rows: name encoder alone"
        )
    if classifier.template.answered and (classifier.is_trained or not {"rescaled", "corrected"} & set(names)):
        raise ConfigError(
            "experts: another model's answers are corrected by heads on a model as it is, without an adapter or a "
            "trained head, rescaled or corrected among them"
        )
    loaded = None
    if "encoder" in names:
        if encoder is None:
            raise ConfigError("experts.names has encoder, and experts.encoder is off: name one, or leave it out")
        try:
            loaded = load_sentence_encoder(encoder, device=classifier.device, progress=say)
        except DownloadError as error:
            if named or names == ("encoder",):
                raise
            warn(f"the expert encoder is off: {error}")
            names = tuple(name for name in names if name != "encoder")
    own = not isinstance(classifier.readout, NoAnswer) and not classifier.template.answered
    answers = not classifier.is_trained and own
    return ExpertPasses.of(classifier, names, loaded, answers=answers)


def suiting(template: PromptTemplate, with_encoder: bool) -> tuple[HeadSource, ...]:
    """Return the experts that suit a template."""
    if template.takes_choices:
        return ("options",)
    if template.answered:
        return ("frozen", "rescaled", "corrected")
    return ("frozen", "encoder") if with_encoder else ("frozen",)
