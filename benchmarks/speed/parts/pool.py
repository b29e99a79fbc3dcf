"""The cost of answers by heads and their pool over a MAP answer, and the cost of further labels.

Texts are made up, and the adapter is random: what an answer costs does not depend on what weights were learned.
Answers are timed by the processor's seconds of one thread: a busy machine changes them least. Labels are learned by
all cores, and timed by the clock.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.evidence.plan import LARGER, SMALL
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import Format
from benchmarks.harness.timing import in_turns, ratio, spread
from benchmarks.speed.parts.server import WORDS
from laplora.artifact.head_files import expert_fields
from laplora.classifier import Classifier
from laplora.errors import DownloadError
from laplora.execution.progress import Silent
from laplora.experts.answering import AnswersByHead
from laplora.experts.base import Labelled, Outputs
from laplora.experts.of_head import LAST, fit_head
from laplora.features.expert_passes import ExpertPasses
from laplora.features.outputs import HeadSource
from laplora.features.sentence_encoder import SentenceEncoder, load_sentence_encoder
from laplora.fitting.entry import fit
from laplora.fitting.fitted_heads import FittedHeads, fit_heads, learned
from laplora.fitting.heads import HeadsPosterior
from laplora.head.folds import fold_numbers, folds_of_new
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base
from laplora.models.quiet import quiet_loading
from laplora.pool.served import POOLED, ServedExperts
from laplora.predictive.lora_weights import lora_parameters
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from laplora.settings import FitSettings

LABELS = ("sport", "money", "space", "food", "music", "law")
#: A topic is a pair of words, one of each half.
TOPICS = "early late small great quiet bright plain heavy cold match price planet oven violin court garden engine sea"
#: Labelled rows that heads are fitted on, and that they learn later.
ROWS, LATER = 450, 1000
HEADS: tuple[HeadSource, ...] = ("frozen", "encoder")
ENCODER = "all-minilm-l6-v2"
#: Words of a text: a prompt of them has about 60 tokens, and of the labelled rows 20.
LONG, SHORT = 50, 10


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the seconds of later labels, the ratios of answers by number format and batch, and the encoder's share."""
    torch.set_num_threads(1)
    encoder, turns, cores = load_sentence_encoder(ENCODER), 5 if quick else 21, os.cpu_count() or 1
    outputs = without_adapter(SMALL, "float32", encoder).outputs(examples(ROWS + LATER, SHORT), Silent(), "")
    heads = fitted(outputs, len(LABELS))
    torch.set_num_threads(cores)
    for count, classes in ((LATER - ROWS, len(LABELS)), (LATER, len(LABELS)), (LATER, 77))[: 2 if quick else 3]:
        known = heads if classes == len(LABELS) else fitted(outputs, classes)
        given = later(outputs, classes, known, count)
        for part, learn in (
            ("", partial(learned, known, *given, FitSettings(), Silent())),
            (", without what they decide", partial(moved, known, *given)),
        ):
            what = f"{count:,} labels learned after {ROWS}, both heads{part}, {classes} classes"
            taken = spread(in_turns({"": learn}, 5)[""])
            yield conditions.record(f"pool: {what}", taken, f"seconds, {cores} cores", limit=1.0)
    torch.set_num_threads(1)
    for number_format in ("float32", "nf4"):
        measured = subjects(number_format, encoder, heads, outputs)
        for rows in (1, 8):
            times = in_turns({name: asking(*each, rows) for name, each in measured.items()}, turns, time.process_time)
            for name in list(measured)[1:]:
                limit = 1.1 if name.endswith("no adapter") else 2.1
                what = f"{name}, {number_format}, {rows} x 60 tokens"
                yield conditions.record(f"pool: {what}", ratio(times, name, "map"), "a MAP answer", limit=limit)
    yield from beside_larger(conditions, encoder, turns)


def beside_larger(conditions: Conditions, encoder: SentenceEncoder, turns: int) -> Iterator[Record]:
    """Yield what the sentence encoder adds to a pass of the larger base, if that base can be had."""
    try:
        both, alone = (without_adapter(LARGER, "nf4", encoder, names) for names in (HEADS, ("frozen",)))
    except DownloadError as error:
        print(f"not measured beside {LARGER}: {error}")
        return
    for rows in (1, 8):
        given = [both.encode(example.fields) for example in examples(rows, LONG)]
        functions = {name: partial(of.of_rows.of_batch, given) for name, of in (("both", both), ("alone", alone))}
        what = f"sentence encoder beside the 0.5B base, nf4, {rows} x 60 tokens"
        times = in_turns(functions, turns, time.process_time)
        yield conditions.record(f"pool: {what}", ratio(times, "both", "alone"), "a pass without it", limit=1.05)


def asking(predictor: Predictor, name: str, rows: int) -> Callable[[], Any]:
    """Return a call that answers rows, tokenised before, by a predictive."""
    given = [predictor.encode(one.fields, truncate=False) for one in examples(rows, LONG)]
    return partial(predictor.predict, given, name)


