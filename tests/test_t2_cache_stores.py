"""Documents, references, tables of contents and metadata images: whole, right, or not there."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, FormatError
from lazyfs.cache.cache import Cache
from lazyfs.cache.references import Resolved
from lazyfs.errors import CacheError
from tests.support.spans import LAYER

MANIFEST = b'{"schemaVersion": 2}'
DIGEST = sha256_digest(MANIFEST)
KEY = "0123456789abcdef"

NOT_DIGESTS = [
    "",
    "sha256:",
    "sha256:" + "A" * 64,
    "sha256:" + "a" * 63 + "\n",
    "sha512:" + "a" * 128,
    "../x",
]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def garble(path: Path, how: str) -> None:
    match how:
        case "flipped":
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        case "short":
            os.truncate(path, path.stat().st_size - 1)
        case "empty":
            path.write_bytes(b"")
        case "longer":
            path.write_bytes(path.read_bytes() + b"x")
        case "directory":
            path.unlink()
            path.mkdir()
        case "symlink":
            path.rename(path.with_name("elsewhere"))
            path.symlink_to("elsewhere")
        case "pipe":
            path.unlink()
            os.mkfifo(path)


GARBLINGS = ["flipped", "short", "empty", "longer", "directory", "symlink", "pipe"]


@given(data=st.binary(max_size=9000))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_document_comes_back_by_its_digest(cache: Cache, data: bytes) -> None:
    digest = sha256_digest(data)
    cache.documents.put(digest, data)
    cache.documents.put(digest, data)
    assert cache.documents.get(digest) == data


@pytest.mark.parametrize("how", GARBLINGS)
def test_a_garbled_document_is_none_and_gone_and_can_come_again(cache: Cache, how: str) -> None:
    cache.documents.put(DIGEST, MANIFEST)
    path = cache.root / "documents" / "sha256" / DIGEST[7:]
    garble(path, how)
    assert cache.documents.get(DIGEST) is None
    assert not os.path.lexists(path)
    cache.documents.put(DIGEST, MANIFEST)
    assert cache.documents.get(DIGEST) == MANIFEST


def test_documents_are_refused_under_a_wrong_digest(cache: Cache) -> None:
    assert cache.documents.get(DIGEST) is None
    with pytest.raises(DigestMismatch):
        cache.documents.put(DIGEST, b"something else")
    for digest in NOT_DIGESTS:
        with pytest.raises(FormatError):
            cache.documents.get(digest)
        with pytest.raises(FormatError):
            cache.documents.put(digest, b"")
    assert cache.documents.get(DIGEST) is None


def test_a_reference_is_remembered_with_its_date(cache: Cache) -> None:
    references = cache.references
    name = "registry.example/library/nginx:1.27"
    assert references.recall(name) is None
    references.remember(name, {"digest": DIGEST, "size": 20}, 1000)
    references.remember(name, {"digest": DIGEST, "size": 21, "annotations": {"a": "ä"}}, 2000.5)
    references.remember("registry.example/other:1", {}, 3)
    assert references.recall(name) == Resolved(
        {"digest": DIGEST, "size": 21, "annotations": {"a": "ä"}}, 2000.5
    )
    references.forget(name)
    references.forget(name)
    assert references.recall(name) is None
    assert references.recall("registry.example/other:1") == Resolved({}, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"reference": "other", "descriptor": {}, "when": 1}',
        b'{"reference": "name", "descriptor": [], "when": 1}',
        b'{"reference": "name", "descriptor": {}}',
        b'{"reference": "name", "descriptor": {}, "when": NaN}',
        b'{"reference": "name", "descriptor": {}, "when": "now"}',
    ],
)
def test_a_garbled_reference_is_none(cache: Cache, content: bytes) -> None:
    cache.references.remember("name", {}, 1)
    (path,) = (cache.root / "references").iterdir()
    path.write_bytes(content)
    assert cache.references.recall("name") is None


def test_a_table_of_contents_comes_with_its_windows(cache: Cache) -> None:
    head, windows = b"head", b"windows" * 1000
    assert cache.tocs.load(LAYER, "own-1") is None
    assert cache.tocs.windows(LAYER, "own-1", sha256_digest(windows)) is None
    assert cache.tocs.names(LAYER) == []
    cache.tocs.save(LAYER, "own-1", head, windows)
    cache.tocs.save(LAYER, "empty", b"another", b"")
    assert cache.tocs.load(LAYER, "own-1", sha256_digest(head)) == head
    assert cache.tocs.load(LAYER, "own-1") == head
    assert cache.tocs.windows(LAYER, "own-1", sha256_digest(windows)) == windows
    assert cache.tocs.windows(LAYER, "empty", sha256_digest(b"")) == b""
    assert cache.tocs.names(LAYER) == ["empty", "own-1"]


def test_a_table_saved_without_windows_leaves_those_that_are_there(cache: Cache) -> None:
    cache.tocs.save(LAYER, "name", b"head", b"windows")
    cache.tocs.save(LAYER, "name", b"new head")
    assert cache.tocs.load(LAYER, "name") == b"new head"
    assert cache.tocs.windows(LAYER, "name", sha256_digest(b"windows")) == b"windows"


def test_windows_that_are_open_outlast_their_replacement(cache: Cache) -> None:
    cache.tocs.save(LAYER, "name", b"head", b"windows")
    view = cache.tocs.windows(LAYER, "name", sha256_digest(b"windows"))
    cache.tocs.save(LAYER, "name", b"head", b"WINDOWS and more")
    assert view == b"windows"
    assert cache.tocs.windows(LAYER, "name", sha256_digest(b"windows")) is None


@pytest.mark.parametrize("how", GARBLINGS)
@pytest.mark.parametrize("ending", ["toc", "windows"])
def test_a_garbled_table_is_none_and_can_come_again(cache: Cache, ending: str, how: str) -> None:
    def load() -> list:
        return [
            cache.tocs.load(LAYER, "name", sha256_digest(b"head")),
            cache.tocs.windows(LAYER, "name", sha256_digest(b"windows")),
        ]

    cache.tocs.save(LAYER, "name", b"head", b"windows")
    path = cache.root / "tocs" / LAYER[7:] / f"name.{ending}"
    garble(path, how)
    assert load() == [None if ending == "toc" else b"head", None if ending == "windows" else b"windows"]
    if path.is_dir():  # which no file takes the place of
        path.rmdir()
    cache.tocs.save(LAYER, "name", b"head", b"windows")
    assert load() == [b"head", b"windows"]


def test_names_of_tables_are_plain(cache: Cache) -> None:
    for name in ("", "..", "a/b", ".x", "x" * 201):
        with pytest.raises(CacheError, match="plain name"):
            cache.tocs.save(LAYER, name, b"head")
    for digest in NOT_DIGESTS:
        with pytest.raises(FormatError):
            cache.tocs.load(digest, "name")


def test_an_image_is_published_whole(cache: Cache) -> None:
    assert cache.images.path(KEY) is None

    def write(file) -> None:
        file.write(b"first ")
        assert cache.images.path(KEY) is None
        file.seek(6)
        file.write(b"second")

    path = cache.images.publish(KEY, write)
    assert path == cache.images.path(KEY) == cache.root / "images" / f"{KEY}.erofs"
    assert path.read_bytes() == b"first second"


def test_an_image_is_on_disk_before_it_has_its_name(cache: Cache, monkeypatch) -> None:
    real = os.fsync
    synced = []

    def look(descriptor: int) -> None:
        real(descriptor)
        synced.append((os.fstat(descriptor).st_size, cache.images.path(KEY)))

    monkeypatch.setattr(os, "fsync", look)
    cache.images.publish(KEY, lambda file: file.write(b"image"))
    assert synced == [(5, None)]


@pytest.mark.expect_log("cannot keep a metadata image: No space left on device; it is kept in memory")
def test_a_writer_that_fails_publishes_nothing(cache: Cache) -> None:
    def fail(file) -> None:
        file.write(b"half")
        raise FormatError("no")

    def fill_the_disk(_file) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FormatError):
        cache.images.publish(KEY, fail)
    with pytest.raises(CacheError, match="No space left"):
        cache.images.publish(KEY, fill_the_disk)
    assert cache.images.path(KEY) is None
    assert list((cache.root / "tmp").iterdir()) == []


@pytest.mark.expect_log("cannot keep a metadata image: No space left on device; it is kept in memory")
def test_an_image_that_cannot_be_made_in_memory_either_leaves_nothing_open(cache: Cache) -> None:
    attempts = iter([OSError(28, "No space left on device"), FormatError("no")])

    def fail(_file) -> None:
        raise next(attempts)

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FormatError):
        cache.images.publish(KEY, fail)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "key", ["", "xyz", "../../etc/passwd", "A" * 64, "a" * 15, "a" * 129, "a" * 64 + "\n"]
)
def test_keys_of_images_are_hexadecimal(cache: Cache, key: str) -> None:
    for use in (cache.images.path, lambda key: cache.images.publish(key, print)):
        with pytest.raises(CacheError, match="key"):
            use(key)
