"""Asks a decision model over HTTP: ``POST /v1/systemone``, one question over one state a request.

The protocol is that of ``laplora.prompts.questions``. Nothing here writes or logs a key or a state.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from laplora.errors import (
    ConfigError,
    UpstreamAnswerError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
    needs,
)
from laplora.files.strict_json import strict_json
from laplora.prompts.model_answers import odd_probs
from laplora.prompts.questions import AnsweredQuestion, as_text

#: The name that the protocol has for whatever model a server has.
ANY_MODEL = "jev-latest"
#: The id of the one question of a request.
_ID = "question"
#: Most bytes of an answer.
_MOST_BYTES = 1 << 20
#: Statuses after which another try may help; the vendor's own for "overloaded" among them.
_BUSY = frozenset({408, 429, 500, 502, 503, 504, 529})
#: Longest wait between two tries, seconds, and the longest that a busy server may ask for.
_LONGEST_S, _LONGEST_ASKED_S = 8.0, 60.0


@dataclass(frozen=True)
class UpstreamAnswer:
    """An answer: the name that the model gives itself, and its probability for each label."""

    model: str
    probs: Mapping[str, float]


@dataclass(frozen=True)
class Upstream:
    """A server with a decision model.

    Attributes:
        url: of the server, with or without ``/v1/systemone``; key: sent as a bearer token, shown nowhere.
        model: the name that is asked for.
        timeout_s: of one try, seconds; tries: of one state; at_once: requests at a time, at most.
        transport: of httpx, in place of the network.

    Raises:
        ConfigError: a URL that is none, or one with a user's name or password in it; no certificates to check it by.
    """

    url: str
    model: str = ANY_MODEL
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    tries: int = 4
    at_once: int = 8
    transport: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError:
            parts = urlsplit("")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError("the decision model's key has signs that no header can have: give one line of ASCII")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the decision model's URL must be http://HOST or https://HOST")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError("the decision model's URL must be without a name, a password or a query: give the key")
        if parts.scheme == "https" and (file := os.environ.get("SSL_CERT_FILE")):
            try:
                ssl.create_default_context(cafile=file)
            except OSError:
                raise ConfigError("SSL_CERT_FILE names no file with certificates") from None

    def digest(self, state: Any, question: AnsweredQuestion, model: str | None = None) -> str:
        """Return the SHA-256 of what is asked, in hexadecimal: the URL, the model's name, the question, the state."""
        asked = [self.endpoint, model or self.model, _body(question), state]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @property
    def endpoint(self) -> str:
        """The URL that requests are posted to."""
        path = self.url.rstrip("/")
        return path if path.endswith("/v1/systemone") else f"{path.removesuffix('/v1')}/v1/systemone"


