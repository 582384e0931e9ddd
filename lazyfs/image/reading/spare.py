"""A few spans in memory, for a cache that takes none: else every read of a part would fetch all of a span."""

from collections import OrderedDict
from typing import Final

_MOST_BYTES: Final = 8 << 20


class SpareSpans:
    """The spans that came last and were not cached, by number. Holds 8 MiB at most, or one larger span."""

    def __init__(self) -> None:
        self._spans: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._spans)

    def keep(self, number: int, data: bytes) -> None:
        """Takes a span, and drops those that were used longest ago."""
        self._size += len(data) - len(self._spans.pop(number, b""))
        self._spans[number] = data
        while self._size > _MOST_BYTES and len(self._spans) > 1:
            self._size -= len(self._spans.popitem(last=False)[1])

    def cut(self, number: int, offset: int, size: int) -> bytes | None:
        """`size` bytes of a span from `offset` on; None if it is not here."""
        data = self._spans.get(number)
        if data is None:
            return None
        self._spans.move_to_end(number)
        return data[offset : offset + size]
