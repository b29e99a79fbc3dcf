"""Rows that are encoded one by one and run in any batch, as a server does, give the features of a fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from tiny_classifiers import head_alone
from tiny_models import add_lora, tiny_base
from tiny_tokenizer import encoder_tokenizer, tiny_tokenizer

import laplora
from laplora.errors import DataError, InvalidInputError, NonFiniteError, TooManyTokensError
from laplora.execution.progress import Silent
from laplora.features.encoding import FeatureEncoding
from laplora.features.expert_passes import ExpertPasses
from laplora.features.outputs import Outputs
from laplora.features.sentence_encoder import SentenceEncoder, TextEncoding
from laplora.prompts.examples import Example
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import TEMPLATES
from laplora.prompts.token_bounds import UNBOUNDED
from laplora.prompts.token_roles import FIELD

QUESTIONS = (
    ("Is the film good", ("yes", "no", "I say so after seeing it twice")),
    ("Is it", ("rather", "not very")),
    ("The plot was dull and I say so after seeing it twice, is it so", ("no", "yes", "weak", "funny")),
)
EXAMPLES = [Example("", {"question": asked, "choices": given}, 0, len(given)) for asked, given in QUESTIONS]


def passes_of() -> ExpertPasses:
    """Return the passes of every source by random models, the base under an adapter, and its answers."""
    tokenizer, words = tiny_tokenizer(), encoder_tokenizer()
    base = tiny_base("llama", vocab_size=len(tokenizer), layers=4, max_position_embeddings=128)
    model = add_lora(base, ["q_proj"], dtype=None)
    classifier = laplora.Classifier(model, tokenizer, TEMPLATES["multiple_choice"], tuple("ABCD"), max_tokens=64)
    small = head_alone("bert", dtype=torch.float32, vocab_size=len(words)).bert
    encoder = SentenceEncoder("tiny", "", words, UNBOUNDED, 12, model=small, pooling="mean", normalised=True)
    return ExpertPasses.of(classifier, ("frozen", "encoder", "options"), encoder, answers=True)


def same(one: Outputs, other: Outputs, gap: float) -> None:
    """Compare, to a share of each block's largest value."""
    assert torch.equal(one.class_mask, other.class_mask)
    torch.testing.assert_close(one.log_probs["zero_shot"], other.log_probs["zero_shot"], rtol=0, atol=gap)
    for source, blocks in one.features.items():
        for name, block in blocks.items():
            expected = other.features[source][name]
            torch.testing.assert_close(block, expected, rtol=0, atol=gap * float(expected.abs().max()))


def test_a_served_batch_gives_the_features_of_a_fit_and_a_row_alone_does_too() -> None:
    """Bit for bit in the same batch; to float32's rounding whatever is beside a row, on which side it is padded."""
    passes = passes_of()
    fitted = passes.outputs(EXAMPLES, Silent(), "", 8)
    assert [*fitted.features] == ["frozen", "options", "encoder"]
    assert fitted.features["options"]["scores"].shape == (3, 4, 6)
    # Another machine encodes: without weights, and the rows travel.
    given, whole = passes.classifier, passes.encoder
    assert whole is not None
    text = TextEncoding(whole.name, whole.location, whole.tokenizer, whole.bounds, whole.max_tokens)
    encoding = FeatureEncoding(passes.names, text)

    def encode(fields: Mapping[str, object], limit: int = 64, *, truncate: bool = False) -> EncodedRow:
        options = {"max_tokens": limit, "truncate": truncate, "bounds": given.token_bounds}
        return encoding.row(given.tokenizer, given.template, given.labels, fields, side="left", **options)

    rows = [pickle.loads(pickle.dumps(encode(example.fields))) for example in EXAMPLES]  # noqa: S301
    assert rows == [passes.encode(example.fields) for example in EXAMPLES]
    assert replace(rows[2], roles=(), encoder_ids=(), options=None) == given.encode(EXAMPLES[2].fields)
    by_length = sorted(range(3), key=lambda i: len(rows[i].token_ids))
    served = passes.of_rows.of_batch([rows[i] for i in by_length])
    same(served.take(torch.tensor(by_length).argsort()), fitted, 0)
    same(Outputs.joined(*(passes.of_rows.of_batch([row]) for row in rows)), fitted, 1e-5)

    # A prompt's limit is refused or cut, the encoder's text is cut in any case.
    assert max(len(row.encoder_ids) for row in rows) == whole.max_tokens
    limit = len(rows[2].token_ids)
    assert encode(EXAMPLES[2].fields, limit) == rows[2]
    with pytest.raises(TooManyTokensError, match=f"has {limit} tokens, the limit is {limit - 1}"):
        encode(EXAMPLES[2].fields, limit - 1)
    cut = encode(EXAMPLES[2].fields, limit - 1, truncate=True)
    assert cut.truncated
    assert len(cut.roles) == len(cut.token_ids) == limit - 1
    assert cut.encoder_ids == rows[2].encoder_ids

    given.model.to(torch.bfloat16)  # and the encoder's products with it
    alone = replace(passes.of_rows, sources=("encoder",), answers=False)
    halved, exact = (of["embedding"] for of in (alone.of_batch(rows).features["encoder"], fitted.features["encoder"]))
    assert 1e-6 < float((halved - exact).abs().max()) < 0.02


def test_a_whole_prompt_is_one_field_and_has_no_options() -> None:
    passes = passes_of()
    whole = replace(passes.of_rows, sources=("frozen", "encoder"))
    asked = replace(passes, of_rows=whole)
    row = asked.encode({"prompt": "The film was dull"})
    assert set(row.roles[1:]) == {FIELD}
    assert passes.encoder is not None
    assert row.encoder_ids == tuple(passes.encoder.tokenizer.encode("The film was dull"))
    features = whole.of_batch([row]).features
    assert torch.equal(features["frozen"]["after.4"], features["frozen"]["last.4"])
    with pytest.raises(InvalidInputError, match="a whole prompt has no options"):
        passes.encode({"prompt": "The film was dull"})
    with pytest.raises(DataError, match="has no options, which options reads"):
        passes.of_rows.of_batch([row])
    with pytest.raises(DataError, match="has no roles, which frozen reads"):
        whole.of_batch([passes.classifier.encode({"prompt": "dull"})])


def test_what_is_not_finite_is_refused_by_its_name() -> None:
    passes = passes_of()
    row, model, encoder = passes.encode(EXAMPLES[0].fields), passes.classifier.model, passes.encoder
    assert encoder is not None
    with torch.no_grad():
        encoder.model.embeddings.word_embeddings.weight[:] = torch.nan
        with pytest.raises(NonFiniteError, match=r"mean\.1 of 'tiny' holds NaN or infinity: use another"):
            passes.of_rows.of_batch([row])
        layer = model.get_base_model().model.layers[2]
        layer.mlp.up_proj.weight.fill_(torch.inf)
        for sources, message in (
            ((), "the base's logits hold NaN"),
            (("options",), "the base's mean of options hold NaN"),
            (("frozen",), r"the base's states fields\.3 hold NaN or infinity: load the base in bfloat16"),
        ):
            with pytest.raises(NonFiniteError, match=message):
                replace(passes.of_rows, sources=sources, answers=not sources).of_batch([row])
