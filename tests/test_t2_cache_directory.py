"""The cache directory: whose it is, what it holds, and re-hashing all of it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent

import pytest

from indexer.toc import SpanTable, round_to_block
from lazyfs.cache.cache import Cache
from lazyfs.cache.checking import EntryCheck
from lazyfs.cache.scratch import Scratch
from lazyfs.errors import CacheError
from lazyfs.flock import directory_locked
from tests.support.entries import remove_entry
from tests.support.spans import LAYER, TOC, content, spans_of, wrong_leaves

DATA = content(3_000_000, seed=4)
SPANS = spans_of(DATA, 1_300_000)
SIZE = round_to_block(len(DATA))
OTHER_TOC = "sha256:" + "3" * 64


def put_span(entry, number: int) -> None:
    span = SPANS[number]
    data = DATA[span.uncompressed_start : span.uncompressed_end]
    assert entry.put(span.uncompressed_start, span.first_leaf, data)


def test_a_new_directory_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = Cache(tmp_path / "some" / "where")
        cache.documents.put("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", b"")
    finally:
        os.umask(before)
    for path in [cache.root, *cache.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_an_empty_directory_of_ours_becomes_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "lost+found").mkdir()
    assert Cache(tmp_path).root == tmp_path
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert Cache(tmp_path).ls() == []


def test_the_version_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    """An empty one, left by a power cut, would make the cache one of another version."""
    real = os.fsync
    synced = []

    def look(descriptor: int) -> None:
        real(descriptor)
        synced.append((os.fstat(descriptor).st_size, (tmp_path / "version").exists()))

    monkeypatch.setattr(os, "fsync", look)
    Cache(tmp_path)
    assert synced == [(2, False)]


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o777])
def test_a_cache_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    Cache(tmp_path / "cache")
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(CacheError, match="others may enter"):
        Cache(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == mode


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CacheError, match=r"thesis\.tex"):
        Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_somebody_elses_directory_or_symlink_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    with pytest.raises(CacheError, match="belongs to somebody else"):
        Cache(theirs)
    Cache(tmp_path / "ours")
    link = tmp_path / "link"
    link.symlink_to("ours")
    assert Cache(link).root == tmp_path / "ours"
    os.lchown(link, 12345, 12345)
    with pytest.raises(CacheError, match="somebody else's symlink"):
        Cache(link)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling", "file/below"):
        with pytest.raises(CacheError, match="cache directory"):
            Cache(tmp_path / name)


@pytest.mark.parametrize("version", [b"", b"2\n", b"1", b"x" * 100])
def test_another_version_is_refused(tmp_path: Path, version: bytes) -> None:
    Cache(tmp_path / "cache")
    (tmp_path / "cache" / "version").write_bytes(version)
    with pytest.raises(CacheError):
        Cache(tmp_path / "cache")


def test_what_is_there_can_be_listed_and_measured(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        put_span(entry, 1)
        entry.record_audit()
    with cache.layer(LAYER, OTHER_TOC, SIZE, SPANS.leaves):
        pass
    cache.tocs.save(LAYER, "name", b"x" * 5000, b"")
    (cache.root / "layers" / LAYER[7:] / "stray").mkdir()
    first, second = cache.ls()
    assert (first.layer_digest, first.toc_digest) == (LAYER, TOC)
    assert (first.size, first.leaves, first.present) == (
        SIZE,
        SPANS.leaves,
        SPANS[1].end_leaf - SPANS[1].first_leaf,
    )
    assert (first.audited, second.audited) == (True, False)
    assert (second.toc_digest, second.present) == (OTHER_TOC, 0)
    assert first.last_used <= second.last_used
    usage = cache.usage()
    assert usage.layers == {LAYER: first.allocated_bytes + second.allocated_bytes}
    assert usage.kinds["layers"] == usage.layers[LAYER]
    assert usage.kinds["tocs"] == 8192
    assert set(usage.kinds) == {path.name for path in cache.root.iterdir() if path.is_dir()}
    assert {"layers", "tocs", "images", "documents", "references", "catalogue", "tmp"} <= set(usage.kinds)
    assert usage.total == sum(usage.kinds.values())
    assert str(cache.root) in repr(cache)


def test_what_cannot_be_removed_from_scratch_is_let_go_of(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with pytest.raises(OSError, match="busy"), scratch.file() as (_, path):
        subprocess.run(["mount", "--bind", "/dev/null", path], check=True)
    subprocess.run(["umount", path], check=True)
    assert scratch.sweep() == 1  # the lock is gone with the descriptor


HOSTILE = """
    import os, sys
    from pathlib import Path
    from lazyfs.cache.cache import Cache
    from lazyfs.removal import remove_tree
    from tests.support.deep_trees import make_deep

    cache = Cache(Path(sys.argv[1]) / "cache", quota_bytes=1 << 20)
    changes = cache.root / "containers" / "name" / "changes"
    changes.mkdir(parents=True)
    make_deep(changes, 3000)
    (changes / "seen").write_bytes(bytes(5000))
    (changes / "no entry").mkdir(mode=0)
    (changes / "no look").mkdir()
    (changes / "no look" / "file").write_bytes(bytes(5000))
    (changes / "no look").chmod(0o400)
    (changes / "circle").symlink_to("circle")
    print(os.geteuid(), cache.usage().kinds["containers"], cache.housekeeper.make_room())
    remove_tree(changes)
