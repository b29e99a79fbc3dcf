"""Answers of a decision model in a file, so that asking about many rows goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laplora.files.strict_json import strict_json
from laplora.prompts.model_answers import odd_probs
from laplora.prompts.questions import AnsweredQuestion
from laplora.upstream.asking import Upstream, UpstreamAnswer


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
        """Keep an answer."""
        line = {"asked": self._digest(state), "model": answer.model, "probs": dict(answer.probs)}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def forget(self) -> None:
        """Empty the file: nothing of another model is found when the command goes on."""
        self._file.truncate(0)

    def close(self) -> None:
        """Close the file."""
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
