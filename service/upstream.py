"""The decision model whose answers an artifact corrects: it is asked for the inputs that bring no answer along."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from laplora.errors import (
    InvalidInputError,
    LaploraError,
    UpstreamAnswerError,
    UpstreamChangedError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
)
from laplora.prompts.model_answers import made_up_answer
from laplora.prompts.questions import AnsweredQuestion
from laplora.prompts.templates import MODEL_PROBS
from laplora.upstream.asking import Asking, UpstreamAnswer, asked_state
from service.scoring.plan import Plan
from service.settings import Settings

#: Statuses of a refusal that are about what was sent, not about who sends it.
_ABOUT_INPUTS = frozenset({400, 413, 422})
#: The state that tells, once another has no answer, whether the model has any; and most answers that wait for a job.
_PROBE, _MOST_LEFT = "test", 4096
_log = logging.getLogger("laplora.service")


class UpstreamModel:
    """Asks the decision model of the settings; belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._upstream, self._named = settings.upstream, settings.upstream_model
        #: Whether questions that no artifact was fitted to are asked too, and answers of another model pass.
        self.passes = settings.upstream_unfitted == "pass" and self._upstream is not None
        self._asking: Asking | None = None
        #: Answers of chunks of jobs in which another state had none, by digest of what was asked.
        self._left = dict[str, UpstreamAnswer]()

    async def answer(self, plan: Plan) -> None:
        """Give each input of a plan that has none the model's answer.

        If a job's input has no answer, and a state of one word has one, the error's field is that input.

        If another model answers than was fitted, and both settings and plan let it pass, the plan asks for ``map`` and
        is noted as uncorrected.

        Raises:
            InvalidInputError: an input without an answer, and no model to ask.
            UpstreamError: as ``Asking.ask``; UpstreamChangedError: another model answers.
        """
        manifest = plan.model.artifact.manifest
        fitted, question = manifest.template.answered, manifest.answers
        places = [i for i, fields in enumerate(plan.inputs) if MODEL_PROBS not in fields]
        if fitted is None or not places:
            return
        if self._upstream is None or question is None:
            raise InvalidInputError(
                f"input {places[0]} has no {MODEL_PROBS}, and this server was not told where the model {fitted!r} is "
                "(upstream_url): send its probability for each label",
                field=f"inputs.{places[0]}.{MODEL_PROBS}",
            )
        inputs: list[Mapping[str, Any]] = list(plan.inputs)
        names, made_up = manifest.template.template().fields, made_up_answer(manifest.labels)
        for i in places:
            if not _is_whole(inputs[i], names):  # tokenising says what is wrong with it
                inputs[i] = {**inputs[i], MODEL_PROBS: made_up}
        places = [i for i in places if MODEL_PROBS not in inputs[i]]
        answers = await self._answers([asked_state(plan.inputs[i], question) for i in places], question, plan, places)
        others = {answer.model for answer in answers} - {fitted}
        if others:
            told = f"the artifact corrects the model {fitted!r}, and {min(others)[:64]!r} answers"
            if not (self.passes and plan.may_pass):
                raise UpstreamChangedError(f"{told}: calibrate anew, or ask for the other one by upstream_model")
            _log.warning(told, extra={"event": "upstream_changed"})
            plan.ask, plan.uncorrected = replace(plan.ask, predictive="map", also=()), True
        for place, answer in zip(places, answers, strict=True):
            inputs[place] = {**inputs[place], MODEL_PROBS: dict(answer.probs)}
        plan.inputs = inputs

    async def _answers(
        self, states: Sequence[Any], question: AnsweredQuestion, plan: Plan, places: Sequence[int]
    ) -> list[UpstreamAnswer]:
        """Return an answer for each state. If one has none, a job finds the others' here when it tries again."""
        asking, model = self._connected(), self._named or plan.model.artifact.manifest.template.answered
        patient = math.isinf(plan.deadline)
        digests = [asking.upstream.digest(state, question, model) for state in states] if patient else []
        answers = {i: self._left.pop(digest) for i, digest in enumerate(digests) if digest in self._left}
        try:
            with _refusals(places):
                await asking.ask_all(states, question, answers, model=model, deadline=plan.deadline)
        except LaploraError as error:
            if len(self._left) > _MOST_LEFT:
                self._left.clear()
            self._left.update({digests[i]: answer for i, answer in answers.items() if patient})
            if patient and isinstance(error, UpstreamUnavailableError | UpstreamAnswerError):
                with suppress(UpstreamError):
                    await asking.ask(_PROBE, {_PROBE: question}, model=model)
                    error.field = f"inputs.{places[error.place or 0]}"
            raise
        return [answers[i] for i in range(len(states))]

    async def passed(
        self, state: Any, questions: Mapping[str, AnsweredQuestion], deadline: float
    ) -> dict[str, UpstreamAnswer]:
        """Return the model's own answers to questions that no artifact was fitted to; errors as of ``answer``."""
        with _refusals():
            return await self._connected().ask(state, questions, model=self._named, deadline=deadline)

    def _connected(self) -> Asking:
        if self._asking is None:
            assert self._upstream is not None
            self._asking = Asking(self._upstream)
        return self._asking

    async def close(self) -> None:
        """Close the connections."""
        if self._asking is not None:
            await self._asking.close()


@contextmanager
def _refusals(places: Sequence[int] = ()) -> Iterator[None]:
    """Raise InvalidInputError where the model refuses an input or a question, and not this server.

    Its field is the input, by these places of several.
    """
    try:
        yield
    except UpstreamRefusedError as error:
        if error.status in _ABOUT_INPUTS:
            field = None if error.place is None else f"inputs.{places[error.place]}"
            raise InvalidInputError(str(error), field=field) from None
        raise


def _is_whole(fields: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(isinstance(value := fields.get(name), str) and value.strip() for name in names)
