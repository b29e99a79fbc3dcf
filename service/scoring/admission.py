"""Who holds how much of the queue: rows, tokens, and text that is still to be tokenised. No clock and no lock.

Room is reserved by an estimate, corrected once the tokens are known, and given back as rows go to the device.

1. A caller may hold all of each limit while no other is there: one that holds some, or asked in the last minute.
2. While others are there, a caller that holds some gets more only up to its share of what the others leave (dynamic
   thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 1998); what it holds stays.
3. A caller that holds nothing gets in wherever there is room, up to an eighth past the limit. While it is refused, the
   others have their parts of ``client_share`` of the limit alone, so the device makes room for it. Callers that hold
   nothing have no order among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import BatchTooLargeError, ClientQueueFullError, QueueFullError
from service.scoring.fairness import is_job, weight_of

#: By how much corrections, and those who hold nothing, may exceed a limit, as a share of it.
SPARE_SHARE = 1 / 8
#: Seconds in which a caller is there after it asked: as long as Retry-After may tell it to wait.
HERE_S = 60.0


class Amount(NamedTuple):
    """Part of the queue: prompts, their tokens without padding, and UTF-8 bytes that are not tokenised yet."""

    rows: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(self.rows + other.rows, self.tokens + other.tokens, self.text_bytes + other.text_bytes)

    def less(self, other: Amount) -> Amount:
        return Amount(self.rows - other.rows, self.tokens - other.tokens, self.text_bytes - other.text_bytes)


NOTHING = Amount()
#: The least that a request asks for.
SHORT_ROW = Amount(1, 1, 1)
#: Their names in messages, and the settings that limit them.
_WHAT = ("rows", "tokens", "bytes of text")
_SETTINGS = ("max_queue_rows", "max_queue_tokens", "max_tokenize_bytes")


class Presence:
    """Callers that asked in the last ``HERE_S`` seconds. Jobs are none: they have time."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}  # who asked longest ago comes first

    def __contains__(self, caller: str) -> bool:
        return caller in self._asked

    def alone(self, caller: str, holders: Iterable[str], now: float) -> bool:
        """Take in that a caller asks; return whether no other is there, or among those who hold something."""
        if is_job(caller):
            return False
        self._asked.pop(caller, None)
        self._asked[caller] = now
        while self._asked[first := next(iter(self._asked))] < now - HERE_S:
            del self._asked[first]
        return len(self._asked) == 1 and all(other == caller or is_job(other) for other in holders)


class Limits(NamedTuple):
    """Most that everybody together holds, and most that one request does."""

    all: Amount
    each: Amount


@dataclass(eq=False)
class Reservation:
    """One request's share of the queue, and the limits that let it in; only its :class:`Admission` changes it."""

    caller: str
    limits: Limits
    held: Amount = NOTHING


