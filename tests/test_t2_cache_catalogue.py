"""What is kept and what is garbage: the catalogue, and everything that hangs on it."""

import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from indexer.digest import sha256_digest
from lazyfs.cache import collecting
from lazyfs.cache.cache import Cache
from lazyfs.cache.catalogue import KeptImage
from lazyfs.cache.files import read_bounded
from lazyfs.errors import CacheError
from tests.support.crash import small_disk

LAYERS = ["sha256:" + digit * 64 for digit in "1234"]
TOC = "sha256:" + "e" * 64


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def document(cache: Cache, **fields) -> str:
    data = json.dumps(fields).encode()
    digest = sha256_digest(data)
    cache.documents.put(digest, data)
    return digest


def image(cache: Cache, name: str, layers: list[str], metadata: str) -> KeptImage:
    """An image whose manifest, configuration, layers, tables and metadata image are in the cache."""
    config = document(cache, config=name)
    manifest = document(cache, config={"digest": config}, layers=[{"digest": layer} for layer in layers])
    for layer in layers:
        cache.layer(layer, TOC, 8192, 2).close()
        cache.tocs.save(layer, "own", b"table", b"windows")
    cache.images.publish(metadata, lambda file: file.write(b"image"))
    cache.references.remember(name, {"digest": manifest}, 1.0)
    pairs = tuple((layer, TOC) for layer in layers)
    return KeptImage(name, manifest, (manifest, config), pairs, metadata)


def garbage(cache: Cache) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in cache.housekeeper.garbage(0):
        found.setdefault(item.kind, set()).add(item.name)
    return found


def test_an_image_that_is_pinned_while_it_is_opened_stays_pinned(cache: Cache, monkeypatch) -> None:
    one = image(cache, "registry.example/one:1", LAYERS[:1], "a" * 64)
    pinning = threading.Thread(target=Cache(cache.root).catalogue.pin, args=(one,))
    load = cache.catalogue._load

    def load_and_let_another_pin(path: Path):
        found = load(path)
        monkeypatch.undo()
        pinning.start()
        pinning.join(0.2)  # if nothing holds it up, it is done by then
        return found

    monkeypatch.setattr(cache.catalogue, "_load", load_and_let_another_pin)
    cache.catalogue.note(one)
    pinning.join()
    assert [listed.image.pinned for listed in cache.catalogue.images()] == [True]


def test_what_an_image_refers_to_is_kept_and_the_rest_is_garbage(cache: Cache) -> None:
    one = image(cache, "registry.example/one:1", LAYERS[:2], "a" * 64)
    two = image(cache, "registry.example/two:1", LAYERS[1:3], "b" * 64)
    cache.catalogue.note(one)
    cache.catalogue.note(two)
    assert garbage(cache) == {}
    signature = document(cache, subject={"digest": two.manifest}, layers=[])
    payload = document(cache, payload="of a signature")
    beside = document(cache, subject={"digest": signature}, layers=[{"digest": payload}])
    cache.references.remember(f"index of {two.manifest}", {"digest": signature}, 1.0)
    stray = document(cache, subject={"digest": sha256_digest(b"gone")})
    assert garbage(cache) == {"documents": {f"sha256/{stray[7:]}"}}
    cache.catalogue.remove(two)
    found = garbage(cache)
    gone = {two.manifest, two.documents[1], signature, payload, beside, stray}
    assert found["documents"] == {f"sha256/{digest[7:]}" for digest in gone}
    assert found["layers"] == {f"{LAYERS[2][7:]}/{TOC[7:]}"}
    assert found["tocs"] == {LAYERS[2][7:]}
    assert found["images"] == {f"{'b' * 64}.erofs"}
    assert len(found["references"]) == 2
    cache.housekeeper.collect(cache.housekeeper.garbage(0))
    assert garbage(cache) == {}
    assert cache.documents.get(one.manifest)
    assert cache.references.recall("registry.example/one:1")
    assert cache.tocs.load(LAYERS[1], "own") == b"table"
    assert cache.images.path("a" * 64)


def test_what_is_young_or_open_stays(cache: Cache) -> None:
    image(cache, "registry.example/one:1", LAYERS[:1], "a" * 64)
    assert cache.housekeeper.garbage() == []
    with cache.layer(LAYERS[0], TOC, 8192, 2):
        assert "layers" not in garbage(cache)
        found = cache.housekeeper.garbage(0)
    assert "layers" in garbage(cache)
    with cache.layer(LAYERS[0], TOC, 8192, 2):
        cache.housekeeper.collect([*found, *cache.housekeeper.garbage(0)])
        assert len(cache.ls()) == 1


def test_a_record_is_renewed_and_keeps_its_pin(cache: Cache) -> None:
    one = image(cache, "registry.example/one:1", LAYERS[:1], "a" * 64)
    cache.catalogue.note(one)
    (path,) = (cache.root / "catalogue").iterdir()
    os.utime(path, (1000, 1000))
    cache.catalogue.note(one)
    (listed,) = cache.catalogue.images()
    assert listed.last_used > 1000
    cache.catalogue.pin(one)
    other = KeptImage(one.name, one.manifest, one.documents, ((LAYERS[0], LAYERS[3]),), "c" * 64)
    cache.catalogue.note(other)
    (listed,) = cache.catalogue.images()
    assert listed.image.pinned
    assert listed.image.metadata == "c" * 64
    os.utime(path, (1000, 1000))
    cache.catalogue.unpin(cache.catalogue.images())
    (listed,) = cache.catalogue.images()
    assert (listed.image.pinned, listed.last_used) == (False, 1000)


