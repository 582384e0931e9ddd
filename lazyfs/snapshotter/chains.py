"""What the snapshotter needs of the daemon that serves data, and how long it waits for it.

The daemon is another process and may be gone for a while, killed or being replaced. Whether something can
be lazy is then answered "no" soon; a mount that a container needs is waited for longer.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from indexer.errors import IndexerError
from lazyfs.errors import LazyfsError
from lazyfs.oci.chain import ChainOrder
from lazyfs.snapshotter.metrics import SnapshotterCounts
from lazyfs.snapshotter.model import ChainAway

_ASSESS_S: Final = 45.0
_MOUNT_S: Final = 90.0
_OTHERS_S: Final = 20.0

_log = logging.getLogger(__name__)


class Assessment(Protocol):
    """Whether a chain can be lazy."""

    @property
    def lazy(self) -> bool:
        """Whether it can."""

    @property
    def why(self) -> str:
        """Why not."""


class MountedChain(Protocol):
    """A mount of the daemon's."""

    @property
    def name(self) -> str:
        """The name under which it is released."""

    @property
    def path(self) -> Path:
        """Its root directory."""


class Chains(Protocol):
    """The daemon. Each method raises LazyfsError if it is not there, or refuses."""

    async def assess(self, order: ChainOrder) -> Assessment:
        """Whether the chain can be lazy."""

    async def mount(self, order: ChainOrder) -> MountedChain:
        """Mount the chain, or find it mounted."""

    async def release(self, name: str) -> None:
        """Unmount; what is not mounted is fine."""

    async def keep(self, names: Collection[str]) -> Sequence[str]:
        """Unmount all others; returns their names."""

    async def index(self, order: ChainOrder) -> bool:
        """Have the image indexed in the background, for the next time."""


class BoundedChains:
    """Questions to the daemon that end in time.

    Args:
        soon: the daemon, for what is not worth waiting for if it is away.
        patient: the daemon, for mounts.
        counts: told of what it did not do.
    """

    def __init__(self, soon: Chains, patient: Chains, counts: SnapshotterCounts | None = None) -> None:
        self._counts = counts or SnapshotterCounts()
        self._soon = soon
        self._patient = patient

    async def can_be_lazy(self, order: ChainOrder) -> bool:
        """Whether the chain can be lazy; if that cannot be told in time, it cannot."""
        try:
            with trio.fail_after(_ASSESS_S):
                answer = await self._soon.assess(order)
        except (LazyfsError, IndexerError, trio.TooSlowError) as error:
            self._counts.daemon_failed("assess")
            lazy, why = False, str(error) or f"that took longer than {_ASSESS_S:g} s to tell"
        else:
            lazy, why = answer.lazy, answer.why
        if not lazy:
            _log.info("layer %d of %s is not lazy: %s", order.layers, order.image, why)
        return lazy

    async def mount(self, name: str, orders: Sequence[ChainOrder]) -> Path:
        """The root of a chain's mount.

        Args:
            name: what the daemon will call it.
            orders: ways to order it; the last is tried first.

        Raises:
            ChainAway: it cannot be had now.
        """
        why = "nobody has told which image it is of"
        with trio.move_on_after(_MOUNT_S) as scope:
            for order in reversed(orders):
                try:
                    mounted = await self._patient.mount(order)
                except (LazyfsError, IndexerError) as error:
                    why = str(error)
                    continue
                if mounted.name == name:
                    return mounted.path
                why = f"{order.image} has other layers now"
        self._counts.daemon_failed("mount")
        if scope.cancelled_caught:
            why = f"the daemon did not mount it within {_MOUNT_S:g} s"
        raise ChainAway(f"the lazy root filesystem cannot be mounted: {why}")

    async def release(self, name: str) -> bool:
        """Let a mount go; whether the daemon did."""
        return await self._try("release", lambda: self._soon.release(name), f"release {name}")

    async def keep(self, names: Collection[str]) -> bool:
        """Let all mounts go but these; whether the daemon did."""
        return await self._try("keep", lambda: self._soon.keep(names), "reconcile mounts")

    async def index(self, order: ChainOrder) -> bool:
        """Ask for an index of the image for the next time; whether the daemon heard."""
        return await self._try("index", lambda: self._soon.index(order), f"ask for an index of {order.image}")

    async def _try(self, question: str, ask: Callable[[], Awaitable[object]], doing: str) -> bool:
        try:
            with trio.fail_after(_OTHERS_S):
                await ask()
        except (LazyfsError, IndexerError, trio.TooSlowError) as error:
            self._counts.daemon_failed(question)
            _log.info("cannot %s: %s", doing, str(error) or "it takes too long")
            return False
        return True
