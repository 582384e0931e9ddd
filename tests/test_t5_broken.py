"""Broken images and misbehaving registries: one line on stderr, the right exit code, nothing left behind."""

import gzip
import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from indexer.digest import sha256_digest
from tests.support.images import build_image, build_image_from_layers, encode, write_layout
from tests.support.registry import Registry
from tests.support.registry_faults import Corrupt, Stall, Status
from tests.support.tars import directory, file, hardlink, symlink, tar, whiteout

LIMIT_S = 20
CONTENT = bytes(range(256)) * 4000


def _layer_image(blob: bytes, diff_id: str = sha256_digest(b"")):
    return build_image_from_layers([blob], [diff_id])


def _deep(depth: int) -> bytes:
    return tar(directory(b"/".join([b"d"] * depth)))


def _manifest(**changes) -> bytes:
    document = {**build_image([tar(file(b"a", b"x"))]).json, **changes}
    return encode({name: value for name, value in document.items() if value is not None})


BAD_LAYERS = {
    "cut": gzip.compress(tar(file(b"a", CONTENT)))[:-20],
    "damaged": b"".join((head := gzip.compress(tar(file(b"a", CONTENT))), b"")[:1]).replace(
        head[40:44], b"\0\0\0\0"
    ),
    "not a tar": gzip.compress(b"hello " * 1000),
    "garbage after": gzip.compress(tar(file(b"a", b"x"))) + b"garbage",
    "cut tar": gzip.compress(tar(file(b"a", CONTENT))[:3000]),
    "path traversal": gzip.compress(tar(file(b"../../etc/evil", b"x"))),
    "link traversal": gzip.compress(tar(hardlink(b"a", b"../../etc/passwd"))),
    "dangling hard link": gzip.compress(tar(hardlink(b"a", b"nothing"))),
    "bare whiteout": gzip.compress(tar(file(b".wh.", b""))),
    "bomb": gzip.compress(bytes(300 << 20), 9),
    "too deep": gzip.compress(_deep(1500)),
    "bzip2": b"BZh91AY&SY" + bytes(100),
}


