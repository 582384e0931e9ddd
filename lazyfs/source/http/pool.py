"""Byte ranges over HTTP: requests sent and answers read in worker threads, under trio's cancellation.

    answer = await pool.get(url, headers)       # one thread hop: the head has come
    try:
        result = await answer.read(work)        # another: `work` reads the body and uses it
    finally:
        answer.close()

Between the two hops the caller looks at the status and decides, in trio. A cancelled `get` abandons its
thread, which closes what it opens. A cancelled `read` ends the connection under its thread and waits for it,
so that `work` never runs on after `read` has returned.
"""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import trio

from lazyfs.errors import LazyfsError
from lazyfs.source.counters import Counters
from lazyfs.source.http.answers import EXCERPT_BYTES
from lazyfs.source.http.answers import Answer as AnswerHead
from lazyfs.source.http.connections import Connection, Connections, shut_down
from lazyfs.source.http.refusals import final_refusal, reason_of
from lazyfs.source.http.retry import Transient
from lazyfs.source.http.urls import Origin, origin_of

T = TypeVar("T")

_CONTENT: Final = frozenset({200, 206})
_BROKEN: Final = (OSError, http.client.HTTPException)


class Body(Protocol):
    """The body of an answer, for use in the worker thread."""

    def readinto(self, view: memoryview) -> int:
        """Fill `view` from the body; fewer bytes may come, none only at the end.

        Raises:
            Transient: the connection broke or stalled.
        """


class ContentAnswer(AnswerHead, Protocol):
    """An answer whose body, if it is content, is still to be read."""

    async def read(self, work: Callable[[Body], T]) -> T:
        """Run `work` on the body in a worker thread. What it raises passes through."""


class RangeClient(Protocol):
    """The seam: how bytes come."""

    async def get(self, url: str, headers: Mapping[str, str]) -> ContentAnswer:
        """Send a GET and wait for the head of its answer. Redirects are answers.

        Raises:
            Transient: no answer came.
            SourceError: the URL is none, or may not be asked.
            Unreachable: trying again will not help.
        """

    async def prepare(self, url: str, connections: int) -> None:
        """See that connections to where a URL leads are open for requests to come; these see what fails."""


class HttpPool:
    """A RangeClient on `http.client`, with a bounded number of requests under way.

    Args:
        connections: where they come from.
        most: how many requests may be under way at once.
        headers: sent with every request.
        counters: where requests and bytes are counted.
        check: raises where a URL must not be asked.
    """

    def __init__(
        self,
        connections: Connections,
        most: int,
        headers: Mapping[str, str],
        counters: Counters,
        check: Callable[[str], None],
    ) -> None:
        self._check = check
        self._connections = connections
        self._headers = dict(headers)
        self._counters = counters
        self._slots = trio.CapacityLimiter(most)
        self._threads = trio.CapacityLimiter(most)

    def __repr__(self) -> str:
        return f"<HttpPool {self._slots.borrowed_tokens} of {self._slots.total_tokens} busy>"

    async def get(self, url: str, headers: Mapping[str, str]) -> "HttpAnswer":
        """As RangeClient.get says."""
        self._check(url)
        exchange = _Exchange(self._connections, self._counters, origin_of(url), url)
        await self._slots.acquire_on_behalf_of(exchange)
        answer = HttpAnswer(exchange, self._slots, self._threads)
        remaining_s = trio.current_effective_deadline() - trio.current_time()
        give_up_at = time.monotonic() + max(remaining_s, 0.001)
        try:
            await exchange.run(
                lambda: exchange.send({**self._headers, **headers}, give_up_at), self._threads, linger=False
            )
        except BaseException:
            answer.close()
            raise
        return answer

    async def prepare(self, url: str, connections: int) -> None:
        """As RangeClient.prepare says."""
        origin = origin_of(url)

        async def open_one() -> None:
            with contextlib.suppress(Transient, LazyfsError):
                self._check(url)
                await trio.to_thread.run_sync(self._connections.prepare, origin, abandon_on_cancel=True)

        async with trio.open_nursery() as nursery:
            wanted = min(connections, int(self._slots.total_tokens))
            for _ in range(self._connections.count_idle(origin), wanted):
                nursery.start_soon(open_one)


class HttpAnswer:
    """A ContentAnswer of an HttpPool. It holds one of the pool's slots until it is closed."""

    def __init__(
        self, exchange: "_Exchange", slots: trio.CapacityLimiter, threads: trio.CapacityLimiter
    ) -> None:
        self._exchange = exchange
        self._slots: trio.CapacityLimiter | None = slots
        self._threads = threads

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._exchange.response.status

    @property
    def url(self) -> str:
        """What was asked."""
        return self._exchange.url

    @property
    def excerpt(self) -> bytes:
        """The first bytes of the body, unless it is content."""
        return self._exchange.excerpt

    def header(self, name: str) -> str:
        """The value of a header, or ""."""
        return self._exchange.response.headers.get(name) or ""

    def headers(self, name: str) -> list[str]:
        """All values of a header."""
        return self._exchange.response.headers.get_all(name) or []

    async def read(self, work: Callable[[Body], T]) -> T:
        """As ContentAnswer.read says."""
        return await self._exchange.run(lambda: work(self._exchange), self._threads, linger=True)

    def close(self) -> None:
        """Give back the connection, if its answer was read to the end, and the slot."""
        slots, self._slots = self._slots, None
        if slots:
            self._exchange.finish()
            slots.release_on_behalf_of(self._exchange)


