"""What the test registry answers: distribution-spec's endpoints, and the storage it redirects to."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from indexer.digest import sha256_digest
from tests.support.registry_auth import Access, error_json
from tests.support.registry_store import Refused, Store

JSON = "application/json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"(\d+)-(\d+)")
_ROUTES = (
    ("upload", re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<rest>[^/]*)")),
    ("blob", re.compile(r"/v2/(?P<name>.+)/blobs/(?P<rest>[^/]+)")),
    ("manifest", re.compile(r"/v2/(?P<name>.+)/manifests/(?P<rest>[^/]+)")),
    ("referrers", re.compile(r"/v2/(?P<name>.+)/referrers/(?P<rest>[^/]+)")),
    ("tags", re.compile(r"/v2/(?P<name>.+)/tags/(?P<rest>list)")),
    ("base", re.compile(r"/v2(?P<name>)/?(?P<rest>)")),
    ("token", re.compile(r"/token(?P<name>)(?P<rest>)")),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What came. `headers` has lower-case names."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> str:
        return urlsplit(self.target).query

    def parameter(self, name: str) -> str | None:
        return parse_qs(self.query).get(name, [None])[0]


@dataclass(slots=True)
class Reply:
    """What goes back; `whole` is the body a range was cut from."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bytes | None = None


class Routed(NamedTuple):
    """A reply, the kind of request it answers, and whether the request was let in."""

    kind: str
    reply: Reply
    let_in: bool = True


class App(Protocol):
    """What a server serves."""

    def answer(self, request: Request) -> Routed: ...