def _complaint(done: subprocess.CompletedProcess) -> str:
    """The one line on stderr."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lazyfs: ")
    assert "Traceback" not in done.stderr
    return lines[0]


def _kept(cache_dir: Path) -> list[str]:
    return [
        str(path) for kind in ("layers", "tocs", "images", "tmp") for path in (cache_dir / kind).rglob("*")
    ]


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_a_broken_layer_is_refused_and_no_index_of_it_is_kept(name, lazyfs, tmp_path):
    layout = write_layout(tmp_path / "layout", {"latest": _layer_image(BAD_LAYERS[name])})
    before = sorted(tmp_path.iterdir())
    start = time.monotonic()
    _complaint(lazyfs("index", f"oci:{layout}", exit_code=65))
    assert time.monotonic() - start < LIMIT_S
    assert _kept(lazyfs.cache_dir) == [] or name in ("dangling hard link", "too deep", "bare whiteout")
    assert sorted(tmp_path.iterdir()) == sorted({*before, lazyfs.cache_dir, lazyfs.home})


def test_a_1000_deep_tree_works(lazyfs, tmp_path):
    layout = write_layout(tmp_path / "layout", {"latest": build_image([_deep(1000)])})
    done = lazyfs("find", f"oci:{layout}", "-type", "d")
    assert len(done.stdout.splitlines()) == 1001


def test_symlink_loops_end(lazyfs, tmp_path):
    image = build_image(
        [tar(symlink(b"a", b"b"), symlink(b"b", b"a"), symlink(b"c", b"/../../../etc/passwd"))]
    )
    layout = write_layout(tmp_path / "layout", {"latest": image})
    _complaint(lazyfs("cat", f"oci:{layout}", "/a/b", exit_code=66))
    _complaint(lazyfs("cat", f"oci:{layout}", "/c", exit_code=66))


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        (b"not json", 65),
        (b"[]", 65),
        (b"[" * 100_000, 65),
        (b"{}", 65),
        (_manifest(layers=None), 65),
        (_manifest(layers=[{"digest": "sha256:xyz", "size": 1, "mediaType": "x"}]), 65),
        (_manifest(layers=[{"digest": "sha256:" + "a" * 64, "size": -1, "mediaType": "x"}]), 65),
        (_manifest(config=None), 65),
        (_manifest(manifests=[]), 65),
        (_manifest(schemaVersion=1), 65),
        (_manifest(layers=[]), 65),
    ],
)
def test_a_garbage_manifest_is_refused(manifest, code, lazyfs):
    with Registry() as registry:
        good = build_image([tar(file(b"a", b"x"))])
        registry.push("app", good)
        registry.put_manifest("app", "bad", good.media_type, manifest)
        _complaint(lazyfs("ls", f"{registry.host}/app:bad", exit_code=code))


def test_lying_sizes_and_digests_are_refused(lazyfs):
    with Registry() as registry:
        image = build_image([tar(file(b"a", CONTENT))])
        registry.push("app", image)
        for change in (1, -1):
            document = image.json
            document["layers"][0]["size"] += change
            registry.put_manifest("app", "size", image.media_type, encode(document))
            _complaint(lazyfs("index", f"{registry.host}/app:size", exit_code=65))
        registry.faults.add("blob", Corrupt(100), times=50)
        _complaint(lazyfs("index", f"{registry.host}/app", exit_code=65))
    assert _kept(lazyfs.cache_dir) == []


def test_missing_things_are_named(lazyfs, tmp_path):
    with Registry() as registry:
        image = build_image([tar(file(b"a", CONTENT))])
        registry.push("app", image)
        assert "nothing" in _complaint(lazyfs("ls", f"{registry.host}/app:nothing", exit_code=66))
        document = image.json
        document["layers"][0]["digest"] = "sha256:" + "a" * 64
        registry.put_manifest("app", "hole", image.media_type, encode(document))
        assert "aaaa" in _complaint(lazyfs("index", f"{registry.host}/app:hole", exit_code=66))
        registry.faults.add("manifest", Status(403), times=50)
        _complaint(lazyfs("inspect", f"{registry.host}/app", exit_code=77))
        host = registry.host
    _complaint(lazyfs("ls", f"{host}/app:other", env={"LAZYFS_RETRIES": "0"}, exit_code=75))
    _complaint(lazyfs("ls", f"oci:{tmp_path}/nowhere", exit_code=66))
    _complaint(lazyfs("ls", "docker.io/UPPER", exit_code=64))
    _complaint(lazyfs("mount", f"oci:{tmp_path}/nowhere", tmp_path, exit_code=66))


def test_a_diff_id_that_names_another_image_reads_nothing_of_it(lazyfs, tmp_path):
    mine, yours = tar(file(b"a", b"mine" * 2000)), tar(file(b"a", b"your" * 2000))
    honest = build_image([mine])
    liar = build_image_from_layers([gzip.compress(yours, mtime=0)], [sha256_digest(mine)])
    layout = write_layout(tmp_path / "layout", {"honest": honest, "liar": liar})
    for _ in range(2):
        assert lazyfs("cat", f"oci:{layout}:honest", "/a").stdout == "mine" * 2000
        assert lazyfs("cat", f"oci:{layout}:liar", "/a").stdout == "your" * 2000
    assert len(list((lazyfs.cache_dir / "layers").iterdir())) == 2


@pytest.fixture
def read_timeout_s():
    """The deadline of reads."""
    return 2


@pytest.fixture
def mounted_cold(lazyfs, tmp_path, read_timeout_s):
    """A mount whose index is local and whose content is not, and the registry behind it."""
    random = os.urandom(2_000_000)
    image = build_image([tar(file(b"a", random), file(b"b", b"b" * 100)), tar(whiteout(b"b"))])
    with Registry() as registry:
        registry.push("app", image)
        reference = f"{registry.host}/app"
        lazyfs("index", reference)
        subprocess.run(["rm", "-rf", lazyfs.cache_dir / "layers"], check=True)
        point = tmp_path / "mnt"
        point.mkdir()
        lazyfs("mount", "--read-timeout", str(read_timeout_s), reference, point)
        try:
            yield registry, point, random
        finally:
            registry.release()
            lazyfs("umount", "--lazy", point)


def test_a_corrupted_span_is_an_error_and_never_wrong_bytes(mounted_cold):
    registry, point, content = mounted_cold
    registry.faults.add("blob", Corrupt(5000), times=1)
    with pytest.raises(OSError, match="Input/output error"):
        (point / "a").read_bytes()
    assert _read_when_tried_again(point / "a") == content


def _read_when_tried_again(path: Path) -> bytes:
    """A read that failed is not tried again for a second (lazyfs.mount.failed_reads)."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with suppress(OSError):
            return path.read_bytes()
        time.sleep(0.1)
    return path.read_bytes()