@pytest.mark.parametrize(
    "noise", [b"", b"{", b"[]", b"null", b'{"name": 1}', b"[" * 100_000, b"\xff", b'{"layers": [1]}']
)
def test_a_garbled_record_counts_for_nothing(cache: Cache, noise: bytes) -> None:
    one = image(cache, "registry.example/one:1", LAYERS[:1], "a" * 64)
    cache.catalogue.note(one)
    (path,) = (cache.root / "catalogue").iterdir()
    path.write_bytes(noise)
    assert cache.catalogue.images() == []
    assert "layers" in garbage(cache)
    cache.catalogue.note(one)
    assert [listed.image for listed in cache.catalogue.images()] == [one]


def test_a_record_whose_layers_are_no_pairs_counts_for_nothing(cache: Cache) -> None:
    one = image(cache, "registry.example/one:1", LAYERS[:1], "a" * 64)
    cache.catalogue.note(one)
    (path,) = (cache.root / "catalogue").iterdir()
    for layers in ([1], [[1, 2, 3]], ["ab", "cde"]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": layers}))
        assert cache.catalogue.images() == []


def test_on_a_full_disk_notes_are_lost_and_pins_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20, "tmpfs") as disk:
        cache = Cache(disk / "cache")
        with pytest.raises(OSError, match="space"):
            (disk / "ballast").write_bytes(bytes(2 << 20))
        one = KeptImage("registry.example/one:1", TOC, (), (), "a" * 64)
        cache.catalogue.note(one)
        with pytest.raises(CacheError, match="pin an image: No space left"):
            cache.catalogue.pin(one)
        assert cache.catalogue.images() == []


def test_images_go_when_their_content_is_not_enough(tmp_path: Path) -> None:
    """The one used least recently first; those that are pinned, or were opened within the hour, stay."""
    cache = Cache(tmp_path / "cache", quota_bytes=64 << 10)
    kept = []
    for number, layer in enumerate(LAYERS):
        one = image(cache, f"registry.example/{number}:1", [layer], f"{number}" * 64)
        cache.tocs.save(layer, "large", bytes(40 << 10))
        cache.catalogue.note(one)
        kept.append(one)
    cache.catalogue.pin(kept[0])
    for path in cache.root.rglob("*"):
        os.utime(path, (1000, 1000))
    cache.catalogue.note(kept[3])
    assert cache.housekeeper.make_room() > 80 << 10
    names = {listed.image.name for listed in cache.catalogue.images()}
    assert names == {"registry.example/0:1", "registry.example/3:1"}
    assert cache.tocs.load(LAYERS[0], "large")
    assert cache.tocs.load(LAYERS[1], "large") is None


def test_images_that_are_mounted_stay_however_long_ago_that_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", quota_bytes=64 << 10)
    base, own, other, apart = LAYERS
    for name, layers in {"used": [base, own], "beside": [base, other], "in part": [apart, other]}.items():
        cache.catalogue.note(image(cache, name, layers, sha256_digest(name.encode())[7:]))
    cache.tocs.save(base, "large", bytes(80 << 10))
    for path in cache.root.rglob("*"):
        os.utime(path, (1000, 1000))

    def left() -> set[str]:
        cache.housekeeper.make_room()
        return {listed.image.name for listed in cache.catalogue.images()}

    with cache.layer(base, TOC, 8192, 2), cache.layer(own, TOC, 8192, 2), cache.layer(apart, TOC, 8192, 2):
        assert left() == {"used", "in part"}
        assert cache.tocs.load(own, "own") == b"table"
        assert cache.references.recall("used")
    assert left() == set()


def test_each_document_is_read_once_however_many_images_go(tmp_path: Path, monkeypatch) -> None:
    cache = Cache(tmp_path / "cache", quota_bytes=600 << 10)
    kept = []
    for number in range(40):
        layer = sha256_digest(b"%d" % number)
        one = image(cache, f"{number}", [layer], layer[7:])
        cache.tocs.save(layer, "large", bytes(8 << 10))
        cache.catalogue.note(one)
        kept.append(one)
    for path in cache.root.rglob("*"):
        os.utime(path, (1000, 1000))
    for number, one in enumerate(kept):
        os.utime(cache.catalogue._path(one.name, one.manifest), (1000 + number, 1000 + number))
    read: Counter[Path] = Counter()

    def counted(path: Path, limit: int) -> bytes | None:
        read[path] += 1
        return read_bounded(path, limit)

    monkeypatch.setattr(collecting, "read_bounded", counted)
    goal = cache.housekeeper.excess()
    assert 0 <= cache.housekeeper.make_room() - goal < 48 << 10  # what one image takes
    left = [int(listed.image.name) for listed in cache.catalogue.images()]
    assert 2 < len(left) < 38
    assert left == list(range(39, 39 - len(left), -1))
    assert len(read) == 120
    assert set(read.values()) == {1}