def ranged(data: bytes, header: str | None) -> Reply:
    """200 with all of `data`, 206 with what one range asks for, or 416 (RFC 9110, section 14)."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    found = _RANGE.fullmatch(header or "")
    if not found or found[0] == "bytes=-":
        return Reply(200, headers, data, data)
    start = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
    end = min(int(found[2]) + 1, len(data)) if found[1] and found[2] else len(data)
    if start >= end:
        return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Reply(206, headers, data[start:end], data)


class Cdn:
    """Storage behind the registry: serves blobs to whoever brings a signature, and no Authorization."""

    def __init__(self, store: Store) -> None:
        self.base_url = ""
        self._store = store
        self._lock = threading.Lock()
        self._count = 0
        self._valid: set[str] = set()

    def sign(self, digest: str) -> str:
        """A URL for a blob, good until `expire`."""
        with self._lock:
            self._count += 1
            signature = f"signature-{self._count}"
            self._valid.add(signature)
        return f"{self.base_url}/storage/{digest}?X-Amz-Expires=300&X-Amz-Signature={signature}"

    def expire(self) -> None:
        """No URL signed so far works from now on."""
        with self._lock:
            self._valid.clear()

    def answer(self, request: Request) -> Routed:
        if "authorization" in request.headers or "cookie" in request.headers:
            return Routed(
                "cdn", Reply(400, {"Content-Type": "application/xml"}, b"<Error>two ways to sign</Error>")
            )
        with self._lock:
            valid = request.parameter("X-Amz-Signature") in self._valid
        if not valid:
            return Routed(
                "cdn", Reply(403, {"Content-Type": "application/xml"}, b"<Error>AccessDenied</Error>")
            )
        digest = request.path.rpartition("/")[2]
        return Routed("cdn", ranged(self._store.blobs[digest], request.headers.get("range")))


class RegistryApp:
    """The registry proper."""

    def __init__(
        self, store: Store, access: Access, cdn: Cdn | None, *, referrers: bool, conditional: bool = False
    ) -> None:
        self.base_url = ""
        self._store = store
        self._access = access
        self._cdn = cdn
        self._has_referrers = referrers
        self._conditional = conditional

    def answer(self, request: Request) -> Routed:
        """The reply to any request."""
        for kind, pattern in _ROUTES:
            found = pattern.fullmatch(request.path)
            if found:
                return self._answer(kind, request, found["name"], found["rest"])
        return Routed("other", Reply(404, {"Content-Type": "text/plain"}, b"404 page not found\n"))

    def _answer(self, kind: str, request: Request, name: str, rest: str) -> Routed:
        authorization = request.headers.get("authorization", "")
        if kind == "token":
            status, said = self._access.answer(request.method, request.query, request.body, authorization)
            return Routed(kind, Reply(status, {"Content-Type": JSON}, error_json(said)))
        actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
        challenge = self._access.challenge(authorization, name, actions, self.base_url)
        if challenge:
            refusal = Refused(401, "UNAUTHORIZED", "authentication required")
            return Routed(kind, _refusal(refusal, {"WWW-Authenticate": challenge}), let_in=False)
        serve: Callable[[Request, str, str], Reply] = getattr(self, f"_{kind}")
        with self._store.lock:
            try:
                return Routed(kind, serve(request, name, rest))
            except Refused as refusal:
                return Routed(kind, _refusal(refusal, {}))

    def _base(self, request: Request, name: str, rest: str) -> Reply:
        return Reply(200, {"Content-Type": JSON, "Docker-Distribution-Api-Version": "registry/2.0"}, b"{}")

    def _manifest(self, request: Request, name: str, rest: str) -> Reply:
        if request.method == "PUT":
            return self._put_manifest(request, name, rest)
        if request.method == "DELETE":
            self._store.delete_manifest(name, rest)
            return Reply(202)
        digest, stored = self._store.manifest(name, rest)
        headers = {"Content-Type": stored.media_type, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return Reply(200, headers, stored.data)

    def _put_manifest(self, request: Request, name: str, rest: str) -> Reply:
        media_type = request.headers.get("content-type", "")
        if self._conditional:
            self._check_condition(request, name, rest)
        digest = self._store.put_manifest(name, rest, media_type, request.body)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        subject = json.loads(request.body).get("subject")
        if subject and self._has_referrers:
            headers["OCI-Subject"] = subject["digest"]
        return Reply(201, headers)

    def _check_condition(self, request: Request, name: str, tag: str) -> None:
        """RFC 9110, section 13.1, which few registries heed."""
        there = self._store.tags.get((name, tag), "")
        wanted, absent = request.headers.get("if-match"), request.headers.get("if-none-match")
        if (wanted and wanted != f'"{there}"') or (absent == "*" and there):
            raise Refused(412, "UNSUPPORTED", "precondition failed")

    def _blob(self, request: Request, name: str, rest: str) -> Reply:
        if request.method == "DELETE":
            self._store.delete_blob(name, rest)
            return Reply(202)
        data = self._store.blob(name, rest)
        if self._cdn:
            return Reply(307, {"Location": self._cdn.sign(rest), "Set-Cookie": "session=secret"})
        reply = ranged(data, request.headers.get("range"))
        reply.headers["Docker-Content-Digest"] = rest
        return reply

    def _tags(self, request: Request, name: str, rest: str) -> Reply:
        most = request.parameter("n")
        tags, more = self._store.tag_list(name, request.parameter("last") or "", int(most) if most else None)
        headers = {"Content-Type": JSON}
        if more:
            headers["Link"] = f'</v2/{name}/tags/list?n={most}&last={tags[-1]}>; rel="next"'
        return Reply(200, headers, json.dumps({"name": name, "tags": tags}).encode())

    def _referrers(self, request: Request, name: str, rest: str) -> Reply:
        if not self._has_referrers:
            return Reply(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
        kind = request.parameter("artifactType")
        links = self._store.referrers(name, rest, kind)
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": links}).encode()
        headers = {"Content-Type": OCI_INDEX} | ({"OCI-Filters-Applied": "artifactType"} if kind else {})
        return Reply(200, headers, body)

    def _upload(self, request: Request, name: str, rest: str) -> Reply:
        match request.method:
            case "POST":
                return self._begin(request, name)
            case "PATCH":
                found = _CONTENT_RANGE.fullmatch(request.headers.get("content-range", ""))
                size = self._store.append(rest, int(found[1]) if found else None, request.body)
                return self._session(202, name, rest, size)
            case "PUT":
                self._store.append(rest, None, request.body)
                return self._created(name, self._store.finish(rest, name, request.parameter("digest") or ""))
            case "DELETE":
                del self._store.uploads[rest]
                return Reply(204)
            case _:
                return self._session(204, name, rest, len(self._store.upload(rest)))

    def _begin(self, request: Request, name: str) -> Reply:
        mount, source = request.parameter("mount"), request.parameter("from")
        if mount and source and self._store.mount(name, mount, source):
            return self._created(name, mount)
        digest = request.parameter("digest")
        if digest:
            return self._created(name, self._store.put_blob(name, request.body, digest))
        return self._session(202, name, self._store.begin_upload(), 0)

    def _session(self, status: int, name: str, upload: str, size: int) -> Reply:
        location = f"/v2/{name}/blobs/uploads/{upload}?_state=kept"
        return Reply(
            status, {"Location": location, "Range": f"0-{max(0, size - 1)}", "Docker-Upload-UUID": upload}
        )

    def _created(self, name: str, digest: str) -> Reply:
        return Reply(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})


def _refusal(refusal: Refused, headers: Mapping[str, str]) -> Reply:
    return Reply(refusal.status, {"Content-Type": JSON, **headers}, refusal.body())


def other_digest(data: bytes) -> str:
    """A well-formed digest that is not that of `data`."""
    return sha256_digest(data + b"!")
