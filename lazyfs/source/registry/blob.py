"""A blob in a registry: ranges of it and the whole, across redirects, broken connections and places."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from indexer.errors import IndexerError
from lazyfs.errors import RangeRefused
from lazyfs.source.counters import Counters
from lazyfs.source.http.pool import Body
from lazyfs.source.http.retry import Retries, Transient
from lazyfs.source.http.transfer import Cut, PieceSink, RangeSink, Skipped, plan_cut, pour
from lazyfs.source.line import Line
from lazyfs.source.registry.locator import Locator
from lazyfs.source.registry.places import ask_in_turn

T = TypeVar("T")

PROGRESS_BYTES = 64 << 10  # what an attempt has to bring so that failures are counted anew


class RegistryBlob:
    """A `base.Blob` that some places have; they are tried in order.

    Args:
        size: bytes, by the descriptor.
        what: the blob, for messages.
        locators: where it may be.
        home: the one of them whose error counts when none has it.
        counters: where retries are counted.
    """

    def __init__(
        self, size: int, what: str, locators: Sequence[Locator], home: Locator, counters: Counters
    ) -> None:
        self._size = size
        self._what = what
        self._locators = tuple(locators)
        self._home = home
        self._counters = counters
        self._skipped = Skipped(size)

    def __repr__(self) -> str:
        return f"<RegistryBlob {self._what}, {self._size} bytes>"

    @property
    def size(self) -> int:
        """Bytes of the blob, by its descriptor."""
        return self._size

    @property
    def line(self) -> Line:
        """As Blob.line says."""
        return self._counters.line

    async def fetch(self, start: int, end: int, consume: Callable[[memoryview], T]) -> T:
        """As Blob.fetch says."""
        self._check(start, end)
        if start == end:
            return consume(memoryview(b""))
        sink = RangeSink(end - start)
        result: list[T] = []

        def finish() -> None:
            try:
                result.append(consume(sink.view))
            except IndexerError:
                sink.taken = 0  # wrong bytes: the next place is asked for all of them
                raise

        await self._transfer(_Wish(start, end, sink, finish, patient=False))
        return result[0]

    async def stream(self, start: int, end: int, consume: Callable[[memoryview], None]) -> None:
        """As Blob.stream says."""
        self._check(start, end)
        await self._pour(start, end, consume, patient=False)

    async def pull(self, consume: Callable[[memoryview], None]) -> None:
        """As Blob.pull says."""
        await self._pour(0, self._size, consume, patient=True)

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self._size:
            raise RangeRefused(f"{self._what}: bytes {start}-{end} are outside its {self._size}")

    async def _pour(
        self, start: int, end: int, consume: Callable[[memoryview], None], *, patient: bool
    ) -> None:
        if start == end:
            return

        def take(piece: memoryview) -> None:
            try:
                consume(piece)
            except IndexerError as error:
                raise _Refused(error) from error

        sink = PieceSink(end - start, take)
        try:
            await self._transfer(_Wish(start, end, sink, lambda: None, patient=patient))
        except _Refused as refused:
            raise refused.error from refused.error.__cause__

    async def _transfer(self, wish: "_Wish") -> None:
        """Fulfil a wish at the first place that can."""
        await ask_in_turn(self._locators, self._home, lambda place: self._transfer_from(place, wish))

    async def _transfer_from(self, locator: Locator, wish: "_Wish") -> None:
        retries = Retries(locator.policy, self._counters, self._what, locator.shown_url)
        while wish.position < wish.end:
            before = wish.position
            try:
                await self._attempt(locator, wish)
            except Transient as error:
                if wish.position - before >= PROGRESS_BYTES:
                    retries.progressed()
                await retries.wait_after(error)

    async def _attempt(self, locator: Locator, wish: "_Wish") -> None:
        """One request; what it brings goes into the sink, which is finished in the same thread."""
        start, end = wish.position, wish.end
        whole = start == 0 and end == self._size
        answer = await locator.open({} if whole else {"Range": f"bytes={start}-{end - 1}"})
        try:
            most_skip = self._size if wish.patient else self._skipped.most()
            cut = plan_cut(answer, start, end, self._size, self._what, most_skip=most_skip)
            if not wish.patient:
                self._skipped.note(answer, cut.skip)
            await answer.read(partial(wish.take, cut))
        finally:
            answer.close()


class _Refused(Exception):
    """A consumer has no use for what it was given in pieces: it cannot be given them again from elsewhere."""

    def __init__(self, error: IndexerError) -> None:
        self.error = error
        super().__init__(error)


class _Wish(NamedTuple):
    """What is to be brought, and where to.

    Attributes:
        start: first byte.
        end: end of the bytes.
        sink: takes them, and knows how many have come.
        finish: called in the worker thread when all have.
        patient: whether to read past any number of bytes where a server ignores ranges.
    """

    start: int
    end: int
    sink: RangeSink | PieceSink
    finish: Callable[[], None]
    patient: bool

    @property
    def position(self) -> int:
        """The next byte to bring."""
        return self.start + self.sink.taken

    def take(self, cut: Cut, body: Body) -> None:
        """In the worker thread: take what an answer brings, and finish if that was all."""
        pour(body, cut, self.sink)
        if self.position == self.end:
            self.finish()
