"""The passes that experts read: of a model as it is, of a sentence encoder, of a question's options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from laplora.classifier import Classifier
from laplora.errors import ConfigError, DownloadError, warn
from laplora.experts.base import Blocks, FeatureSource, LogProbSource, Outputs
from laplora.features.encoder import embeddings
from laplora.features.frozen import frozen_states
from laplora.features.options import option_features
from laplora.features.sentence_encoder import SentenceEncoder, load_sentence_encoder
from laplora.fitting.progress import Progress
from laplora.fitting.settings import ExpertName, ExpertSettings
from laplora.models.classifier_head import is_adapted
from laplora.models.readout import base_of
from laplora.prompts.examples import Example
from laplora.readouts.no_answer import NoAnswer


@dataclass(frozen=True)
class ExpertPasses:
    """What runs a classifier's inputs for its experts.

    Attributes:
        names: of the experts, in order.
        encoder: of the expert ``encoder``; None without it.
        zero_shot: whether the model's own answer is read too.
    """

    classifier: Classifier
    names: tuple[ExpertName, ...]
    encoder: SentenceEncoder | None
    zero_shot: bool

    def outputs(self, examples: Sequence[Example], progress: Progress, title: str, batch_size: int = 8) -> Outputs:
        """Return what experts read of examples, in order.

        Raises:
            InvalidInputError, ModelError, NonFiniteError: as of ``laplora.features``.
        """
        classifier = self.classifier
        counts = torch.tensor([example.class_count for example in examples])
        mask = torch.arange(classifier.class_count) < counts[:, None]
        features, log_probs = dict[FeatureSource, Blocks](), dict[LogProbSource, torch.Tensor]()

        def bar(items: Sequence[list[int]]) -> Iterator[list[int]]:
            return progress.track(items, title)

        if "frozen" in self.names or self.zero_shot:
            states = frozen_states(classifier, examples, batch_size, answer=self.zero_shot, track=bar)
            features["frozen"] = states.blocks
            if (own := states.zero_shot) is not None:
                log_probs["zero_shot"] = own
        if "options" in self.names:
            features["options"] = option_features(classifier, examples, batch_size, track=bar).blocks
        if self.encoder is not None:
            template, labels, workers = classifier.template, classifier.labels, classifier.workers
            given = (self.encoder, template, labels, examples, batch_size)
            features["encoder"] = embeddings(*given, track=bar, workers=workers)
        return Outputs(mask, log_probs, features)


def expert_passes(classifier: Classifier, settings: ExpertSettings, say: Callable[[str], None]) -> ExpertPasses:
    """Return the passes of the experts that settings name; of a model as it is those that suit its template.

    An encoder that nobody asked for and that cannot be fetched is left out, with a warning.

    Raises:
        ConfigError: experts that the classifier cannot have, or none.
        ModelError, DownloadError: as of ``load_sentence_encoder``.
    """
    names = settings.names or default_experts(classifier, settings)
    if "options" in names and not classifier.template.takes_choices:
        raise ConfigError(
            f"experts: options need a template with {{choices}}, got the fields {list(classifier.template.fields)}"
        )
    if "options" in names and base_of(classifier.model).get_output_embeddings() is None:
        kind = type(base_of(classifier.model)).__name__
        raise ConfigError(f"experts: options are read by a causal language model, got a {kind}: name frozen instead")
    if classifier.is_trained and not is_adapted(classifier.model) and names != ("encoder",):
        raise ConfigError(
            "experts: the base below a trained head may have been trained too, and its states then know the labels of "
            "the training rows: name encoder alone"
        )
    encoder = None
    if "encoder" in names:
        if settings.encoder is None:
            raise ConfigError("experts.names has encoder, and experts.encoder is off: name one, or leave it out")
        try:
            encoder = load_sentence_encoder(settings.encoder, device=classifier.device, progress=say)
        except DownloadError as error:
            if settings.names or names == ("encoder",):
                raise
            warn(f"the expert encoder is off: {error}")
            names = tuple(name for name in names if name != "encoder")
    answers = not classifier.is_trained and not isinstance(classifier.readout, NoAnswer)
    return ExpertPasses(classifier, names, encoder, answers)


def default_experts(classifier: Classifier, settings: ExpertSettings) -> tuple[ExpertName, ...]:
    """Return the experts of a classifier of which none are named: none where an adapter or head was trained."""
    if classifier.is_trained:
        return ()
    if classifier.template.takes_choices:
        return ("options",)
    return ("frozen",) if settings.encoder is None else ("frozen", "encoder")
