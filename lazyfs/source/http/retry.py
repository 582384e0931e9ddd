"""When to try again, and after how long."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import trio
from msgspec import Struct

from lazyfs.errors import Unreachable
from lazyfs.source.counters import Counters

RETRIABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})


class Transient(Exception):
    """One attempt failed in a way that the next may not. Never leaves this package.

    Attributes:
        reason: what happened, fit for a message.
        status: HTTP status, or None.
        retry_after_s: how long the server asks to be left alone, or None.
        refused: whether nobody listens there.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        refused: bool = False,
    ) -> None:
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s
        self.refused = refused
        super().__init__(reason)


class RetryPolicy(Struct, frozen=True):
    """How patient to be.

    Attributes:
        retries: attempts after the first, as long as none brings anything.
        first_delay_s: wait before the first retry; it doubles each time, and up to half is taken off at
            random.
        most_delay_s: where doubling ends.
        most_retry_after_s: the longest wait a server can ask for.
        retries_unanswered: of those, how many where a host has never answered, and nobody listens there.
    """

    retries: int = 5
    first_delay_s: float = 0.25
    most_delay_s: float = 8.0
    most_retry_after_s: float = 60.0
    retries_unanswered: int = 2


class Retries:
    """The attempts of one operation.

    Args:
        policy: how patient to be.
        counters: where retries are counted.
        what: the operation, for the message of the error.
        url: where, fit to be shown.
    """

    def __init__(self, policy: RetryPolicy, counters: Counters, what: str, url: str) -> None:
        self._policy = policy
        self._counters = counters
        self._what = what
        self._url = url
        self._failed = 0
        self._most = policy.retries

    def hurry(self, *, patient: bool = True) -> None:
        """There is little hope: the address is wrong, or the server is not up. Whoever gave it waits.

        Args:
            patient: whether to try again at all.
        """
        self._most = min(self._policy.retries, self._policy.retries_unanswered) if patient else 0

    def progressed(self) -> None:
        """Something was brought: count failures from nought again."""
        self._failed = 0

    async def wait_after(self, failure: Transient) -> None:
        """Wait until the next attempt is due.

        Raises:
            Unreachable: there were enough, or the caller's deadline would pass while waiting.
        """
        if self._failed >= self._most:
            raise self._given_up(failure, f"gave up after {_attempts(self._failed + 1)}") from failure
        delay_s = self._delay_s(failure)
        if trio.current_time() + delay_s >= trio.current_effective_deadline():
            raise self._given_up(failure, "no time is left for another attempt") from failure
        self._failed += 1
        self._counters.add("retries")
        await trio.sleep(delay_s)

    def _delay_s(self, failure: Transient) -> float:
        grown: float = min(self._policy.first_delay_s * 2**self._failed, self._policy.most_delay_s)
        delay_s = grown * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, hides nothing
        if failure.retry_after_s is not None:
            delay_s = max(delay_s, min(failure.retry_after_s, self._policy.most_retry_after_s))
        return delay_s

    def _given_up(self, failure: Transient, why: str) -> Unreachable:
        return Unreachable(
            f"{self._what}: {failure.reason}; {why}: see that it is up, and try later",
            url=self._url,
            status=failure.status,
        )


def _attempts(count: int) -> str:
    return f"{count} attempts" if count > 1 else "one attempt"


def parse_retry_after(value: str, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or a date (RFC 9110, section 10.2.3)."""
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) < 12:
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