class Admission:
    """The queue's limits and who holds what.

    Args:
        limits: most that everybody together holds.
        client_share: most that one request has of each limit, and one caller of what the others that are there leave.

    Attributes:
        total: what everybody together holds.
    """

    def __init__(self, limits: Amount, *, client_share: float = 1.0) -> None:
        self.total = NOTHING
        self._client_share = client_share
        self.resize(limits)
        self._by_caller: dict[str, Amount] = {}
        self._here = Presence()
        self._refused: dict[str, float] = {}  # of those that hold nothing, and when; the longest ago first
        self._tokens_per_s = 0.0  # of the device; 0 while nobody knows

    def resize(self, limits: Amount) -> None:
        """Set other limits; what is held stays, and what was let in is."""
        self._limits = Limits(limits, Amount(*(max(1, int(limit * self._client_share)) for limit in limits)))

    @property
    def limits(self) -> Amount:
        """Most that everybody together holds."""
        return self._limits.all

    def held_by(self, caller: str) -> Amount:
        return self._by_caller.get(caller, NOTHING)

    def reserve(self, caller: str, wanted: Amount, *, now: float, fewest_tokens: int = 0) -> Reservation:
        """Return a reservation for a request.

        Args:
            wanted: its rows, estimated tokens and text. An estimate of more than a request may have reserves all that.
            now: ``time.monotonic`` s.
            fewest_tokens: that it has for certain: these alone are refused for good.

        Raises:
            BatchTooLargeError: it is larger than a request may be.
            ClientQueueFullError, QueueFullError: as ``check_room``.
        """
        self._check_size(wanted._replace(tokens=fewest_tokens), self._limits)
        wanted = wanted._replace(tokens=min(wanted.tokens, self._limits.each.tokens))
        self.check_room(caller, wanted, now=now)
        self._refused.pop(caller, None)
        reservation = Reservation(caller, self._limits)
        self.change(reservation, wanted)
        return reservation

    def correct(self, reservation: Reservation, known: Amount, *, now: float) -> None:
        """Put what is known after tokenising in place of an estimate, under the limits of now or then, the larger ones.

        Raises:
            BatchTooLargeError: it is larger than a request may be.
            QueueFullError: more than there is room for, ``SPARE_SHARE`` above the limits.
        """
        limits = max(self._limits, reservation.limits)
        self._check_size(known, limits)
        more = known.less(reservation.held)
        self.check_room(reservation.caller, more, now=now, let_in=limits)
        self.change(reservation, more)

    def change(self, reservation: Reservation, more: Amount) -> None:
        """Hold more or less, whatever the limits: for rows that go to the device, or go there a second time."""
        caller = reservation.caller
        reservation.held = reservation.held.plus(more)
        self.total = self.total.plus(more)
        self._by_caller[caller] = self.held_by(caller).plus(more)

    def close(self, reservation: Reservation) -> None:
        """Give back all that a reservation still holds. Until then its caller is there, also while its rows run."""
        self.change(reservation, NOTHING.less(reservation.held))
        if self._by_caller[reservation.caller] == NOTHING:
            del self._by_caller[reservation.caller]

    def learn_speed(self, tokens: int, duration_s: float) -> None:
        """Take in how long the device took for a batch: what Retry-After is worked out from."""
        rate = tokens / duration_s
        self._tokens_per_s = rate if self._tokens_per_s == 0 else 0.8 * self._tokens_per_s + 0.2 * rate

    def check_room(self, caller: str, more: Amount = SHORT_ROW, *, now: float, let_in: Limits | None = None) -> None:
        """Check that a caller would find room; by default for one short row.

        Args:
            let_in: the request was let in already: it may exceed these limits by ``SPARE_SHARE``.

        Raises:
            ClientQueueFullError: it does not fit into the caller's part now.
            QueueFullError: it does not fit into the queue now.
        """
        before = self.held_by(caller)
        share = 1.0 if self._here.alone(caller, self._by_caller, now) else self._client_share
        while self._refused and self._refused[first := next(iter(self._refused))] < now - HERE_S:
            del self._refused[first]
        shared = share if len(self._refused) > (caller in self._refused) else 1.0
        slack = 1 + SPARE_SHARE if before == NOTHING or let_in is not None else 1.0
        for i, (what, setting) in enumerate(zip(_WHAT, _SETTINGS, strict=True)):
            if more[i] <= 0:
                continue
            held, total, limit = before[i], self.total[i], (let_in or self._limits).all[i]
            part = int((limit * shared - (total - held)) * share)
            if share < 1 and held > 0 and let_in is None and held + more[i] > part:
                raise ClientQueueFullError(
                    f"{total} {what} wait, {held} of them yours, and {more[i]} came: beside others one caller may hold "
                    f"{max(0, part)} now ({setting} less theirs, times client_share): wait for your own answers first",
                    limit=max(0, part),
                    got=held + more[i],
                    retry_after_s=self._backlog_s(before.tokens, self._share_of(caller)),
                )
            if total + more[i] > limit * slack:
                if before == NOTHING and caller in self._here:
                    self._refused.pop(caller, None)
                    self._refused[caller] = now
                raise QueueFullError(
                    f"{total} {what} wait and {more[i]} came, {setting} is {limit}: try again later",
                    limit=limit,
                    got=total + more[i],
                    retry_after_s=self._backlog_s(self.total.tokens, 1.0),
                )

    def _check_size(self, wanted: Amount, limits: Limits) -> None:
        for what, setting, got, limit, whole in zip(_WHAT, _SETTINGS, wanted, limits.each, limits.all, strict=True):
            if got > limit:
                of = "" if limit == whole else f" and one request may have {limit} of it (client_share)"
                raise BatchTooLargeError(
                    f"the request has {got} {what}, {setting} is {whole}{of}: send it in parts",
                    field="inputs",
                    limit=limit,
                    got=got,
                )

    def _share_of(self, caller: str) -> float:
        return weight_of(caller) / sum(map(weight_of, {caller, *self._by_caller}))

    def _backlog_s(self, tokens: int, share: float) -> int:
        """Return the seconds until this many tokens are done by this share of the device, 1 to 60."""
        rate = self._tokens_per_s * share
        return min(60, max(1, math.ceil(tokens / rate))) if rate > 0 else 1
