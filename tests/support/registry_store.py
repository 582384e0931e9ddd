"""What the test registry holds, and the rules of distribution-spec for putting things there."""

import json
import threading
from collections import defaultdict
from typing import Any, NamedTuple

from indexer.digest import sha256_digest


class StoredManifest(NamedTuple):
    media_type: str
    data: bytes


class Refused(Exception):
    """An answer other than success.

    Attributes:
        status: of HTTP.
        code: of distribution-spec, "Error Codes".
    """

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status = status
        self.code = code
        self.message = message or code.lower().replace("_", " ")
        super().__init__(f"{status} {code}")

    def body(self) -> bytes:
        return json.dumps({"errors": [{"code": self.code, "message": self.message}]}).encode()


class Store:
    """Blobs, manifests, tags and unfinished uploads of all repositories. Hold `lock` around each use."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.blobs: dict[str, bytes] = {}
        self.linked: defaultdict[str, set[str]] = defaultdict(set)
        self.manifests: dict[tuple[str, str], StoredManifest] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.uploads: dict[str, bytearray] = {}
        self._upload_count = 0

    def blob(self, repository: str, digest: str) -> bytes:
        if digest not in self.linked[repository]:
            raise Refused(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return self.blobs[digest]

    def put_blob(self, repository: str, data: bytes, digest: str | None = None) -> str:
        actual = sha256_digest(data)
        if digest not in (None, actual):
            raise Refused(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.blobs[actual] = data
        self.linked[repository].add(actual)
        return actual

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Link a blob of another repository; whether there was one."""
        if digest not in self.linked[source]:
            return False
        self.linked[repository].add(digest)
        return True

    def manifest(self, repository: str, reference: str) -> tuple[str, StoredManifest]:
        """Digest and content of what a tag or digest names."""
        digest = self.tags.get((repository, reference), reference)
        found = self.manifests.get((repository, digest))
        if found is None:
            raise Refused(404, "MANIFEST_UNKNOWN", "manifest unknown")
        return digest, found

    def put_manifest(
        self, repository: str, reference: str, media_type: str, data: bytes, *, check: bool = True
    ) -> str:
        """Store a manifest under its digest, and its tag where the reference is one."""
        digest = sha256_digest(data)
        if ":" in reference and reference != digest:
            raise Refused(400, "DIGEST_INVALID", "manifest digest does not match")
        if check:
            self._check_links(repository, data)
        self.manifests[repository, digest] = StoredManifest(media_type, data)
        if ":" not in reference:
            self.tags[repository, reference] = digest
        return digest

    def _check_links(self, repository: str, data: bytes) -> None:
        try:
            document = json.loads(data)
        except ValueError:
            raise Refused(400, "MANIFEST_INVALID") from None
        for link in [document.get("config"), *document.get("layers", ())]:
            if link and link["digest"] not in self.linked[repository] and not link.get("urls"):
                raise Refused(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
        for link in document.get("manifests", ()):
            if (repository, link["digest"]) not in self.manifests:
                raise Refused(400, "MANIFEST_BLOB_UNKNOWN", "manifest unknown to registry")

    def delete_manifest(self, repository: str, reference: str) -> None:
        if ":" not in reference:
            if self.tags.pop((repository, reference), None) is None:
                raise Refused(404, "MANIFEST_UNKNOWN")
            return
        if self.manifests.pop((repository, reference), None) is None:
            raise Refused(404, "MANIFEST_UNKNOWN")
        self.tags = {name: digest for name, digest in self.tags.items() if digest != reference}

    def delete_blob(self, repository: str, digest: str) -> None:
        self.blob(repository, digest)
        self.linked[repository].discard(digest)

    def tag_list(self, repository: str, last: str, most: int | None) -> tuple[list[str], bool]:
        """The sorted tags after `last`, at most `most`, and whether there are more."""
        tags = sorted(tag for name, tag in self.tags if name == repository and tag > last)
        if not tags and not any(name == repository for name, _ in self.manifests):
            raise Refused(404, "NAME_UNKNOWN", "repository name not known to registry")
        return (tags, False) if most is None else (tags[:most], len(tags) > most)

    def referrers(self, repository: str, digest: str, artifact_type: str | None) -> list[dict[str, Any]]:
        """Descriptors of the manifests attached to `digest`."""
        found = []
        for (name, own), stored in self.manifests.items():
            try:
                document = json.loads(stored.data)
            except ValueError:
                continue  # put there on purpose
            if name != repository or (document.get("subject") or {}).get("digest") != digest:
                continue
            kind = document.get("artifactType") or document.get("config", {}).get("mediaType", "")
            if artifact_type not in (None, kind):
                continue
            link = {"mediaType": stored.media_type, "digest": own, "size": len(stored.data)}
            link["artifactType"] = kind
            if document.get("annotations"):
                link["annotations"] = document["annotations"]
            found.append(link)
        return found

    def begin_upload(self) -> str:
        self._upload_count += 1
        name = f"upload-{self._upload_count}"
        self.uploads[name] = bytearray()
        return name

    def upload(self, name: str) -> bytearray:
        if name not in self.uploads:
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN")
        return self.uploads[name]

    def append(self, name: str, start: int | None, data: bytes) -> int:
        """Add to an upload; its size then. `start`, where given, must be its size before."""
        held = self.upload(name)
        if start not in (None, len(held)):
            raise Refused(416, "BLOB_UPLOAD_INVALID", "out of order")
        held += data
        return len(held)

    def finish(self, name: str, repository: str, digest: str) -> str:
        stored = self.put_blob(repository, bytes(self.upload(name)), digest)
        del self.uploads[name]
        return stored
