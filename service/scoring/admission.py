"""Who holds how much of the queue: rows, tokens, and text that is still to be tokenised. No clock and no lock.

Room is reserved before a text is tokenised, from an estimate of its tokens. The reservation is corrected once they are
known, shrinks as rows go to the device, and is closed with the plan, however that ends. One caller holds at most its
share of each limit. Who holds some already gets more only within its share of what the others leave (dynamic
thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 1998). A correction may exceed a limit by
``CORRECTION_SHARE`` of it; a plan that was underestimated by more is refused after all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import BatchTooLargeError, ClientQueueFullError, QueueFullError
from service.scoring.fairness import weight_of

#: By how much corrections may exceed a limit, as a share of it.
CORRECTION_SHARE = 1 / 8


class Amount(NamedTuple):
    """Part of the queue.

    Attributes:
        rows: prompts.
        tokens: theirs, without padding.
        text_bytes: UTF-8 bytes that wait for the tokenizer threads or are with them.
    """

    rows: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(self.rows + other.rows, self.tokens + other.tokens, self.text_bytes + other.text_bytes)

    def less(self, other: Amount) -> Amount:
        """Return the difference."""
        return Amount(self.rows - other.rows, self.tokens - other.tokens, self.text_bytes - other.text_bytes)


NOTHING = Amount()
#: What each is called in messages, and the setting that limits it.
_WHAT = ("rows", "tokens", "bytes of text")
_SETTINGS = ("max_queue_rows", "max_queue_tokens", "max_tokenize_bytes")


@dataclass(eq=False)
class Reservation:
    """What one request holds of the queue; only its :class:`Admission` changes it."""

    caller: str
    held: Amount


class Admission:
    """The queue's limits and who holds what.

    Args:
        limits: most that everybody together holds.
        client_share: most that one caller holds, as a share of each limit, and of what others leave of it.
    """

    def __init__(self, limits: Amount, *, client_share: float = 1.0) -> None:
        self._limits = limits
        self._client_share = client_share
        self._client_limits = Amount(*(max(1, int(limit * client_share)) for limit in limits))
        self._total = NOTHING
        self._by_caller: dict[str, Amount] = {}
        #: Tokens that the device does in a second, 0 while nobody knows.
        self._tokens_per_s = 0.0

    @property
    def total(self) -> Amount:
        """What everybody together holds."""
        return self._total

    def held_by(self, caller: str) -> Amount:
        """Return what one caller holds."""
        return self._by_caller.get(caller, NOTHING)

    def check_room(self, caller: str) -> None:
        """Check that one short row would find room.

        Raises:
            ClientQueueFullError, QueueFullError: as ``reserve``.
        """
        self._check_room(caller, Amount(rows=1, tokens=1, text_bytes=1))

    def reserve(self, caller: str, wanted: Amount, *, fewest_tokens: int = 0) -> Reservation:
        """Return a reservation for a request.

        Args:
            wanted: its rows, its tokens as estimated, and its text that is to be tokenised. An estimate of more than
                one caller may hold reserves all of that.
            fewest_tokens: that it has for certain: these alone are refused for good.

        Raises:
            BatchTooLargeError: it is larger than what one caller may hold, and will never fit.
            ClientQueueFullError: it does not fit into the caller's share now.
            QueueFullError: it does not fit into the queue now, or not into the caller's share of what others leave.
        """
        self._check_size(wanted._replace(tokens=fewest_tokens))
        wanted = wanted._replace(tokens=min(wanted.tokens, self._client_limits.tokens))
        self._check_room(caller, wanted)
        reservation = Reservation(caller, NOTHING)
        self._change(reservation, wanted)
        return reservation

    def correct(self, reservation: Reservation, known: Amount) -> None:
        """Put what is known after tokenising in place of an estimate.

        Raises:
            BatchTooLargeError: it is larger than what one caller may hold.
            ClientQueueFullError, QueueFullError: more than there is room for, ``CORRECTION_SHARE`` above the limits.
        """
        self._check_size(known)
        more = known.less(reservation.held)
        self._check_room(reservation.caller, more, let_in=True)
        self._change(reservation, more)

    def release(self, reservation: Reservation, gone: Amount) -> None:
        """Give back a part, such as rows that went to the device."""
        self._change(reservation, NOTHING.less(gone))

    def regain(self, reservation: Reservation, again: Amount) -> None:
        """Hold again what was released, whatever the limits: rows that go to the device a second time."""
        self._change(reservation, again)

    def close(self, reservation: Reservation) -> None:
        """Give back all that a reservation still holds."""
        self._change(reservation, NOTHING.less(reservation.held))

    def learn_speed(self, tokens: int, duration_s: float) -> None:
        """Take in how long the device took for a batch: what Retry-After is worked out from."""
        rate = tokens / duration_s
        self._tokens_per_s = rate if self._tokens_per_s == 0 else 0.8 * self._tokens_per_s + 0.2 * rate

    def _change(self, reservation: Reservation, more: Amount) -> None:
        caller = reservation.caller
        reservation.held = reservation.held.plus(more)
        self._total = self._total.plus(more)
        self._by_caller[caller] = self.held_by(caller).plus(more)
        if self._by_caller[caller] == NOTHING:
            del self._by_caller[caller]

    def _check_size(self, wanted: Amount) -> None:
        for what, setting, got, limit, whole in zip(
            _WHAT, _SETTINGS, wanted, self._client_limits, self._limits, strict=True
        ):
            if got > limit:
                of = "" if limit == whole else f" and one caller may hold {limit} of it (client_share)"
                raise BatchTooLargeError(
                    f"the request has {got} {what}, {setting} is {whole}{of}: send it in parts",
                    field="inputs",
                    limit=limit,
                    got=got,
                )

    def _check_room(self, caller: str, more: Amount, *, let_in: bool = False) -> None:
        """Check a request's room; one that was let in already may exceed the limits by ``CORRECTION_SHARE``."""
        before = self.held_by(caller)
        slack = CORRECTION_SHARE if let_in else 0.0
        for i, (what, setting) in enumerate(zip(_WHAT, _SETTINGS, strict=True)):
            if more[i] <= 0:
                continue
            held, limit = before[i], self._client_limits[i]
            if self._client_share < 1 and held + more[i] > limit * (1 + slack):
                raise ClientQueueFullError(
                    f"your requests hold {held} {what} and {more[i]} came, one caller may hold {limit} ({setting} "
                    "times client_share): wait for your own answers first",
                    limit=limit,
                    got=held + more[i],
                    retry_after_s=self._backlog_s(before.tokens, self._share_of(caller)),
                )
            total, limit = self._total[i], self._limits[i]
            if total + more[i] > limit * (1 + slack):
                raise QueueFullError(
                    f"{total} {what} wait and {more[i]} came, {setting} is {limit}: try again later",
                    limit=limit,
                    got=total + more[i],
                    retry_after_s=self._backlog_s(self._total.tokens, 1.0),
                )
            part = int((limit - (total - held)) * self._client_share)
            if held > 0 and not let_in and held + more[i] > part:
                raise QueueFullError(
                    f"{total} {what} wait, {held} of them yours, and {more[i]} came: one caller may hold {part} now "
                    f"({setting} less what other callers hold, times client_share): try again later",
                    limit=part,
                    got=held + more[i],
                    retry_after_s=self._backlog_s(self._total.tokens, 1.0),
                )

    def _share_of(self, caller: str) -> float:
        return weight_of(caller) / sum(map(weight_of, {caller, *self._by_caller}))

    def _backlog_s(self, tokens: int, share: float) -> int:
        """Seconds until this many tokens are done by this share of the device, 1 to 60."""
        rate = self._tokens_per_s * share
        return min(60, max(1, math.ceil(tokens / rate))) if rate > 0 else 1
