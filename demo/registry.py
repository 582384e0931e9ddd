"""A registry in a box: serves an OCI layout read-only over a link of given speed, and counts."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

PIECE_SIZE = 32 << 10


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was asked and sent.

    Attributes:
        requests: HTTP requests.
        bytes: bytes of bodies that were sent.
    """

    requests: int
    bytes: int

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        return Traffic(self.requests - earlier.requests, self.bytes - earlier.bytes)


class Link:
    """One wire that all connections share: it delays each answer and lets so many bytes a second through.

    Attributes:
        bytes_per_s: how fast it is; None is as fast as it goes.
        delay_s: seconds from a request to its answer.
    """

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self.delay_s = 0.0
        self._lock = Lock()
        self._free_at = 0.0
        self._requests = 0
        self._bytes = 0

    def traffic(self) -> Traffic:
        """All that passed so far."""
        with self._lock:
            return Traffic(self._requests, self._bytes)

    def begin(self) -> None:
        """One more request arrives; returns when its answer may start."""
        with self._lock:
            self._requests += 1
        time.sleep(self.delay_s)

    def pass_through(self, size: int) -> None:
        """Returns when the wire has carried `size` more bytes, after those of others that came before."""
        now = time.monotonic()
        with self._lock:
            self._bytes += size
            if self.bytes_per_s is None:
                return
            self._free_at = max(self._free_at, now) + size / self.bytes_per_s
            wait = self._free_at - now
        time.sleep(wait)


class Registry(ThreadingHTTPServer):
    """The server of one layout, whose tag is "latest" under any repository name."""

    daemon_threads = True

    def __init__(self, layout: Path, link: Link) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.layout = layout
        self.link = link

    @property
    def address(self) -> str:
        """The name by which clients know it: "127.0.0.1:PORT"."""
        return f"127.0.0.1:{self.server_port}"

    def manifest_descriptor(self) -> dict[str, Any]:
        """The descriptor of the image's manifest."""
        index = json.loads((self.layout / "index.json").read_text())
        descriptor: dict[str, Any] = index["manifests"][0]
        return descriptor


@contextmanager
def serve(layout: Path) -> Iterator[Registry]:
    """A running registry."""
    with Registry(layout, Link()) as registry:
        thread = Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield registry
        finally:
            registry.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """The pull half of the OCI distribution specification 1.1, without referrers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Registry

    def handle(self) -> None:
        """Answer one request after the other, until the client has gone."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
        """Say nothing: what counts is counted."""

    def _answer(self, *, with_body: bool) -> None:
        self.server.link.begin()
        found = self._find()
        if found is None:
            self._send(404, {"Content-Type": "application/json"}, b'{"errors":[]}', with_body=with_body)
            return
        path, digest, media_type = found
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
        size = path.stat().st_size
        wanted = _parse_range(self.headers.get("Range"), size)
        if wanted is None:
            self._send(416, headers | {"Content-Range": f"bytes */{size}"}, b"", with_body=with_body)
            return
        start, end = wanted
        if end - start < size:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with path.open("rb") as blob:
            blob.seek(start)
            body = blob.read(end - start)
        self._send(206 if end - start < size else 200, headers, body, with_body=with_body)

    def _find(self) -> tuple[Path, str, str] | None:
        """File, digest and media type of what the URL names."""
        blobs = self.server.layout / "blobs" / "sha256"
        if self.path in {"/v2", "/v2/"}:
            return self.server.layout / "oci-layout", "", "application/json"
        match = re.fullmatch(r"/v2/.+/(manifests|blobs)/(?:sha256:([0-9a-f]{64})|latest)", self.path)
        if match is None:
            return None
        manifest = self.server.manifest_descriptor()
        digest = f"sha256:{match[2]}" if match[2] else manifest["digest"]
        is_manifest = match[1] == "manifests"
        path = blobs / digest.removeprefix("sha256:")
        if is_manifest != (digest == manifest["digest"]) or not path.is_file():
            return None
        return path, digest, manifest["mediaType"] if is_manifest else "application/octet-stream"

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            for start in range(0, len(body), PIECE_SIZE):
                piece = body[start : start + PIECE_SIZE]
                self.server.link.pass_through(len(piece))
                self.wfile.write(piece)


def _parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) that are wanted: all where no single range is asked; None if there are none.

    RFC 9110, section 14.2: a server may ignore a Range it does not understand.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, end = int(match[1]), min(size, int(match[2] or size) + 1)
    return (start, end) if start < end else None
