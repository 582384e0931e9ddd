"""So many bytes a second for all requests together: a bucket of tokens, with the more urgent going first.

Who asks for bytes pays for all of them before the first one comes, as soon as nothing is owed; so at most one
request goes beyond what is there. Readers may go a second further into debt, which the others wait to be
paid off.
"""

from collections.abc import Callable
from typing import Final

import trio

_SAVED_S: Final = 0.25  # for so long what nobody asks for is kept for who asks later
_DEBT_S: Final = 1.0
_PATIENCE_S: Final = 5.0
_LEAST_PAUSE_S: Final = 1e-3

Urgency = Callable[[], int]
"""How urgent a request is by now: 0 is a reader's, more is less urgent."""


class Budget:
    """Bytes a second.

    Args:
        rate: how many; 0 is any number.
    """

    def __init__(self, rate: int = 0) -> None:
        self.rate = rate
        self._left = rate * _SAVED_S
        self._at = 0.0
        self._waiting: list[Urgency] = []
        self._changed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<Budget {self.rate} bytes a second, {len(self._waiting)} wait>"

    async def pay(self, size: int, urgency: Urgency) -> None:
        """Wait until `size` bytes may be asked for.

        Who has waited for seconds goes before others of any urgency, readers excepted: what has a turn, and
        perhaps a connection, is not to keep them for ever.
        """
        if not self.rate:
            return
        asked = trio.current_time()

        def by_now() -> int:
            told = urgency()
            return min(told, 1) if trio.current_time() - asked > _PATIENCE_S else told

        self._waiting.append(by_now)
        try:
            while (pause_s := self._pause_s(by_now())) > 0:
                with trio.move_on_after(pause_s):
                    await self._changed.park()
            self._left -= size
        finally:
            self._waiting.remove(by_now)
            self._changed.unpark_all()

    def give_back(self, size: int) -> None:
        """So many bytes were not needed after all."""
        self._left += size if self.rate else 0
        self._changed.unpark_all()

    def look_again(self) -> None:
        """Some urgency has changed."""
        self._changed.unpark_all()

    def _pause_s(self, urgency: int) -> float:
        """Seconds until it makes sense to look again; 0 if it is one's turn."""
        now = trio.current_time()
        self._left = min(self._left + (now - self._at) * self.rate, self.rate * _SAVED_S)
        self._at = now
        debt = self.rate * _DEBT_S if urgency == 0 else 0.0
        if any(other() < urgency for other in self._waiting):
            return _PATIENCE_S  # the other tells when it has paid
        short = -debt - self._left
        return max(short / self.rate, _LEAST_PAUSE_S) if short > 0 else 0.0