def test_a_stalled_registry_ends_in_an_error_within_the_deadline(mounted_cold):
    registry, point, _ = mounted_cold
    registry.faults.add("blob", Stall(100), times=100)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"Input/output error|timed out"):
        (point / "a").read_bytes()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("read_timeout_s", [1000])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cat_of_a_stalled_file_can_be_interrupted(mounted_cold, number):
    registry, point, _ = mounted_cold
    registry.faults.add("blob", Stall(100), times=100)
    with subprocess.Popen(["cat", point / "a"], stdout=subprocess.DEVNULL) as cat:
        registry.wait_stalled()
        cat.send_signal(number)
        assert cat.wait(timeout=LIMIT_S) == -number  # long before any deadline or retry


def test_a_whited_out_file_cannot_be_reached(mounted_cold):
    _, point, _ = mounted_cold
    assert [path.name for path in point.iterdir()] == ["a"]
    assert not (point / "b").exists()


def test_copying_out_never_follows_a_link_of_the_target(lazyfs, tmp_path):
    image = build_image([tar(directory(b"d"), symlink(b"d/evil", b"/"), file(b"d/f", b"data"))])
    layout = write_layout(tmp_path / "layout", {"latest": image})
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "d").symlink_to(outside)
    lazyfs("cp", "-r", f"oci:{layout}", "/d", target, exit_code=74)
    assert list(outside.iterdir()) == []
    (target / "d").unlink()
    lazyfs("cp", "-r", f"oci:{layout}", "/d", target)
    assert (target / "d/f").read_bytes() == b"data"
    assert (target / "d/evil").readlink() == Path("/")
    (target / "d/f").unlink()
    (target / "d/f").symlink_to(outside / "planted")
    lazyfs("cp", f"oci:{layout}", "/d/f", target / "d/f", exit_code=74)
    assert list(outside.iterdir()) == []


def test_inspect_tells_everything_without_a_layer(lazyfs):
    with Registry() as registry:
        image = build_image([tar(file(b"a", CONTENT))], process={"Cmd": ["/a"]})
        registry.push("app", image)
        facts = json.loads(lazyfs("inspect", f"{registry.host}/app", "--json").stdout)
        assert facts["digest"] == image.digest
        assert facts["indexed"] is False
        assert facts["config"]["config"]["Cmd"] == ["/a"]
        assert registry.requests["GET", "blob"] == 1  # the configuration
        lazyfs("index", f"{registry.host}/app")
        assert json.loads(lazyfs("inspect", f"{registry.host}/app", "--json").stdout)["indexed"] is True
        registry.push("app", build_image([tar(file(b"a", CONTENT)), tar(file(b"b"))]), tag="more")
        assert "indexed     in part; the first mount" in lazyfs("inspect", f"{registry.host}/app:more").stdout
