"""A small OCI registry for tests, with the storage service it may redirect to, exact counts, and faults.

    with Registry(cdn=True, access=Access(mode="token")) as registry:
        registry.push("app", build_image([tar(...)]), tag="1")
        registry.faults.add("cdn", Short(10))
        ...                                       # read f"{registry.host}/app:1"
        assert registry.requests["GET", "token"] == 1

Everything is served over HTTP/1.1 from threads on loopback. That it behaves like a real registry is itself
tested against one (test_t2_registry_double.py).
"""

import ssl
from collections import Counter
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.support.images import BuiltDocument, all_documents
from tests.support.registry_auth import Access
from tests.support.registry_faults import FaultScript
from tests.support.registry_routes import Cdn, RegistryApp
from tests.support.registry_server import Gates, Journal, Seen, Server
from tests.support.registry_store import Store


class Registry:
    """The registry; use it as a context manager.

    Args:
        access: who may do what; open to all by default.
        cdn: answer blobs by redirects to a storage service on another port, which wants signed URLs.
        tls: serve both over TLS with this context (see registry_tls).
        referrers: whether the referrers API is there.
        conditional: whether `If-Match` and `If-None-Match` are heeded when a tag is put.
    """

    def __init__(
        self,
        *,
        access: Access | None = None,
        cdn: bool = False,
        tls: ssl.SSLContext | None = None,
        referrers: bool = True,
        conditional: bool = False,
    ) -> None:
        self.access = access or Access()
        self.faults = FaultScript()
        self.journal = Journal()
        self.store = Store()
        self._gates = Gates()
        self._cdn = Cdn(self.store) if cdn else None
        self._app = RegistryApp(
            self.store, self.access, self._cdn, referrers=referrers, conditional=conditional
        )
        self._server = Server(self._app, self.faults, self.journal, self._gates, tls)
        self._app.base_url = self._server.base_url
        self._cdn_server = (
            Server(self._cdn, self.faults, self.journal, self._gates, tls) if self._cdn else None
        )
        if self._cdn and self._cdn_server:
            self._cdn.base_url = self._cdn_server.base_url
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._server)
        if self._cdn_server:
            self._stack.enter_context(self._cdn_server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if error is None and self.journal.errors:
            raise self.journal.errors[0]

    @property
    def host(self) -> str:
        """Host and port, as they stand in references."""
        return f"127.0.0.1:{self._server.port}"

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return self._server.port

    @property
    def base_url(self) -> str:
        """Scheme, host and port."""
        return self._server.base_url

    @property
    def has_cdn(self) -> bool:
        """Whether blobs are redirected."""
        return self._cdn is not None

    @property
    def cdn(self) -> Cdn:
        """The storage service; only where there is one."""
        assert self._cdn
        return self._cdn

    @property
    def requests(self) -> Counter[tuple[str, str]]:
        """Requests so far, by method and kind."""
        return self.journal.requests

    @property
    def seen(self) -> list[Seen]:
        """All requests so far."""
        return self.journal.seen

    def push(self, repository: str, image: BuiltDocument, tag: str = "latest") -> str:
        """Store an image or index and all below it; its digest. No request is made."""
        with self.store.lock:
            for blob in image.blobs.values():
                self.store.put_blob(repository, blob)
            for document in all_documents(image):
                reference = tag if document is image else document.digest
                self.store.put_manifest(repository, reference, document.media_type, document.data)
        return image.digest

    def put_blob(self, repository: str, data: bytes) -> str:
        """Store a blob; its digest. No request is made."""
        with self.store.lock:
            return self.store.put_blob(repository, data)

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> str:
        """Store a manifest, right or wrong; its digest. No request is made."""
        with self.store.lock:
            return self.store.put_manifest(repository, reference, media_type, data, check=False)

    def release(self) -> None:
        """Let all stalled answers go on, or end."""
        self._gates.released.set()

    def drip(self, pieces: int = 1) -> None:
        """Let dripping answers send this many more pieces."""
        self._gates.drips.release(pieces)

    def wait_stalled(self) -> None:
        """Block until one more answer has stalled."""
        assert self._gates.stalled.acquire(timeout=30)
