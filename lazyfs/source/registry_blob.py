"""A blob in a registry: ranges of it and the whole, across redirects, broken connections and places."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from lazyfs.errors import NotFound, RangeRefused, SourceError, Unauthorized, Unreachable
from lazyfs.source.counters import Counters
from lazyfs.source.http_pool import Body
from lazyfs.source.locator import Locator
from lazyfs.source.retry import Retries, RetryPolicy, Transient
from lazyfs.source.transfer import Cut, PieceSink, RangeSink, plan_cut, pour

T = TypeVar("T")

PROGRESS_BYTES = 64 << 10  # what an attempt has to bring so that failures are counted anew

_NEXT_PLACE = (NotFound, Unauthorized, Unreachable)


class RegistryBlob:
    """A `base.Blob` that some places have; they are tried in order.

    Args:
        size: bytes, by the descriptor.
        what: the blob, for messages.
        locators: where it may be, at least one.
        policy: how patient to be.
        counters: where retries are counted.
    """

    def __init__(
        self, size: int, what: str, locators: Sequence[Locator], policy: RetryPolicy, counters: Counters
    ) -> None:
        self._size = size
        self._what = what
        self._locators = tuple(locators)
        self._policy = policy
        self._counters = counters

    def __repr__(self) -> str:
        return f"<RegistryBlob {self._what}, {self._size} bytes>"

    @property
    def size(self) -> int:
        """Bytes of the blob, by its descriptor."""
        return self._size

    async def fetch(self, start: int, end: int, consume: Callable[[memoryview], T]) -> T:
        """As Blob.fetch says."""
        if not 0 <= start <= end <= self._size:
            raise RangeRefused(f"{self._what}: bytes {start}-{end} are outside its {self._size}")
        if start == end:
            return consume(memoryview(b""))
        sink = RangeSink(end - start)
        result: list[T] = []
        await self._transfer(start, end, sink, lambda: result.append(consume(sink.view)), patient=False)
        return result[0]

    async def pull(self, consume: Callable[[memoryview], None]) -> None:
        """As Blob.pull says."""
        if self._size:
            await self._transfer(0, self._size, PieceSink(self._size, consume), lambda: None, patient=True)

    async def _transfer(
        self, start: int, end: int, sink: RangeSink | PieceSink, finish: Callable[[], None], *, patient: bool
    ) -> None:
        """Fill the sink with bytes [start, end) from the first place that has them."""
        first_error: SourceError | None = None
        for locator in self._locators:
            try:
                await self._transfer_from(locator, start, end, sink, finish, patient=patient)
            except _NEXT_PLACE as error:
                first_error = first_error or error
            else:
                return
        assert first_error, "a blob has at least one place"
        raise first_error

    async def _transfer_from(
        self,
        locator: Locator,
        start: int,
        end: int,
        sink: RangeSink | PieceSink,
        finish: Callable[[], None],
        *,
        patient: bool,
    ) -> None:
        retries = Retries(self._policy, self._counters, self._what, locator.shown_url)
        while start + sink.taken < end:
            before = sink.taken
            try:
                await self._attempt(locator, start + before, end, sink, finish, patient=patient)
            except Transient as error:
                if sink.taken - before >= PROGRESS_BYTES:
                    retries.progressed()
                await retries.wait_after(error)

    async def _attempt(
        self,
        locator: Locator,
        start: int,
        end: int,
        sink: RangeSink | PieceSink,
        finish: Callable[[], None],
        *,
        patient: bool,
    ) -> None:
        """One request; what it brings goes into the sink, which is finished in the same thread."""
        whole = start == 0 and end == self._size
        answer = await locator.open({} if whole else {"Range": f"bytes={start}-{end - 1}"})
        try:
            cut = plan_cut(answer, start, end, self._size, self._what, patient=patient)
            last = start + cut.length == end
            await answer.read(partial(_pour_and_finish, cut, sink, finish if last else None))
        finally:
            answer.close()


def _pour_and_finish(
    cut: Cut, sink: RangeSink | PieceSink, finish: Callable[[], None] | None, body: Body
) -> None:
    pour(body, cut, sink)
    if finish:
        finish()
