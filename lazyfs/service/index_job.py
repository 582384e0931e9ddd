"""Indexes one image in a process of its own, at the lowest priority: the daemon's readers do not wait for it.

It is told what to do by a line on stdin, and ends when that is closed, with whoever told it.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from indexer.errors import IndexerError
from lazyfs.assembly import source_settings
from lazyfs.config import Config, load_config
from lazyfs.errors import LazyfsError
from lazyfs.exit_codes import exit_code, message_of
from lazyfs.image.indexes.gathering import find_indexes, indexed_tree
from lazyfs.image.resolve import ResolvedImage
from lazyfs.image.tasks import open_tasks
from lazyfs.log import start_log
from lazyfs.oci.chain import ChainOrder
from lazyfs.oci.reference import parse_reference
from lazyfs.service.ordered import open_ordered, resolve_ordered
from lazyfs.service.protocol import order_fields, parse_order
from lazyfs.source.auth.given import GivenCredentials
from lazyfs.source.base import Source
from lazyfs.source.http.routes import Routes
from lazyfs.source.local.content_store import StoredBlobs, StoredFirst

_log = logging.getLogger("lazyfs.service.index_job")  # also as a program

_LOWEST: Final = 19
_LOOK_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 300.0


def job_line(order: ChainOrder, config: Config, store: Path | None, given: GivenCredentials) -> bytes:
    """What a job is told."""
    told = {
        "order": order_fields(order),
        "config": config.as_flags(),
        "store": str(store) if store else None,
        "given": given.encoded([parse_reference(order.image).name]).decode(),
    }
    return json.dumps(told).encode() + b"\n"


async def make_index(order: ChainOrder, config: Config, store: Path | None, given: GivenCredentials) -> None:
    """Index an image, and compile its tree.

    Args:
        order: the image.
        config: the configuration.
        store: containerd's content store, which is downloading the layers maybe; None if there is none.
        given: credentials that go before the configured ones.

    Raises:
        IndexerError: something of it is damaged.
        LazyfsError: something of it cannot be had.
    """
    routes = Routes(source_settings(config, given))
    async with open_ordered(order, config, routes=routes) as workshop:
        resolved = await resolve_ordered(order, workshop)

        async def index(source: Source) -> None:
            await indexed_tree(resolved, source, workshop.indexer, workshop.cache, workshop.finders)

        if store is not None:
            found = await find_indexes(resolved, workshop.indexer, workshop.finders)
            await _wait_stored(resolved, found, StoredBlobs(store))
            try:
                await index(StoredFirst(workshop.source, StoredBlobs(store)))
            except IndexerError as error:  # maybe of what is stored
                _log.info("the registry is asked for all that is missing: %s", message_of(error))
            else:
                return
        await index(workshop.source)


async def _wait_stored(resolved: ResolvedImage, found: Mapping[str, Any], store: StoredBlobs) -> None:
    """Wait until the store has all layers that have no index, for what it has need not come twice."""
    layers = {layer.descriptor.digest: layer.descriptor for layer in resolved.layers}
    missing = [descriptor for digest, descriptor in layers.items() if digest not in found]
    with trio.move_on_after(_PATIENCE_S):
        while any(store.find(descriptor) is None for descriptor in missing):  # noqa: ASYNC110  # another's files
            await trio.sleep(_LOOK_EVERY_S)


async def _run(told: Mapping[str, Any]) -> None:
    config = load_config({"HOME": "/"}, told["config"], Path(os.devnull))
    store = Path(told["store"]) if told["store"] else None
    async with open_tasks() as nursery:
        nursery.start_soon(_end_with_parent, nursery.cancel_scope)
        given = GivenCredentials.decoded(told["given"])
        await make_index(parse_order(told["order"]), config, store, given)
        nursery.cancel_scope.cancel()


async def _end_with_parent(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        while await stdin.receive_some():
            pass
    scope.cancel()


def main() -> int:
    """Do what the line on stdin says; the exit code is that of the error, if any."""
    os.nice(_LOWEST)
    line = _first_line()
    if not line:
        return 0
    told = json.loads(line)
    start_log(str(told["config"]["log_level"]))
    try:
        trio.run(partial(_run, told))
    except (IndexerError, LazyfsError) as error:
        _log.warning("%s was not indexed: %s", told["order"]["image"], message_of(error))
        return exit_code(error)
    return 0


def _first_line() -> bytes:
    """The first line on stdin, which stays open; none if whoever was to tell it has died."""
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more:
            return b""
        line += more
    return line


if __name__ == "__main__":
    sys.exit(main())
