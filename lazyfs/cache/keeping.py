"""The background task of whoever keeps content open for long."""

from typing import Final

import trio

from lazyfs.cache.cache import Cache

_EVERY_S: Final = 5.0


async def keep_room(cache: Cache, every_s: float = _EVERY_S) -> None:
    """Tells evictors of all processes what is used here, and makes room before writers need it; for ever.

    Args:
        cache: where there shall be room.
        every_s: seconds between two looks.
    """
    while True:
        await trio.sleep(every_s)
        await trio.to_thread.run_sync(cache.housekeeper.tidy, abandon_on_cancel=True)
