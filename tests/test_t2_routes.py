"""Connections that sources share: opened once for one way to a host, and kept while somebody uses them."""

import os
import random
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from lazyfs.oci.reference import parse_reference
from lazyfs.source.base import SourceStatistics
from lazyfs.source.http.routes import Routes
from lazyfs.source.http.settings import Access, SourceSettings
from lazyfs.source.open import open_registry
from lazyfs.source.registry.source import RegistrySource
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS, layer_link
from tests.support.registry_faults import Stall
from tests.support.registry_tls import make_authority

DATA = random.Random(7).randbytes(100_000)
LINK = layer_link(DATA)
IMAGE = build_image([DATA])
NOBODY: frozenset[str] = frozenset()


@pytest.fixture
def server() -> Iterator[Registry]:
    with Registry() as running:
        for name in ("one", "two"):
            running.push(name, IMAGE, "1")
            running.put_blob(name, DATA)
        yield running


def opened(
    server: Registry, name: str, routes: Routes, settings: SourceSettings = SETTINGS
) -> AbstractAsyncContextManager[RegistrySource]:
    return open_registry(parse_reference(f"{server.host}/{name}:1"), settings, routes=routes)


async def use(source: RegistrySource) -> None:
    await source.resolve()
    assert await source.blob(LINK).fetch(5, 90_000, bytes) == DATA[5:90_000]


async def test_what_one_image_connected_the_next_ones_use(server):
    routes = Routes(SETTINGS)
    async with opened(server, "one", routes) as first:
        await use(first)
        cost = server.journal.connections
        async with opened(server, "two", routes) as second:
            await use(second)
        async with opened(server, "two", routes) as again:
            await use(again)
        await use(first)
        assert server.journal.connections == cost == 2  # one for documents, one for ranges


async def test_each_counts_what_it_cost_itself(server):
    routes = Routes(SETTINGS)
    async with opened(server, "one", routes) as first, opened(server, "two", routes) as second:
        await use(first)
        assert second.statistics() == SourceStatistics()
        await use(second)
        await use(second)
        assert first.statistics().data_requests == 1
        assert second.statistics().data_requests == 2


async def test_the_last_one_who_leaves_closes_them(server):
    routes = Routes(SETTINGS)
    for visit in range(1, 3):
        async with opened(server, "one", routes) as source:
            await use(source)
        assert server.journal.connections == 2 * visit


async def test_who_is_stopped_in_the_middle_of_an_answer_disturbs_nobody(server):
    routes = Routes(SETTINGS)
    async with opened(server, "one", routes) as first:
        await use(first)
        async with opened(server, "two", routes) as second, trio.open_nursery() as nursery:
            server.faults.add("blob", Stall(1000))
            nursery.start_soon(second.blob(LINK).fetch, 0, 50_000, bytes)
            await trio.to_thread.run_sync(server.wait_stalled)
            nursery.cancel_scope.cancel()
        server.release()
        await use(first)


async def test_hosts_that_are_trusted_otherwise_are_reached_apart():
    """A connection to a link-local address may be had by those only whose user named its host."""
    routes = Routes(SETTINGS)
    async with routes.lease(Access(), NOBODY) as route, routes.lease(Access(), frozenset({"x"})) as other:
        assert route.connections is not other.connections
        assert route.client is not other.client
        async with routes.lease(Access(skip_verify=True), NOBODY) as careless:
            assert careless.client is not route.client
        async with routes.lease(Access(), NOBODY) as same:
            assert same is route


async def test_renewed_certificates_are_shown_by_who_comes_later(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    pair = (authority.client_cert, authority.client_key)
    settings = replace(SETTINGS, plain_http=False, ca_file=authority.ca_file, client_cert=pair)
    routes = Routes(settings)
    with Registry(tls=authority.server_context()) as server:
        server.push("one", IMAGE, "1")
        async with opened(server, "one", routes, settings) as source, routes.lease(Access(), NOBODY) as old:
            await source.resolve()
            before = server.journal.connections
            os.utime(authority.client_cert, ns=(1, 1))
            async with (
                opened(server, "one", routes, settings) as later,
                routes.lease(Access(), NOBODY) as new,
            ):
                await later.resolve()
                assert new is not old
                assert server.journal.connections == 2 * before
            await source.resolve()
            assert server.journal.connections == 2 * before
