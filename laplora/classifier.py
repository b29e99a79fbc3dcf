"""A model as a classifier, fine-tuned or as it is: its prompt, its labels, and how their logits are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch

from laplora.errors import ConfigError, ModelError, NonFiniteError
from laplora.execution.workers import ALONE, Workers
from laplora.models.classifier_head import check_ending, check_length, is_adapted
from laplora.models.held_weights import non_finite
from laplora.models.lora import check_enabled, is_classifier
from laplora.models.probe import check_adapted, check_head, check_readout, check_states
from laplora.models.readout import base_of
from laplora.models.spread import Spread, block_devices, check_spread, input_device, spread_of
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.examples import Example
from laplora.prompts.questions import Question
from laplora.prompts.rows import FEWEST_TOKENS, MAX_LABELS, Batch, EncodedRow, collate
from laplora.prompts.templates import PromptTemplate, default_verbalizers
from laplora.prompts.token_bounds import TokenBounds, token_bounds
from laplora.prompts.token_roles import ending_tokens
from laplora.readouts.base import ReadOut
from laplora.readouts.choice import ReadOutName, choose_readout
from laplora.readouts.classification_head import ClassificationHead, check_order
from laplora.readouts.label_sequences import LabelSequences

Result = TypeVar("Result")

#: Longest prompt where none is stated, in tokens.
MAX_TOKENS = 512


class Classifier:
    """A model with its tokenizer, labels and prompt.

    Attributes:
        model: the model as given, in evaluation mode; its adapter, if it has one, is the trained one.
        tokenizer: as given.
        labels: names of the labels, in class order.
        verbalizers: the text after the prompt that stands for each label.
        template: the prompt.
        readout: how the labels' logits are read.
        max_tokens: longest prompt, in tokens; a longer one is cut as the template says.
        pad_token_id: what fills shorter rows.
        workers: processes that share the rows of a fit. Each has the same model, and makes the same calls.
    """

    workers: Workers = ALONE
    question: Question | None = None  # that another model answered for its inputs; a fit declares it

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: str | PromptTemplate,
        labels: Sequence[str] | Mapping[str, str],
        *,
        max_tokens: int = MAX_TOKENS,
        readout: ReadOut | ReadOutName | None = None,
    ) -> None:
        """Check and hold the model.

        Args:
            model: a causal language model with a LoRA adapter (``peft.PeftModel``); or a sequence classification model
                with LoRA and a trained head, or a trained head alone; or a causal language model or an encoder as it
                is (``AutoModel``), for heads on its states. Nothing of it is changed but its mode, which becomes
                evaluation.
            tokenizer: the model's.
            template: the prompt with ``{field}`` placeholders; ``{choices}`` takes a list of options. If a prompt is
                too long, the end of its longest text is cut, unless a ``PromptTemplate`` sets ``cut``.
            labels: their names, in class order; or by name the text after the prompt that stands for the label, its
                leading space included (``{"refund request": " A"}``). A name stands for itself, after a space where the
                template does not end in one.
            max_tokens: longest prompt, in tokens.
            readout: how logits are read; None: a classifier's head; else label tokens where each label is one token,
                else label sequences, and of a model as it is nothing.

        Raises:
            ModelError: a model that the method does not cover, a head of another number of classes or another order, a
                model on several devices without a device map or in part on the disk, compiled or wrapped for parallel
                work, a slow tokenizer; the message says what to do.
            NonFiniteError: a weight that is NaN or infinite.
            LabelTokenError: labels that cannot be told apart after the prompt.
            ConfigError: fewer than two labels, a name twice, a template without a placeholder, or fewer than
                ``FEWEST_TOKENS`` tokens.
        """
        if max_tokens < FEWEST_TOKENS:
            raise ConfigError(f"max_tokens is {max_tokens}, and a prompt needs {FEWEST_TOKENS} or more: raise it")
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelError(
                "the tokenizer must be a fast one, whose processing an artifact can record, got "
                f"{type(tokenizer).__name__}: load it by transformers.AutoTokenizer, which makes a fast one if it can"
            )
        self.labels, self.verbalizers, self.template = _described(labels, template)
        self.model = _checked(model)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        if isinstance(readout, str) or readout is None:
            readout = choose_readout(self.model, tokenizer, self.template, self.verbalizers, readout)
        self.readout: ReadOut = readout
        self.pad_token_id = _pad_token(tokenizer)
        if readout.likelihood == "bernoulli" and "choices" in self.template.fields:
            raise ConfigError("several of a question's {choices} cannot be right: its model takes one label a row")
        if isinstance(readout, ClassificationHead):
            check_ending(self.model, tokenizer)
            check_order(self.model, self.labels)
        check_length(self.model, max_tokens, readout.tree.extra_tokens if isinstance(readout, LabelSequences) else 0)

    def __repr__(self) -> str:
        labels = ", ".join(self.labels[:4]) + (", ..." if len(self.labels) > 4 else "")
        readout, fields = type(self.readout).__name__, list(self.template.fields)
        return f"Classifier({type(self.model).__name__}, labels: {labels}, read by {readout}, fields: {fields})"

    @property
    def class_count(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def is_trained(self) -> bool:
        """Whether the model has a LoRA adapter or a trained head, over whose weights there is a posterior."""
        return is_adapted(self.model) or is_classifier(self.model)

    @property
    def device(self) -> torch.device:
        """The model's device; if it is spread over several devices, that of its inputs and logits."""
        return input_device(base_of(self.model))

    @property
    def place(self) -> str | Spread:
        """The device or the spread of the model, as ``Predictor.load`` takes it."""
        return spread_of(base_of(self.model)) or str(self.device)

    def block_devices(self, names: Iterable[str]) -> dict[str, torch.device] | None:
        """Return where the Jacobians of blocks are, by their names, for ``Posterior.to``; None: all on ``device``."""
        return block_devices(base_of(self.model), names)

    @cached_property
    def token_bounds(self) -> TokenBounds:
        """Bounds on a prompt's tokens that are known before it is tokenised."""
        return token_bounds(self.tokenizer)

    @cached_property
    def ending_tokens(self) -> int:
        """How many last tokens of every prompt are the template's own words, at least 1."""
        return ending_tokens(self.tokenizer, self.template)

    def encode(self, inputs: Mapping[str, object], *, truncate: bool = True) -> EncodedRow:
        """Return one input, the template's fields, as a row.

        Raises:
            InvalidInputError: fields that the template does not take, or text that cannot be used.
            TooManyTokensError: too long, with ``truncate`` off.
        """
        return encode_inputs(
            self.tokenizer,
            self.template,
            inputs,
            self.labels,
            max_tokens=self.max_tokens,
            truncate=truncate,
            bounds=self.token_bounds,
            side=self.readout.side,
        )

    def encode_examples(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Return examples as rows, cut at the limit."""
        return [self.encode(example.fields) for example in examples]

    def collate(self, rows: Sequence[EncodedRow]) -> Batch:
        """Return rows as one batch on the model's device."""
        batch = collate(rows, class_count=self.class_count, pad_token_id=self.pad_token_id, side=self.readout.side)
        return batch.to(self.device)

    def over_batches(
        self,
        examples: Sequence[Example],
        size: int,
        work: Callable[[Batch], Result],
        track: Callable[[Sequence[list[int]]], Iterator[list[int]]] = iter,
    ) -> tuple[list[Result], torch.Tensor]:
        """Return what work gives of every batch, and (rows,) the order that makes its rows, joined, the examples'.

        The workers share the batches, which are the same for any number of them, and all get every result.

        Args:
            size: rows a batch, of like length; track: goes over the batches; work: of a batch what is to be kept of it,
                on the CPU.
        """
        rows = self.encode_examples(examples)
        return self.over_rows(rows, size, lambda index: work(self.collate([rows[i] for i in index])), track)

    def over_rows(
        self,
        rows: Sequence[EncodedRow],
        size: int,
        work: Callable[[list[int]], Result],
        track: Callable[[Sequence[list[int]]], Iterator[list[int]]] = iter,
    ) -> tuple[list[Result], torch.Tensor]:
        """Return what ``over_batches`` does, of encoded rows; work takes the numbers of a batch's rows."""
        places, results = list[int](), list[Result]()
        for index in track(self.workers.share(batches(rows, size))):
            results.append(work(index))
            places += index
        places, results = self.workers.joined(places, results)
        return results, torch.tensor(places).argsort()


def batches(
    rows: Sequence[EncodedRow], size: int, most: tuple[int, Callable[[EncodedRow], int]] | None = None
) -> list[list[int]]:
    """Return row numbers in batches of like length, every row once.

    Args:
        size: rows of a batch, at most.
        most: padded tokens of a batch, at most, and what says how many a row counts as; a row of more is alone.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].token_ids), i))
    limit, tokens_of = most or (math.inf, lambda row: 0)
    chosen: list[list[int]] = []
    for i in order:
        # Every earlier row is as short or shorter.
        if not chosen or len(chosen[-1]) == size or (len(chosen[-1]) + 1) * tokens_of(rows[i]) > limit:
            chosen.append([])
        chosen[-1].append(i)
    return chosen


def _described(
    labels: Sequence[str] | Mapping[str, str], template: str | PromptTemplate
) -> tuple[tuple[str, ...], tuple[str, ...], PromptTemplate]:
    """Return the labels' names, their verbalizers and the template."""
    if isinstance(template, str):
        spaced = template[-1:].isspace()
        template = PromptTemplate("custom", 1, template, label_prefix="" if spaced else " ").cutting_texts()
    if not isinstance(template, PromptTemplate):
        raise ConfigError(
            f"the template must be one text with {{field}} placeholders, got {type(template).__name__}: the order is "
            "model, tokenizer, template, labels"
        )
    if isinstance(labels, str):
        raise ConfigError("labels must be a list of names, or a mapping from names to texts, got one text")
    names = tuple(labels)
    if odd := [name for name in names if not isinstance(name, str)]:
        kind = type(odd[0]).__name__
        raise ConfigError(f"labels must be names, as texts, got {kind}: rows may have numbers, which count the labels")
    if len(names) < 2 or len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise ConfigError(f"labels must be at least two different names, got {list(map(str, names))[:8]}")
    if len(names) > MAX_LABELS:
        raise ConfigError(f"there are {len(names)} labels, and at most {MAX_LABELS} are covered: group them")
    verbalizers = tuple(labels.values()) if isinstance(labels, Mapping) else default_verbalizers(template, names)
    if not all(isinstance(text, str) and text for text in verbalizers):
        raise ConfigError("the text of a label must be at least one character, its leading space included")
    return names, verbalizers, template


def _checked(model: Any) -> Any:
    """Return the model in evaluation mode, after every check that does not depend on the labels."""
    kind = type(model).__name__
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"the model must be one that from_pretrained returned, got {kind}")
    if hasattr(model, "_orig_mod"):
        raise ModelError("the model is compiled, which hides its layers: give the one before torch.compile")
    if kind in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"):
        raise ModelError(f"the model is wrapped in {kind}: give the module inside it, on one device")
    check_spread(model)
    if (name := non_finite(model)) is not None:
        raise NonFiniteError(f"the model holds NaN or infinity in {name}: train it again, or load another checkpoint")
    model.eval()
    if is_classifier(base_of(model)):
        check_head(model)
        if is_adapted(model):
            check_enabled(model)
            check_adapted(model)
        return model
    if not is_adapted(model):
        output: Any = getattr(model, "get_output_embeddings", None)
        if output is None:
            raise ModelError(f"the model must be one that from_pretrained returned, got {kind}")
        if any(hasattr(module, "lora_A") for module in model.modules()):
            raise ModelError(
                f"the {kind} has LoRA layers in it, and its states are an adapter's: give the PeftModel around it, or "
                "what its unload() returns"
            )
        (check_states if output() is None else check_readout)(model)
        return model
    check_enabled(model)
    with without_adapter(model):
        check_readout(base_of(model))
    check_adapted(model)
    return model


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Let a PEFT model answer as its base inside the block.

    PEFT's own ``disable_adapter`` takes five times as long: it also sets which weights are trainable.
    """
    layers = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    before = [module._disable_adapters for module in layers]
    try:
        for module in layers:
            module._disable_adapters = True
        yield
    finally:
        for module, was in zip(layers, before, strict=True):
            module._disable_adapters = was


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Let a model answer as its base inside the block, without its adapter if it has one, and without gradients."""
    with torch.no_grad(), without_adapter(model) if is_adapted(model) else nullcontext():
        yield


def _pad_token(tokenizer: Any) -> int:
    """Return the token that fills shorter rows, which the attention mask hides."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ModelError("the tokenizer has neither a padding nor an end token: set tokenizer.pad_token to one of its own")
