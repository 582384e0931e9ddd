"""What the data daemon reads and serves: images, layers and trees, each open for as long as anybody needs it.

Containers go on reading a tree that is unmounted: so all of this outlasts the mounts.
"""

from collections.abc import Callable

import trio

from lazyfs.assembly import fetch_settings
from lazyfs.cache.cache import Cache
from lazyfs.config import Config
from lazyfs.mount.forest import Forest
from lazyfs.service.drivers.fuse import FuseDriver
from lazyfs.service.images import Images
from lazyfs.service.layers import Layers
from lazyfs.service.starts import Starts
from lazyfs.service.survival.heritage import Heritage
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.service.tree import Trees
from lazyfs.source.auth.credentials import CredentialsProvider


class Content:
    """All of it.

    Args:
        nursery: where it lives.
        config: the configuration.
        cache: where it is kept.
        forest: shows the layers.
        supervisor: keeps the descriptors of trees.
        changed: called whenever something changes that the next daemon must know.
        given: credentials that go before the configured ones.

    Attributes:
        traffic: where requests take turns.
        images: images whose repositories are open.
        layers: layers that are read.
        starts: starts that are hastened.
        trees: opens trees.
        fuse: serves trees that have connections of their own.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        config: Config,
        cache: Cache,
        forest: Forest,
        supervisor: Supervisor,
        changed: Callable[[], None],
        given: CredentialsProvider | None = None,
    ) -> None:
        fetching, timeout_s = fetch_settings(config), config.read_timeout_s
        self.traffic = fetching.traffic
        self.images = Images(nursery, config, cache, self.traffic, given)
        self.layers = Layers(nursery, forest, self.images, cache, fetching, changed)
        self.starts = Starts(nursery, self.images, self.layers, cache, self.traffic)
        self.trees = Trees(self.images, self.layers, self.starts, cache)
        self.fuse = FuseDriver(nursery, self.trees, self.layers, supervisor, timeout_s, changed)

    def __repr__(self) -> str:
        return f"<Content {self.layers!r}, {self.starts!r}>"

    def go_on(self, heritage: Heritage) -> None:
        """Serve what a daemon before us served, as soon as it can be opened again; readers wait."""
        for file in heritage.files:
            self.layers.put_back(file)
        self.fuse.go_on(heritage.trees)

    def is_used(self) -> bool:
        """Whether anybody may read it, or mount it."""
        return bool(self.fuse.saved()) or any(file.opens for file in self.layers.saved())

    async def sync(self) -> None:
        """Make what has come so far durable; where that takes too long it may be given up."""
        for lazy in self.layers.open_layers():
            await trio.to_thread.run_sync(lazy.sync, abandon_on_cancel=True)