"""


@pytest.mark.parametrize("user", ["0", "65534"])
def test_what_a_container_hides_is_passed_by(user: str) -> None:
    """Paths that are too long, or recursion too deep for us; modes that forbid to look."""
    words = ["setpriv", "--reuid", user, "--clear-groups", sys.executable, "-c", dedent(HOSTILE)]
    with tempfile.TemporaryDirectory() as place:  # pytest's own are for nobody else to enter
        Path(place).chmod(0o777)
        done = subprocess.run([*words, place], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert done.stdout.split() == [user, str(8192 if user != "0" else 16384), "0"]


def test_a_layers_directory_goes_with_its_last_entry_unless_another_is_being_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    layer = cache.root / "layers" / LAYER[7:]
    for toc in (TOC, OTHER_TOC):
        cache.layer(LAYER, toc, 8192, 2).close()
    assert remove_entry(cache, LAYER, TOC)
    assert layer.exists()
    with directory_locked(layer.parent):  # as whoever makes an entry has it, between mkdir and rename
        assert remove_entry(cache, LAYER, OTHER_TOC)
        assert layer.exists()
    cache.layer(LAYER, TOC, 8192, 2).close()
    assert remove_entry(cache, LAYER, TOC)
    assert not layer.exists()


def test_an_entry_whose_state_is_lost_is_still_listed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        put_span(entry, 0)
    (cache.root / "layers" / LAYER[7:] / TOC[7:] / "state").unlink()
    (info,) = cache.ls()
    assert (info.size, info.present) == (SIZE, SPANS[0].end_leaf)
    (cache.root / "layers" / LAYER[7:] / TOC[7:] / "data").unlink()
    assert cache.ls() == []


class KnowingCache(Cache):
    """One that knows the spans of the layer."""

    def spans(self, layer_digest: str, toc_digest: str) -> SpanTable | None:
        return SPANS if (layer_digest, toc_digest) == (LAYER, TOC) else None


def damaged(tmp_path: Path) -> Cache:
    """Span 0 is right, of span 1 a bit is flipped, span 2 is there in part."""
    cache = KnowingCache(tmp_path / "cache")
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        put_span(entry, 0)
        put_span(entry, 1)
        start = SPANS[2].uncompressed_start
        assert entry.put(start, SPANS[2].first_leaf, DATA[start : start + 4096])
        entry.sync()
    with (cache.root / "layers" / LAYER[7:] / TOC[7:] / "data").open("r+b") as file:
        file.seek(SPANS[1].uncompressed_end - 1)
        file.write(bytes([DATA[SPANS[1].uncompressed_end - 1] ^ 0x40]))
    return cache


@pytest.mark.parametrize("in_use", [True, False])
def test_verify_finds_what_is_wrong_and_repair_forgets_it(tmp_path: Path, in_use: bool) -> None:
    cache = damaged(tmp_path)
    cache.layer(LAYER, OTHER_TOC, SIZE, SPANS.leaves).close()
    reader = cache.layer(LAYER, TOC, SIZE, SPANS.leaves)
    if not in_use:
        reader.close()
    found = EntryCheck(LAYER, TOC, right=1, wrong=(1,), unverifiable=(2,))
    unknown = EntryCheck(LAYER, OTHER_TOC, without_toc=True)
    assert list(cache.verify()) == [found, unknown]
    allocated = cache.usage().layers[LAYER]
    repaired = EntryCheck(LAYER, TOC, right=1, wrong=(1,), unverifiable=(2,), repaired=True)
    assert list(cache.verify(repair=True)) == [repaired, unknown]
    assert list(cache.verify(repair=True)) == [EntryCheck(LAYER, TOC, right=1), unknown]
    assert cache.usage().layers[LAYER] < allocated
    reader.close()
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert entry.missing(0, SPANS.leaves) == [(SPANS[0].end_leaf, SPANS.leaves)]
        for number in range(len(SPANS)):
            put_span(entry, number)
        assert wrong_leaves(DATA, SPANS, entry) == []
    assert next(cache.verify()) == EntryCheck(LAYER, TOC, right=3)


def test_verify_resets_an_entry_that_its_table_of_contents_does_not_fit(tmp_path: Path) -> None:
    cache = KnowingCache(tmp_path / "cache")
    with cache.layer(LAYER, TOC, SIZE // 2, 7) as entry:
        entry.put(0, 0, DATA[:4096])
    assert list(cache.verify()) == [EntryCheck(LAYER, TOC)]
    with cache.layer(LAYER, TOC, SIZE, SPANS.leaves) as entry:
        assert entry.statistics().present == 0
