"""A forward proxy on loopback that takes every request, whatever host it names, to one place."""

import contextlib
import socket
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Self


class _Tunnel(BaseRequestHandler):
    server: "ForwardProxy"

    def handle(self) -> None:
        head = self._head()
        first = head.partition(b"\r\n")[0].decode()
        self.server.note(first, head)
        with socket.create_connection(("127.0.0.1", self.server.target_port)) as upstream:
            self.server.track(upstream)
            if first.startswith("CONNECT "):
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream.sendall(_relative(head))
            back = threading.Thread(target=_copy, args=(upstream, self.request))
            back.start()
            _copy(self.request, upstream)
            back.join()

    def _head(self) -> bytes:
        self.server.track(self.request)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.request.recv(65_536)
            if not piece:
                break
            head += piece
        return head


def _relative(head: bytes) -> bytes:
    """A request head with its absolute URL cut to a path. One request per connection is enough here."""
    first, _, rest = head.partition(b"\r\n")
    method, url, version = first.split(b" ")
    path = b"/" + url.split(b"/", 3)[3]
    return b" ".join((method, path, version)) + b"\r\nConnection: close\r\n" + rest


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class ForwardProxy(ThreadingTCPServer):
    """The proxy; use it as a context manager.

    Attributes:
        url: where it is.
        requests: the first lines of the heads it was sent.
        authorizations: the Proxy-Authorization headers among them.
    """

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.target_port = target_port
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[str] = []
        self.authorizations: list[str] = []
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def note(self, first: str, head: bytes) -> None:
        with self._lock:
            self.requests.append(first)
            for line in head.decode().split("\r\n"):
                name, _, value = line.partition(": ")
                if name.lower() == "proxy-authorization":
                    self.authorizations.append(value)

    def track(self, opened: socket.socket) -> None:
        with self._lock:
            self._sockets.append(opened)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        for opened in self._sockets:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave at any time."""
