"""Something asynchronous, kept open in a trio loop on a thread of its own, for callers that block."""

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager
from typing import Final, Generic, TypeVar, TypeVarTuple

import trio

_GLANCE: Final = 0.2
"""Seconds after which a signal is acted on that CPython noted just before it began to wait."""

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Portal(Generic[T]):
    """Enters an asynchronous context manager on a new thread and runs functions there.

    Blocks until the context is entered. Any threads may call at once. `close` leaves the context; a portal
    that is never closed ends with the process.

    Args:
        context: what is to be open.

    Attributes:
        value: what the context gave.

    Raises:
        Exception: whatever entering the context raises.
    """

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._opened: Future[T] = Future()
        self._ended: Future[None] = Future()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._unwanted = trio.Event()
        self._lock = threading.Lock()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, args=(context,), daemon=True, name="lazyfs portal")
        try:
            self._thread.start()
            while not wait([self._opened], _GLANCE).done:
                pass
            self.value = self._opened.result()
        except BaseException:  # also where this wait was interrupted: nobody wants it any more
            self._abandoned = True
            self._tell(self._scope.cancel)
            raise

    def call(self, function: Callable[[*Ts], Awaitable[R]], *args: *Ts) -> R:
        """What `function` gives in the loop.

        Raises:
            ValueError: the portal is closed.
            Exception: whatever the function raises.
        """
        if self._token is None or self._ended.done():
            raise ValueError("the image is closed")
        try:
            return trio.from_thread.run(function, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise ValueError("the image is closed") from None

    def close(self) -> None:
        """Leave the context and wait for its end; more calls do nothing.

        Raises:
            Exception: whatever leaving the context raises, once.
        """
        with self._lock:
            if self._token is None:
                return
            self._tell(self._unwanted.set)
            self._token = None
        if threading.current_thread() is not self._thread:  # as when garbage is collected there
            self._thread.join()
            self._ended.result()

    def _tell(self, action: Callable[[], object]) -> None:
        """Run a plain function in the loop, if that is still there."""
        if self._token is not None:
            try:
                self._token.run_sync_soon(action)
            except trio.RunFinishedError:
                return

    def _run(self, context: AbstractAsyncContextManager[T]) -> None:
        try:
            trio.run(self._main, context)
        except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits for the one or the other
            (self._ended if self._opened.done() else self._opened).set_exception(error)
        if not self._ended.done():
            self._ended.set_result(None)

    async def _main(self, context: AbstractAsyncContextManager[T]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._abandoned:
            return
        with self._scope:
            async with context as value:
                self._opened.set_result(value)
                await self._unwanted.wait()