class _Exchange:
    """One request and its answer: what a worker thread touches, and how it is stopped from outside."""

    response: http.client.HTTPResponse

    def __init__(self, connections: Connections, counters: Counters, origin: Origin, url: str) -> None:
        self.url = url
        self.excerpt = b""
        self._connections = connections
        self._counters = counters
        self._origin = origin
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._running = False
        self._ended = False

    # From trio

    async def run(self, work: Callable[[], T], threads: trio.CapacityLimiter, *, linger: bool) -> T:
        """Run `work` in a thread; when cancelled stop it, and with `linger` wait until it has ended."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def job() -> T:
            with self._lock:
                if self._ended:
                    raise Transient("stopped")
                self._running = True
            try:
                return work()
            finally:
                self._leave(token, done)

        try:
            return await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=threads)
        except trio.Cancelled:
            if self._stop() and linger:
                with trio.CancelScope(shield=True):
                    await done.wait()
            raise

    def finish(self) -> None:
        """Keep or close the connection, unless a thread is still at it: then that thread closes it."""
        with self._lock:
            self._ended = True
            connection = None if self._running else self._connection
        if connection is None:
            return
        response = getattr(self, "response", None)
        complete = response is not None and (response.isclosed() or response.length == 0)
        if response is not None and complete and not response.will_close:
            response.close()
            self._connections.keep(connection)
            return
        _close(response, connection)

    def _stop(self) -> bool:
        """Wake the thread and let no other begin; whether one is running."""
        with self._lock:
            self._ended = True
            if self._running and self._connection:
                shut_down(self._connection.socket)
            return self._running

    # From the worker thread

    def _leave(self, token: trio.lowlevel.TrioToken, done: trio.Event) -> None:
        with self._lock:
            self._running = False
            abandoned, connection = self._ended, self._connection
            if abandoned:
                self._connection = None
        if abandoned and connection:
            _close(getattr(self, "response", None), connection)
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:
            return

    def send(self, headers: Mapping[str, str], give_up_at: float) -> None:
        """Send the request, on a kept connection if there is one, and read the head of the answer.

        Raises:
            Transient, SourceError, Unreachable: as for RangeClient.get.
        """
        try:
            kept = self._connections.take_idle(self._origin)
            if kept is not None:
                # The server may have closed it while our request was on its way: nobody's failure.
                with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                    began = time.monotonic()
                    self._send_on(kept, headers)
                    self._counters.line.answered(time.monotonic() - began)
                    return
            timeout_s = max(0.001, give_up_at - time.monotonic())
            self._send_on(self._connections.open(self._origin, timeout_s), headers)
        except _BROKEN as error:
            raise final_refusal(self._origin, error, None) or Transient(reason_of(error)) from error

    def _send_on(self, connection: Connection, headers: Mapping[str, str]) -> None:
        with self._lock:
            self._connection = connection
            if self._ended:
                raise Transient("stopped")
        parts = urlsplit(self.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._counters.add("data_requests")
        try:
            self.response = connection.send(target, headers)
            if self.response.status not in _CONTENT:
                self.excerpt = _excerpt(self.response)
                self._counters.add("data_bytes", len(self.excerpt))
        except BaseException:
            with self._lock:
                self._connection = None
            connection.close()
            raise

    def readinto(self, view: memoryview) -> int:
        """As Body.readinto says."""
        try:
            count = _read_some(self.response, view)
        except _BROKEN as error:
            raise Transient(f"the connection broke: {reason_of(error)}") from error
        except ValueError as error:  # closed under us
            raise Transient("the connection was closed") from error
        self._counters.add("data_bytes", count)
        return count


def _read_some(response: http.client.HTTPResponse, view: memoryview) -> int:
    """Read what is there now, at most as much as `view` holds; 0 only at the end.

    `HTTPResponse.readinto` gathers until the view is full, and loses what it has when that fails; `read1`
    makes a new buffer each time, which costs half as much again. A body of known length is the usual case.
    """
    if response.chunked or response.length is None:
        data = response.read1(len(view))
        if len(data) > len(view):  # of a chunk that says it has -1 bytes, http.client gives whatever there is
            raise http.client.IncompleteRead(b"")
        view[: len(data)] = data
        return len(data)
    wanted = view[: response.length]
    if not wanted:
        return 0
    count: int = response.fp.readinto1(wanted)
    response.length -= count
    return count


def _excerpt(response: http.client.HTTPResponse) -> bytes:
    """The first bytes of a body, piece by piece: `HTTPResponse.read` may read more than it is asked for."""
    view = memoryview(bytearray(EXCERPT_BYTES))
    filled = 0
    while count := _read_some(response, view[filled:]):
        filled += count
    return bytes(view[:filled])


def _close(response: http.client.HTTPResponse | None, connection: Connection) -> None:
    if response is not None:
        response.close()
    connection.close()
