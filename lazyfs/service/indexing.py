"""Images that are to be indexed for the next time: one after the other, behind everybody's back."""

import logging
import subprocess
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from lazyfs.config import Config
from lazyfs.image.tasks import open_tasks
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.images import ImageKey, Images
from lazyfs.service.index_job import job_line
from lazyfs.source.auth.given import GivenCredentials

_log = logging.getLogger(__name__)

_MOST: Final = 1000


class QueueStatistics(NamedTuple):
    """A snapshot.

    Attributes:
        waiting: how many images wait, the one under way included.
        done: how many have been indexed.
        failed: how many could not be.
    """

    waiting: int
    done: int
    failed: int


class IndexQueue:
    """Images to be indexed.

    Args:
        images: told of what was indexed.
        config: the configuration.
        store: containerd's content store, or None.
        given: credentials that go before the configured ones.
    """

    def __init__(self, images: Images, config: Config, store: Path | None, given: GivenCredentials) -> None:
        self._given = given
        self._images = images
        self._config = config
        self._store = store
        self._waiting: OrderedDict[ImageKey, ChainOrder] = OrderedDict()
        self._more = trio.Event()
        self._done = self._failed = 0

    def __repr__(self) -> str:
        return f"<IndexQueue {self.statistics()}>"

    def statistics(self) -> QueueStatistics:
        """Counts so far."""
        return QueueStatistics(len(self._waiting), self._done, self._failed)

    def add(self, order: ChainOrder) -> bool:
        """Queue an image; False if it is queued already, or too many are.

        Raises:
            BadReference: no such image can be.
        """
        key = ImageKey.of(order)
        if key in self._waiting or len(self._waiting) >= _MOST:
            return False
        self._waiting[key] = order
        self._more.set()
        return True

    async def run(self) -> None:
        """Index what is queued, until cancelled."""
        while True:
            await self._more.wait()
            while self._waiting:
                key, order = next(iter(self._waiting.items()))
                try:
                    await self._index(order)
                finally:
                    del self._waiting[key]
            self._more = trio.Event()

    async def _index(self, order: ChainOrder) -> None:
        # -P: modules come from where we are installed, not from wherever the daemon was started.
        command = [sys.executable, "-P", "-m", "lazyfs.service.index_job"]
        start = partial(trio.run_process, command, stdin=subprocess.PIPE, check=False)
        try:
            async with open_tasks() as nursery:
                job: trio.Process = await nursery.start(start)
                assert job.stdin is not None
                await job.stdin.send_all(job_line(order, self._config, self._store, self._given))
                code = await job.wait()
        except (OSError, trio.BrokenResourceError) as error:
            _log.warning("%s cannot be indexed: %s", order.image, error)
            code = None
        if code == 0:
            self._done += 1
            self._images.forget(order)
        else:
            self._failed += 1
