"""HTTP/1.1 connections for worker threads: opened, kept alive, checked before they are used again.

`http.client` in threads is the cheapest way measured to move megabytes in Python, over TLS above all.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
from typing import Final

from msgspec import Struct

from lazyfs.source.http.proxy import Proxy, ProxyRules
from lazyfs.source.http.refusals import final_refusal, reason_of, way_to
from lazyfs.source.http.retry import Transient
from lazyfs.source.http.urls import Origin, check_peer

IDLE_S: Final = 30.0  # servers close idle connections; most wait longer than this


class Connection(Struct, eq=False):
    """A connection to one origin.

    Attributes:
        origin: who answers on it.
        http: the connection itself.
        socket: its socket, also when `http` has let go of it.
        proxy: what it goes through, or None.
        idle_since: seconds of the monotonic clock, while it is kept.
    """

    origin: Origin
    http: http.client.HTTPConnection
    socket: socket.socket
    proxy: Proxy | None
    idle_since: float = 0.0

    def send(self, target: str, headers: Mapping[str, str]) -> HTTPResponse:
        """Ask for a path with its query; the answer's head.

        Raises:
            OSError, http.client.HTTPException: the connection broke, or what came is not HTTP.
        """
        headers = dict(headers)
        if self.proxy and self.origin.scheme == "http":
            target = f"{self.origin}{target}"
            if self.proxy.authorization:
                headers["Proxy-Authorization"] = self.proxy.authorization
        self.http.request("GET", target, headers=headers)
        return self.http.getresponse()

    def close(self) -> None:
        """Close it. Harmless when repeated."""
        self.http.close()
        self.socket.close()

    def is_fresh(self) -> bool:
        """Whether nothing was heard on it while it was idle: neither an end nor a stray byte, which is lost.

        It is read, as bytes that came over TLS may be no data: servers send tickets after the handshake.
        """
        if time.monotonic() - self.idle_since > IDLE_S:
            return False
        timeout_s = self.socket.gettimeout()
        try:
            self.socket.settimeout(0)
            self.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.socket.settimeout(timeout_s)
            return True
        except (OSError, ValueError):
            return False
        return False


class Connections:
    """Opens connections and keeps the idle ones. Thread-safe.

    Args:
        tls: gives what to demand of servers; called when there is one to demand it of.
        proxies: which origins to reach through a proxy.
        stall_timeout_s: longest wait for one byte.
        connect_timeout_s: longest wait for a connection.
        most_idle: how many idle connections to keep.
        trusted_hosts: hosts that the user named; these alone may have link-local addresses.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        proxies: ProxyRules,
        stall_timeout_s: float,
        connect_timeout_s: float,
        most_idle: int,
        trusted_hosts: frozenset[str],
    ) -> None:
        self._tls = tls
        self._proxies = proxies
        self._stall_timeout_s = stall_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._most_idle = most_idle
        self._trusted_hosts = trusted_hosts
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    def take_idle(self, origin: Origin) -> Connection | None:
        """A kept connection to `origin` that seems alive, the last used first."""
        while True:
            with self._lock:
                place = next(
                    (n for n in range(len(self._idle) - 1, -1, -1) if self._idle[n].origin == origin), None
                )
                if place is None:
                    return None
                connection = self._idle.pop(place)
            if connection.is_fresh():
                return connection
            connection.close()

    def keep(self, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end."""
        connection.idle_since = time.monotonic()
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
            surplus = self._idle.pop(0) if len(self._idle) > self._most_idle else None
            dropped = connection if self._closed else surplus
        if dropped:
            dropped.close()

    def close(self) -> None:
        """Close the idle connections, and those that come back later."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def count_idle(self, origin: Origin) -> int:
        """How many kept connections to `origin` seem alive; the others are closed."""
        with self._lock:
            kept = [connection for connection in self._idle if connection.origin == origin]
            stale = [connection for connection in kept if not connection.is_fresh()]
            self._idle = [connection for connection in self._idle if connection not in stale]
        for connection in stale:
            connection.close()
        return len(kept) - len(stale)

    def prepare(self, origin: Origin) -> None:
        """Open a connection for who needs one soon; raises as `open` does."""
        self.keep(self.open(origin, self._connect_timeout_s))

    def open(self, origin: Origin, timeout_s: float) -> Connection:
        """A new connection.

        Raises:
            Transient: it did not come about this time.
            Unreachable: no attempt can succeed, as when its certificate is not trusted.
            SourceError: the address is link-local.
        """
        proxy = self._proxies.proxy_for(origin)
        http_connection = self._prepare(origin, proxy, min(timeout_s, self._connect_timeout_s))
        try:
            http_connection.connect()
            self._check_peer(origin, proxy, http_connection.sock)
            http_connection.sock.settimeout(self._stall_timeout_s)
        except (OSError, http.client.HTTPException) as error:
            http_connection.close()
            final = final_refusal(origin, error, proxy)
            why = f"cannot connect to {way_to(origin, proxy)}: {reason_of(error)}"
            raise final or Transient(why) from error
        except BaseException:
            http_connection.close()
            raise
        return Connection(origin, http_connection, http_connection.sock, proxy)

    def _prepare(self, origin: Origin, proxy: Proxy | None, timeout_s: float) -> http.client.HTTPConnection:
        host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        if origin.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls())
        if proxy:
            headers = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
            connection.set_tunnel(origin.host, origin.port, headers=headers)
        return connection

    def _check_peer(self, origin: Origin, proxy: Proxy | None, connected: socket.socket) -> None:
        """Refuse a name that a stranger made point to this machine's metadata service."""
        if proxy or origin.host in self._trusted_hosts:
            return
        check_peer(origin, str(connected.getpeername()[0]))


def shut_down(connected: socket.socket) -> None:
    """Wake whoever is reading or writing on a socket in another thread, by ending both directions.

    Called past `SSLSocket.shutdown`, which would switch TLS off under the reader.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