def subjects(
    number_format: Format, encoder: SentenceEncoder, heads: FittedHeads, outputs: Outputs
) -> dict[str, tuple[Predictor, str]]:
    """Return by what is asked the predictor and the predictive, ``map`` of the adapter first."""
    few = [{**one.fields, "label": one.label} for one in examples(6 * len(LABELS), 3)]
    train, calibration = few[: len(few) // 2], few[len(few) // 2 :]
    adapted = fit(classifier(number_format, adapter=True), train, calibration, settings=FitSettings(), progress=False)
    passes, data = without_adapter(SMALL, number_format, encoder), {"rows": {"labelled": ROWS}}
    alone = HeadsPosterior(passes, heads, examples(3, SHORT), FitSettings(), data, Silent())
    states, logits = outputs.features["frozen"], torch.randn(ROWS + LATER, len(LABELS), dtype=torch.float64)
    last = Outputs(outputs.class_mask, {"adapter": logits.log_softmax(1)}, {"last_state": {LAST: states["last.30"]}})
    some = last.take(torch.arange(ROWS))
    conditioned = fit_head("conditioned", some, heads.labelled, "last_state", offset="adapter", temper=True)
    beside: dict[str, AnswersByHead] = {"conditioned": conditioned, **heads.experts}
    pools = [with_heads(adapted.predictor, beside, ("adapter", *of), encoder) for of in (("frozen",), tuple(beside))]
    with_experts = with_heads(alone.predictor, heads.experts, HEADS, encoder)
    return {
        "map": (adapted.predictor, "map"),
        "adapter and frozen": (pools[0], POOLED),
        "adapter, conditioned, frozen, encoder": (pools[1], POOLED),
        "frozen and encoder, no adapter": (with_experts, POOLED),
        "frozen, no adapter": (with_experts, "frozen"),
        "map, no adapter": (with_experts, "map"),
    }


def with_heads(
    predictor: Predictor, heads: Mapping[str, AnswersByHead], members: Sequence[str], encoder: SentenceEncoder
) -> Predictor:
    """Return a predictor that answers by a pool of members of equal weight, and by no other head."""
    kept = {name: heads[name] for name in members if name in heads}
    served = ServedExperts(kept, dict.fromkeys(members, 1 / len(members)), predictor.experts.familiar)
    manifest = predictor.artifact.manifest
    records = dict.fromkeys(("map", *kept, POOLED), next(iter(manifest.predictives.values())))
    fields = expert_fields(served, dict.fromkeys(kept, ROWS), None)
    manifest = manifest.model_copy(update={**fields, "predictives": {**records, **manifest.predictives}})
    artifact = replace(predictor.artifact, manifest=manifest)
    given = predictor.adapted, predictor._tokenizer, predictor.device, predictor.base, predictor.review_scores
    return Predictor(artifact, *given, served, encoder)


def classifier(number_format: Format, *, base: str = SMALL, adapter: bool = False) -> Classifier:
    """Return a base as a classifier of texts, with a random adapter or as it is."""
    held: tuple[Any, Any] = ("nf4", "bfloat16") if number_format == "nf4" else ("none", number_format)
    spec = BaseSpec(base, None, *held)
    location = locate_base(spec)
    model, tokenizer = load_base_model(location, spec, device=torch.device("cpu")).model, load_tokenizer(location)
    if adapter:
        with quiet_loading():
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
        for parameter in lora_parameters(model).values():
            parameter.data = 0.02 * torch.randn(parameter.shape)
    return Classifier(model, tokenizer, "Text: {text}\nTopic:", LABELS)


def without_adapter(
    base: str, number_format: Format, encoder: SentenceEncoder, names: tuple[HeadSource, ...] = HEADS
) -> ExpertPasses:
    """Return the passes of heads on a base as it is."""
    return ExpertPasses.of(classifier(number_format, base=base), names, encoder, answers=True)


def examples(count: int, words: int) -> tuple[Example, ...]:
    """Return made-up texts, each of a topic, labelled in turn."""
    draw, half, rows = random.Random(0), TOPICS.split(), []
    for number in range(count):
        topic = number * 31 % 81
        text = [*draw.choices(" ".join(WORDS).split(), k=words - 2), half[topic % 9], half[9 + topic // 9]]
        rows.append(Example(str(number), {"text": " ".join(text)}, number % len(LABELS), len(LABELS)))
    return tuple(rows)


def labelled(rows: int, classes: int) -> Labelled:
    """Return the labels of the first rows: a word of their topics, or both; one in ten is wrong."""
    possible, groups = torch.ones(rows, classes, dtype=torch.bool), torch.arange(rows)
    topics = groups * 31 % 81
    labels = ((topics // 9 if classes < 9 else topics) + (groups % 10 == 0)) % classes
    return Labelled(labels, possible, groups, fold_numbers(rows), possible[:, 0])


def fitted(outputs: Outputs, classes: int) -> FittedHeads:
    """Return the heads of the first rows."""
    rows = labelled(ROWS, classes)
    some = replace(outputs.take(torch.arange(ROWS)), class_mask=rows.class_mask, log_probs={})
    return fit_heads(HEADS, some, rows, FitSettings(), Silent())


def moved(heads: FittedHeads, outputs: Outputs, rows: Labelled) -> None:
    """Let each head learn further rows, with those that answer its rows without their folds."""
    for head in heads.experts.values():
        head.learn(outputs, rows)


def later(outputs: Outputs, classes: int, heads: FittedHeads, count: int) -> tuple[Outputs, Labelled]:
    """Return further rows with their labels."""
    others, old = torch.arange(ROWS, ROWS + count), heads.labelled
    rows = labelled(ROWS + count, classes).take(others)
    rows = replace(rows, folds=folds_of_new(old.folds, count, old.groups, rows.groups))
    some = outputs.take(others)
    return replace(some, class_mask=rows.class_mask, log_probs={}), rows
