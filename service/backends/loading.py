"""A predictor is loaded and verified: its golden answers are replayed, and it answers a first prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from service.artifacts.predictors import Library
from service.artifacts.token_budget import measure_budget
from service.process import free_what_is_unused
from service.scoring.backend import Enter
from service.scoring.device import Device
from service.scoring.model import TokenBudget
from service.settings import QUEUE_TOKENS, Settings
from service.telemetry.logs import log_crash, logger

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor


class Loader:
    """Loads predictors, one at a time, on the thread that calls.

    Their answers and the measured batches are runs of the device's thread, between those of requests. Before them the
    library tries on the calling thread, by passes of two short rows, how the model can be run.
    """

    def __init__(self, settings: Settings, device: Device, library: Library) -> None:
        self._settings, self._device, self._library = settings, device, library
        self._used: WeakSet[Predictor] = WeakSet()  # not their base: what nobody uses is free for another one
        self._begun = False  # whether any was used before
        self._budgets: WeakKeyDictionary[Predictor, TokenBudget] = WeakKeyDictionary()

    def load(self, path: Path, enter: Enter) -> Predictor:
        """Return the predictor of the artifact in a folder, verified.

        Args:
            enter: told of each phase, with a stage in words; what it raises ends the load.

        Raises:
            LaploraError: it cannot be served.
            DeviceFaultError, DrainingError: the device takes nothing.
        """
        enter("loading", "loading the artifact and its base model")
        with self._device.latching_faults():
            predictor = self._library.load(path, self._settings, lambda stage: enter("loading", stage))
        how = predictor.reverse_pass
        if how is not None:
            fields = {"artifact": predictor.artifact.name, "kind": how.kind, "reason": how.reason}
            logger.info("Jacobians are %s: %s", how.kind, how.reason, extra={"event": "reverse_pass", **fields})
        verifying = partial(enter, "verifying", "replaying the golden answers")
        verifying()

        def replay(one_answer: Callable[[], list[Prediction]]) -> list[Prediction]:
            verifying()  # ends a load that was given up
            answers: list[Prediction] = self._device.call(one_answer).result()
            return answers

        # Each answer is a run of its own: requests go between them, and the device is not taken for one that hangs.
        predictor.verify_golden(replay)
        enter("warming_up", "answering a first prompt")
        warm_up = [predictor.sample_row()]
        # The replay ran every predictive, together with others. Alone, one without Jacobians takes another pass.
        for predictive in dict.fromkeys((predictor.recommended, predictor.predictives[0])):
            self._device.call(partial(predictor.predict, warm_up, predictive)).result()
        self._budgets[predictor] = self._measured(predictor, partial(enter, "warming_up", "measuring batches"))
        return predictor

    def _measured(self, predictor: Predictor, go_on: Callable[[], None]) -> TokenBudget:
        """Return a predictor's token budget, as the settings fix it or measured, and log it."""

        def on_device(function: Callable[[], Any]) -> Any:
            go_on()  # ends a load that was given up
            return self._device.call(function).result()

        fixed, settings = self._settings.batch_tokens, self._settings
        if fixed is not None:
            budget = TokenBudget(fixed, "as the setting batch_tokens says")
        else:
            budget = measure_budget(
                predictor,
                self._library.meter(predictor),
                on_device,
                most_tokens=settings.max_queue_tokens or QUEUE_TOKENS,
                reserved_bytes=max(0, settings.max_artifact_bytes - predictor.own_bytes),
            )
        fields = {"event": "token_budget", "artifact": predictor.artifact.name, "tokens": budget.tokens}
        logger.info("batches: %d tokens: %s", budget.tokens, budget.reason, extra={**fields, "reason": budget.reason})
        return budget

    def budget_of(self, predictor: Predictor) -> TokenBudget:
        return self._budgets[predictor]

    def use(self, predictor: Predictor, loaded: Sequence[Predictor]) -> None:
        """Set what depends on the base model and on all that are loaded, and log how a new base is held.

        While a predictor on a new base was measured, the former base was in memory: batches are measured once more, as
        soon as none of those that are loaded is on it.
        """
        self._device.token_budget = min(self._budgets[one].tokens for one in loaded)
        if any(one.base is not predictor.base for one in loaded):
            return
        known = any(one.base is predictor.base for one in self._used)
        self._used.update(loaded)
        if known:
            return
        replaced, self._begun = self._begun, True
        weights = predictor.weights
        fields = {"event": "weights", "held": weights.held, "reason": weights.reason}
        logger.info("the base's weights are %s: %s", weights.held, weights.reason, extra=fields)
        if replaced and self._settings.batch_tokens is None and self._library.meter(predictor) is not None:
            free_what_is_unused()
            try:
                self._budgets[predictor] = self._measured(predictor, lambda: None)
            except Exception as error:  # the artifact answers already: what was measured first stays
                log_crash("batches could not be measured again", error)
            self._device.token_budget = min(self._budgets[one].tokens for one in loaded)
