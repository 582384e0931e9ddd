"""An HTTP/1.1 server in threads on loopback that serves an App, counts, and does wrong as its script says."""

import contextlib
import socket
import ssl
import struct
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from tests.support.registry_faults import (
    Action,
    Chunked,
    CloseAfter,
    Corrupt,
    Drip,
    FaultScript,
    Header,
    IgnoreRange,
    Reset,
    Short,
    Stall,
    StallHead,
    Status,
    UntilClose,
)
from tests.support.registry_routes import App, Reply, Request


class Seen(NamedTuple):
    """A request as it came, and the status it got."""

    kind: str
    method: str
    target: str
    headers: dict[str, str]
    status: int


class Journal:
    """What several servers were asked and sent. Read it when they are quiet, or hold `lock`.

    Attributes:
        requests: number of requests by (method, kind).
        bytes_sent: body bytes by kind.
        connections: connections accepted.
        seen: every request, in order of its answer.
        errors: what went wrong in the servers themselves.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.bytes_sent: Counter[str] = Counter()
        self.connections = 0
        self.seen: list[Seen] = []
        self.errors: list[BaseException] = []

    def note(self, kind: str, request: Request, status: int) -> None:
        with self.lock:
            self.requests[request.method, kind] += 1
            self.seen.append(Seen(kind, request.method, request.target, dict(request.headers), status))

    def sent(self, kind: str, count: int) -> None:
        with self.lock:
            self.bytes_sent[kind] += count

    def clear(self) -> None:
        with self.lock:
            self.requests.clear()
            self.bytes_sent.clear()
            self.seen.clear()
            self.connections = 0


class Gates:
    """Where stalled answers wait."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.drips = threading.Semaphore(0)
        self.stalled = threading.Semaphore(0)

    def stall(self) -> None:
        """Say that an answer is stalled, and wait for the release."""
        self.stalled.release()
        self.released.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # who tries TLS gets HTTP's answer, as from other servers
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "Server"
    _AS_METHODS: ClassVar = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_") and name[3:] in self._AS_METHODS:
            return self._serve
        raise AttributeError(name)

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        routed = self.server.app.answer(request)
        action = (
            self.server.faults.take(routed.kind, request.method, request.target) if routed.let_in else None
        )
        reply = _bent(routed.reply, action)
        self.server.journal.note(routed.kind, request, reply.status)
        self._send(routed.kind, request.method, reply, action)

    def _send(self, kind: str, method: str, reply: Reply, action: Action | None) -> None:
        if isinstance(action, StallHead):
            self.server.gates.stall()
        if isinstance(action, Reset) and action.after < 0:
            self._reset()
            return
        self.send_response(reply.status)
        if isinstance(action, Chunked):
            reply.headers["Transfer-Encoding"] = "chunked"
        elif reply.status != 204 and not isinstance(action, UntilClose):
            reply.headers.setdefault("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if method == "HEAD":
            return
        match action:
            case Stall(after):
                self._write(kind, reply.body[:after])
                self.server.gates.stall()
                self.close_connection = True
            case Reset(after):
                self._write(kind, reply.body[:after])
                self._reset()
            case Short(missing):
                self._write(kind, reply.body[: max(0, len(reply.body) - missing)])
                self.close_connection = True
            case Drip(piece):
                self._drip(kind, reply.body, piece)
            case Chunked(piece):
                self._write(kind, _chunks(reply.body, piece))
            case UntilClose():
                self._write(kind, reply.body)
                self.close_connection = True
            case _:
                self._write(kind, reply.body)
                self.close_connection = self.close_connection or isinstance(action, CloseAfter)

    def _write(self, kind: str, data: bytes) -> None:
        self.server.journal.sent(kind, len(data))
        self.wfile.write(data)
        self.wfile.flush()

    def _drip(self, kind: str, body: bytes, piece: int) -> None:
        for start in range(0, len(body), piece):
            self.server.gates.drips.acquire()
            self._write(kind, body[start : start + piece])

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.abrupt.add(id(self.connection))
        self.close_connection = True


def _chunks(body: bytes, piece: int) -> bytes:
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def _bent(reply: Reply, action: Action | None) -> Reply:
    """The reply as the fault wants it, where that can be said before sending."""
    match action:
        case Status(status, headers, body):
            return Reply(status, dict(headers), body)
        case IgnoreRange() if reply.whole is not None:
            headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
            return Reply(200, headers, reply.whole)
        case Corrupt(offset) if reply.body:
            flipped = bytearray(reply.body)
            flipped[offset % len(flipped)] ^= 0xFF
            return Reply(reply.status, reply.headers, bytes(flipped))
        case Header(name, None):
            reply.headers.pop(name, None)
        case Header(name, value):
            reply.headers[name] = value or ""
    return reply


class Server(ThreadingHTTPServer):
    """One listening socket on an ephemeral loopback port; use it as a context manager."""

    daemon_threads = False
    request_queue_size = 256

    def __init__(
        self, app: App, faults: FaultScript, journal: Journal, gates: Gates, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.app = app
        self.faults = faults
        self.journal = journal
        self.gates = gates
        self.abrupt: set[int] = set()
        self.port: int = self.server_address[1]
        self.base_url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.gates.released.set()
        self.gates.drips.release(1000)
        with self.journal.lock:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.journal.lock:
            self._open.add(request)
            self.journal.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.journal.lock:
            self._open.discard(request)
        if id(request) in self.abrupt:
            self.abrupt.discard(id(request))
            self.close_request(request)
            return
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error and not isinstance(error, OSError):  # a client may leave at any time
            self.journal.errors.append(error)
