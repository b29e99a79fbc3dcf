"""Which read-out labels of several tokens get, and what is refused of them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import add_lora
from tiny_runs import FinishedRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.errors import LabelTokenError, ModelError
from laplora.prompts.templates import TEMPLATES
from laplora.readouts.choice import choose_readout
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens
from training.config import load_config
from training.workspace.runtime import open_run

#: Of two and three tokens, that begin otherwise.
LABELS = {"negative": " rather bad", "positive": " very good indeed"}


@pytest.fixture(scope="module")
def classifier(sentiment_run: FinishedRun) -> laplora.Classifier:
    base = AutoModelForCausalLM.from_pretrained(sentiment_run.base, dtype=torch.float32)
    model = add_lora(base, ["q_proj", "v_proj"], dtype=None)
    tokenizer = AutoTokenizer.from_pretrained(sentiment_run.base)
    return laplora.Classifier(model, tokenizer, LABELS, TEMPLATES["sentiment"], max_tokens=64)


def test_the_cheapest_read_out_that_can_tell_the_labels_apart(classifier: laplora.Classifier) -> None:
    model, tokenizer, template = classifier.model, classifier.tokenizer, classifier.template
    assert isinstance(choose_readout(model, tokenizer, template, (" bad", " good")), LabelTokens)
    one = choose_readout(model, tokenizer, template, (" bad", " good"), "label_sequences")
    assert isinstance(one, LabelSequences)
    assert isinstance(choose_readout(model, tokenizer, template, tuple(LABELS.values())), LabelSequences)
    with pytest.raises(LabelTokenError, match=r"' rather bad' must be one token .*or read whole texts"):
        choose_readout(model, tokenizer, template, tuple(LABELS.values()), "label_tokens")


def test_an_adapted_head_is_refused_before_anything_runs(sentiment_run: FinishedRun) -> None:
    base = AutoModelForCausalLM.from_pretrained(sentiment_run.base, dtype=torch.float32)
    model, tokenizer = add_lora(base, ["lm_head"], dtype=None), AutoTokenizer.from_pretrained(sentiment_run.base)
    with pytest.raises(ModelError, match="lm_head is adapted, and label sequences read its whole vocabulary"):
        laplora.Classifier(model, tokenizer, LABELS, TEMPLATES["sentiment"])


def test_a_configured_run_reads_sequences(sentiment_run: FinishedRun) -> None:
    """The labels are those of the data; the setting changes what the adapter is trained from."""
    options = ["readout=label_sequences", "adapter.targets=[q_proj, v_proj]", "name=sequences"]
    run = open_run(load_config(sentiment_run.config_file, options))
    assert run.readout == LabelSequences(tuple((token,) for token in open_run(sentiment_run.config).readout.token_ids))
