"""Connections that are kept: which of them are used again."""

import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from lazyfs.source.http.connections import Connections
from lazyfs.source.http.proxy import ProxyRules
from lazyfs.source.http.settings import SourceSettings
from lazyfs.source.http.urls import Origin
from tests.support.registry import Registry
from tests.support.registry_client import layer_link, source_of
from tests.support.registry_tls import TestAuthority, make_authority

DATA = b"layer " * 20_000


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    return make_authority(tmp_path)


@pytest.fixture
def connections(authority: TestAuthority) -> Iterator[Connections]:
    settings = SourceSettings(ca_file=authority.ca_file)
    made = Connections(settings.tls_context, ProxyRules(), 5.0, 5.0, 8, frozenset())
    yield made
    made.close()


def prepared(connections: Connections, tls: ssl.SSLContext | None) -> tuple[Origin, socket.socket]:
    """A connection that is kept, and the server's end of it once that has sent all it sends unasked."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:
        origin = Origin("https" if tls else "http", "127.0.0.1", listening.getsockname()[1])
        done = thread.submit(connections.prepare, origin)
        accepted, _ = listening.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # small pieces go at once
        if tls:
            accepted = tls.wrap_socket(accepted, server_side=True)
        done.result()
    return origin, accepted


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("act", "usable"),
    [
        (lambda _: None, True),
        (lambda server: server.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), False),
        (lambda server: server.shutdown(socket.SHUT_RDWR), False),
    ],
    ids=["quiet", "data", "end"],
)
def test_a_kept_connection_is_used_unless_something_was_heard(
    authority: TestAuthority,
    connections: Connections,
    encrypted: bool,
    act: Callable[[socket.socket], object],
    usable: bool,
) -> None:
    """Over TLS 1.3 servers send session tickets after the handshake; these are nothing that was said."""
    origin, server = prepared(connections, authority.server_context() if encrypted else None)
    with server:
        act(server)
        assert connections.count_idle(origin) == usable
        taken = connections.take_idle(origin)
    assert (taken is not None) == usable
    if taken:
        assert taken.socket.gettimeout() == 5.0
        taken.close()


async def test_requests_over_tls_make_no_handshake_once_connections_are_prepared(
    authority: TestAuthority,
) -> None:
    with Registry(tls=authority.server_context()) as registry:
        registry.put_blob("app", DATA)
        async with source_of(registry, plain_http=False, ca_file=authority.ca_file) as source:
            host, blob = source.hosts[0], source.blob(layer_link(DATA))
            await host.prepare(3)
            await blob.fetch(0, 1, bytes)
            await host.prepare(3)
            async with trio.open_nursery() as nursery:
                for start in range(3):
                    nursery.start_soon(blob.fetch, start, start + 60_000, bytes)
        assert registry.journal.connections == 3