class Asking:
    """Connections to a decision model, of one event loop; to be closed by who makes it.

    Raises:
        ConfigError: httpx is not installed.
    """

    def __init__(self, upstream: Upstream) -> None:
        try:
            import httpx
        except ImportError as error:
            raise needs("client", error) from error
        self.upstream = upstream
        self._room = asyncio.Semaphore(upstream.at_once)
        key = {"authorization": f"Bearer {upstream.key}"} if upstream.key else {}
        # No redirects: they would take the key and the states to where an answer says.
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **key},
            limits=httpx.Limits(max_connections=upstream.at_once),
            timeout=upstream.timeout_s,
            transport=upstream.transport,
            follow_redirects=False,
            trust_env=False,
            # It reads SSL_CERT_FILE, for authorities of one's own.
            verify=httpx.create_ssl_context() if upstream.url.startswith("https") else True,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(
        self,
        state: Any,
        questions: Mapping[str, AnsweredQuestion],
        *,
        model: str | None = None,
        deadline: float = math.inf,
    ) -> dict[str, UpstreamAnswer]:
        """Return the answers to questions about a state; a busy server is asked again, after waits that jitter spreads.

        Args:
            state: any JSON value; questions: by an id.
            model: the name that is asked for, if another than the upstream's.
            deadline: ``time.monotonic`` seconds, after which nothing is tried any more.

        Raises:
            UpstreamUnavailableError, UpstreamRefusedError, UpstreamAnswerError: as their names say.
        """
        bodies = {name: _body(question) for name, question in questions.items()}
        whole = {"model": model or self.upstream.model, "state": state, "questions": bodies}
        content, tries = json.dumps(whole).encode(), self.upstream.tries
        for tried in range(1, tries + 1):
            try:
                async with self._room:
                    return _answers(await self._posted(content, deadline), questions)
            except UpstreamUnavailableError as error:
                longest = min(_LONGEST_S, 0.25 * 2.0**tried)
                wait_s = max(error.retry_after_s or 0.0, longest * random.uniform(0.5, 1.0))
                if tried == tries or wait_s > _LONGEST_ASKED_S or time.monotonic() + wait_s >= deadline:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("a try either answers or raises")

    async def _posted(self, content: bytes, deadline: float) -> bytes:
        """Return the body of an answer of status 200, of one try."""
        import httpx

        left_s = min(self.upstream.timeout_s, deadline - time.monotonic())
        if left_s <= 0:
            raise UpstreamUnavailableError("there was no time left to ask the decision model")
        headers, read = {"content-type": "application/json"}, bytearray()
        try:
            async with (
                asyncio.timeout(left_s),  # httpx's is of each read: a server that trickles would have no end
                self._client.stream("POST", self.upstream.endpoint, content=content, headers=headers) as response,
            ):
                if response.status_code == 200:
                    # A small packed answer can be of any size in memory.
                    if response.headers.get("content-encoding", "identity") != "identity":
                        raise UpstreamAnswerError("the decision model's answer is packed, which nobody asked for")
                    async for part in response.aiter_raw():
                        read += part
                        if len(read) > _MOST_BYTES:
                            raise UpstreamAnswerError(f"the decision model's answer has more than {_MOST_BYTES} bytes")
        except TimeoutError:
            raise UpstreamUnavailableError(f"the decision model did not answer within {left_s:.3g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # a message may hold the URL, and what a server sent
            raise UpstreamUnavailableError(f"the decision model cannot be reached ({type(error).__name__})") from None
        if response.status_code in _BUSY:
            wait_s = _retry_after(response.headers.get("retry-after"))
            asks = f", and asks to wait {wait_s:.0f} s" if wait_s else ""
            busy = UpstreamUnavailableError(
                f"the decision model is busy or failed (status {response.status_code}){asks}"
            )
            busy.retry_after_s = wait_s
            raise busy
        if response.status_code != 200:
            refused = UpstreamRefusedError(f"the decision model refuses the request (status {response.status_code})")
            refused.status = response.status_code
            raise refused
        return bytes(read)

    async def ask_all(
        self,
        states: Sequence[Any],
        question: AnsweredQuestion,
        answers: dict[int, UpstreamAnswer],
        *,
        model: str | None = None,
        deadline: float = math.inf,
        told: Callable[[int, UpstreamAnswer], object] = lambda place, answer: None,
    ) -> None:
        """Add an answer for each state that has none, by place. The first error ends all; its ``place`` says whose.

        ``told`` is called after each. The others, and errors, are those of ``ask``.
        """
        waiting = iter([(place, state) for place, state in enumerate(states) if place not in answers])

        async def work() -> None:
            for place, state in waiting:
                try:
                    found = await self.ask(state, {_ID: question}, model=model, deadline=deadline)
                except UpstreamError as error:
                    error.place = place
                    raise
                answers[place] = found[_ID]
                told(place, found[_ID])

        working = [asyncio.ensure_future(work()) for _ in range(min(self.upstream.at_once, len(states)))]
        try:
            await asyncio.gather(*working)
        finally:
            for one in working:
                one.cancel()
            await asyncio.gather(*working, return_exceptions=True)


def as_state(text: str) -> Any:
    """Return the state that a template's text stands for: ``as_text`` turned back, where it is JSON of a structure."""
    if text[:1] in ("{", "["):
        try:
            return strict_json(text)
        except (ValueError, RecursionError):
            return text
    return text


def asked_state(fields: Mapping[str, Any], question: AnsweredQuestion) -> Any:
    """Return what a decision model is asked about for a template's fields: the only one alone, several by name."""
    names = [name for name in question.template.fields if name in fields]
    if len(names) == 1:
        return as_state(as_text(fields[names[0]]))
    return {name: as_state(as_text(fields[name])) for name in names}


def _retry_after(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 3600 else None


def _body(question: AnsweredQuestion) -> dict[str, Any]:
    asked, criteria = question.asked, question.criteria
    if asked.type == "noul" and isinstance(criteria, Mapping):  # a server may read null as a text of its own
        criteria = {name: text for name, text in criteria.items() if text is not None} or None
    body = {"type": asked.type, "instructions": asked.instructions, "criteria": criteria}
    return {name: value for name, value in body.items() if value is not None}


def _answers(content: bytes, questions: Mapping[str, AnsweredQuestion]) -> dict[str, UpstreamAnswer]:
    """Return what a body answers; UpstreamAnswerError where it is no answer to each question."""
    try:
        body = json.loads(content)
        model, answers = body["model"], {name: dict(body["answers"][name]) for name in questions}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UpstreamAnswerError("the decision model's answer is not that of POST /v1/systemone") from None
    if not isinstance(model, str) or not 0 < len(model) <= 256 or not model.isprintable():
        raise UpstreamAnswerError("the decision model gives itself no name")
    return {name: UpstreamAnswer(model, _probs(answers[name], question)) for name, question in questions.items()}


def _probs(answer: Mapping[str, Any], question: AnsweredQuestion) -> dict[str, float]:
    """Return an answer's probabilities by label."""
    kind, keys = question.asked.type, question.keys(None)
    given = answer.get("probabilities")
    if kind == "noul":
        yes: Any = answer.get("noul")
        given = {"true": yes, "false": 1 - yes if isinstance(yes, int | float) else None}
    if answer.get("type") != kind or (problem := odd_probs(given, keys)) is not None:
        why = "it is of another type" if answer.get("type") != kind else f"it must {problem}"
        raise UpstreamAnswerError(f"the decision model's {kind} answer cannot be used: {why}")
    return {label: given[key] for label, key in zip(question.labels, keys, strict=True)}  # type: ignore[index]
