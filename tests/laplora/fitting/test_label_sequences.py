"""Labels of several tokens from end to end: fitted, saved, loaded with their golden answers, and the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from telling import assert_served_as_fitted
from tiny_models import add_lora
from tiny_runs import FinishedRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.artifact.readout_records import LabelSequencesRecord
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


def test_fitted_saved_and_served(classifier: laplora.Classifier, sentiment_run: FinishedRun, tmp_path: Path) -> None:
    assert isinstance(classifier.readout, LabelSequences)
    assert [len(tokens) for tokens in classifier.readout.token_ids] == [2, 3]
    splits = open_run(sentiment_run.config).splits
    rows = {
        name: [{**e.fields, "label": splits.task.labels[e.label]} for e in getattr(splits, name)]
        for name in ("train", "calibration", "test")
    }
    settings = sentiment_run.config.fit
    posterior = laplora.fit(classifier, rows["train"], rows["calibration"], settings=settings, progress=False)
    posterior.evaluate(rows["test"])
    folder = posterior.save(tmp_path / "tiny-sequences")
    record = read_artifact(folder).manifest.readout
    assert isinstance(record, LabelSequencesRecord)
    assert record.verbalizers == tuple(LABELS.values())
    predictor = assert_served_as_fitted(posterior, folder, [{"text": row["text"]} for row in rows["test"][:6]])
    assert predictor.reverse_pass.kind == "automatic"


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
