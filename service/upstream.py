"""The decision model whose answers an artifact corrects: it is asked for the inputs that bring no answer along."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from laplora.errors import InvalidInputError, UpstreamChangedError, UpstreamRefusedError
from laplora.prompts.model_answers import made_up_answer
from laplora.prompts.questions import AnsweredQuestion
from laplora.prompts.templates import MODEL_PROBS
from laplora.upstream.asking import Asking, UpstreamAnswer, asked_state
from service.scoring.plan import Plan
from service.settings import Settings

#: Statuses of a refusal that are about what was sent, not about who sends it.
_ABOUT_INPUTS = frozenset({400, 413, 422})
_log = logging.getLogger("laplora.service")


class UpstreamModel:
    """Asks the decision model of the settings; belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._upstream, self._named = settings.upstream, settings.upstream_model
        #: Whether questions that no artifact was fitted to are asked too, and answers of another model pass.
        self.passes = settings.upstream_unfitted == "pass" and self._upstream is not None
        self._asking: Asking | None = None

    async def answer(self, plan: Plan) -> None:
        """Give each input of a plan that has none the model's answer.

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
        states = [asked_state(plan.inputs[i], question) for i in places]
        with _refusals():
            answers = await self._connected().ask_all(
                states, question, model=self._named or fitted, deadline=plan.deadline
            )
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
def _refusals() -> Iterator[None]:
    """Raise InvalidInputError where the model refuses an input or a question, and not this server."""
    try:
        yield
    except UpstreamRefusedError as error:
        if error.status in _ABOUT_INPUTS:
            raise InvalidInputError(str(error)) from None
        raise


def _is_whole(fields: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(isinstance(value := fields.get(name), str) and value.strip() for name in names)
