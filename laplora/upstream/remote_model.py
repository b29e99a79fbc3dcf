"""A decision model somewhere else as a classifier: its answers come with the rows, and heads here correct them.

Beside its probabilities nothing of a remote model is known. A small sentence encoder, run here, stands in for its
states: a head on them corrects its log probabilities by the content of the input, another answers alone, and the pool
weighs both with the model's own answer (``laplora.fitting.fitted_heads``).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mode
from typing import Any

from laplora.classifier import MAX_TOKENS, Classifier
from laplora.errors import DataError, UpstreamChangedError, UpstreamError
from laplora.execution.progress import Progress, shown_by
from laplora.files.strict_json import strict_json
from laplora.prompts.model_answers import odd_probs
from laplora.prompts.questions import STATE, AnsweredQuestion, as_text, question_of_body
from laplora.prompts.templates import MODEL_PROBS
from laplora.upstream.asking import ANY_MODEL, Asking, Upstream, UpstreamAnswer, asked_state

#: The sentence encoder that stands in for the model's states.
ENCODER = "all-minilm-l6-v2"
#: So many kept answers are asked for again. If a probability differs by more from what it was, the model is another;
#: batches of other sizes differ less.
_AGAIN, _SAME = 3, 0.02


@dataclass(frozen=True)
class RemoteModel:
    """A decision model and one question.

    Attributes:
        upstream: the server; question: with the labels.
        encoder: name of the sentence encoder.
    """

    upstream: Upstream
    question: AnsweredQuestion
    encoder: str = ENCODER

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return self.question.labels

    def answered(
        self, rows: Sequence[Mapping[str, Any]], progress: bool | Progress = True, keep: Path | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        """Return rows with the model's probabilities as ``model_probs``, and the name that it gives itself.

        Args:
            rows: with ``state``, any JSON value, which becomes a text. If you have answers already, give rows with
                ``model_probs``, a probability for each label, and call nothing.
            keep: file that answers are kept in, and of which those to the same question, by the same model, are used.

        Raises:
            DataError: a row without a state.
            UpstreamChangedError: the model's name changed between two rows.
            UpstreamError: as ``Upstream.ask``; OSError: of the file.
        """
        absent = [number for number, row in enumerate(rows) if not as_text(row.get(STATE) or "").strip()]
        if absent:
            raise DataError(f"row {absent[0]} has no {STATE!r}, and {len(absent) - 1} more: what should be asked about")
        texts = [{STATE: as_text(row[STATE])} for row in rows]
        loop = asyncio.new_event_loop()
        asking = loop.create_task(self._asked(texts, shown_by(progress), keep))
        with closing(loop), ThreadPoolExecutor(1) as thread:  # a notebook has an event loop of its own
            try:
                answers = thread.submit(loop.run_until_complete, asking).result()
            finally:  # Ctrl-C ends it
                loop.call_soon_threadsafe(asking.cancel)
        names = list(dict.fromkeys(answer.model for answer in answers))
        if len(names) > 1:
            raise UpstreamChangedError(
                f"the model called itself {names[0][:64]!r} and then {names[1][:64]!r}: name the version that you want"
            )
        with_answers = [
            {**row, **text, MODEL_PROBS: dict(answer.probs)}
            for row, text, answer in zip(rows, texts, answers, strict=True)
        ]
        return with_answers, names[0] if names else self.upstream.model

    async def _asked(
        self, texts: Sequence[Mapping[str, str]], shown: Progress, keep: Path | None
    ) -> list[UpstreamAnswer]:
        states, asking = [asked_state(text, self.question) for text in texts], Asking(self.upstream)
        kept = None if keep is None else KeptAnswers(keep, self.upstream, self.question)
        answers = {} if kept is None else kept.among(states)
        name = mode(one.model for one in answers.values()) if answers else ""
        places = [place for place, one in answers.items() if one.model == name]
        again = places[:: -(-len(places) // _AGAIN)][:_AGAIN] if places else []
        before = {place: answers.pop(place) for place in again}
        steps = shown.track(range(len(states) - len(answers)), "asking the model")

        def told(place: int, answer: UpstreamAnswer) -> None:
            next(steps, None)
            if kept is not None:
                kept.add(states[place], answer)

        try:
            if again:  # the model may be another by now
                now = dict[int, UpstreamAnswer]()
                await asking.ask_all([states[place] for place in again], self.question, now)
                today = [now[number] for number in range(len(again))]
                moved = [
                    abs(one.probs[label] - prob)
                    for one, old in zip(today, before.values(), strict=True)
                    if one.model == old.model
                    for label, prob in old.probs.items()
                ]
                if kept is not None and max(moved, default=0.0) > _SAME:
                    shown.say(f"the model answers otherwise than before, by {max(moved):.2g}: no kept answer counts")
                    kept.forget()
                    answers = {}
                answers = {place: one for place, one in answers.items() if one.model == today[0].model}
                shown.say(f"{len(answers)} of {len(states)} answers are from {keep}, the model is asked for the others")
                for place, one in zip(again, today, strict=True):
                    answers[place] = one
                    told(place, one)
            await asking.ask_all(states, self.question, answers, told=told)
        finally:
            for _ in steps:  # the bar ends
                pass
            await asking.close()
            if kept is not None:
                kept.close()
        return [answers[place] for place in range(len(states))]

    def known_as(self, name: str) -> bool:
        """Return whether the model answers to a name, such as the one that it gives itself."""
        if name == self.upstream.model:
            return True
        named = replace(self, upstream=replace(self.upstream, model=name, tries=1))
        try:
            return named.answered([{STATE: "test"}], progress=False)[1] == name
        except UpstreamError:
            return False

    def classifier(self, name: str, device: str = "auto") -> Classifier:
        """Return the classifier that ``laplora.fit`` takes with rows of ``answered``.

        Args:
            name: that the model gave itself: an artifact is of it alone.

        Raises:
            ModelError, DownloadError: an encoder that cannot be loaded.
        """
        from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base, resolve_device
        from laplora.models.classifier_head import longest_input

        spec = BaseSpec(self.encoder, None, "none", "float32", classes=0)
        location = locate_base(spec)
        model = load_base_model(location, spec, device=resolve_device(device)).model
        template = replace(self.question.template, answered=name)
        most = min(MAX_TOKENS, longest_input(model) or MAX_TOKENS)
        classifier = Classifier(model, load_tokenizer(location), template, self.labels, max_tokens=most)
        classifier.question = self.question.asked
        return classifier


def remote_model(
    url: str,
    question: Mapping[str, Any],
    *,
    model: str = ANY_MODEL,
    key: str | None = None,
    encoder: str = ENCODER,
    **options: Any,
) -> RemoteModel:
    """Return a decision model that speaks ``POST /v1/systemone``, with one question of it.

    Args:
        url: of its server; model: the name that is asked for; key: a bearer token, which is kept nowhere.
        question: as a request writes it: type, instructions, criteria.
        encoder: name of a sentence encoder: an offline name, a folder, or a hub id.
        options: further ones of ``Upstream``: timeout_s, tries, at_once.

    Raises:
        ConfigError: a URL or a question that is none.
    """
    return RemoteModel(Upstream(url, model, key, **options), question_of_body(question), encoder)


class KeptAnswers:
    """A file of answers to one question, JSON Lines that its owner alone reads.

    A line has the name that the model gave itself, its probabilities, and ``Upstream.digest`` of what was asked: if a
    part of that changes, no answer is found. It has no key and no text. A broken line, such as the last one of a
    process that was killed, is skipped.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, upstream: Upstream, question: AnsweredQuestion) -> None:
        self._upstream, self._question = upstream, question
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
        os.fchmod(self._file.fileno(), 0o600)
        self._file.seek(0)
        self._found = dict[str, UpstreamAnswer]()
        for line in self._file:
            self._read(line)
        if self._file.tell():
            self._file.write(b"\n")  # after what may be half a line

    def among(self, states: Sequence[Any]) -> dict[int, UpstreamAnswer]:
        """Return the answers that are kept for states, by place."""
        found = {place: self._found.get(self._digest(state)) for place, state in enumerate(states)}
        return {place: answer for place, answer in found.items() if answer is not None}

    def add(self, state: Any, answer: UpstreamAnswer) -> None:
        line = {"asked": self._digest(state), "model": answer.model, "probs": dict(answer.probs)}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def forget(self) -> None:
        """Empty the file: nothing of another model is found when the command goes on."""
        self._file.truncate(0)

    def close(self) -> None:
        self._file.close()

    def _read(self, line: bytes) -> None:
        try:
            one = strict_json(line)
            asked, model, probs = str(one["asked"]), str(one["model"]), one["probs"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if odd_probs(probs, self._question.labels) is None:
            self._found[asked] = UpstreamAnswer(model, probs)

    def _digest(self, state: Any) -> str:
        return self._upstream.digest(state, self._question)
