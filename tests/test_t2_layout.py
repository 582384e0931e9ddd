"""Images on disk: OCI layouts and archives, whole and damaged, and that no link leads out of them."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.digest import sha256_digest
from indexer.errors import DigestMismatch, FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.toc import Compression
from lazyfs.errors import LazyfsError, NotFound, RangeRefused, SourceError
from lazyfs.oci.config import parse_config
from lazyfs.oci.image_name import DockerArchiveImage, parse_image
from lazyfs.oci.platform import parse_platform
from lazyfs.source.base import PIECE_SIZE, SourceStatistics
from lazyfs.source.http.settings import SourceSettings
from lazyfs.source.image import FoundImage
from lazyfs.source.local import archive
from lazyfs.source.local.layout import Directory
from lazyfs.source.local.source import FileRange
from lazyfs.source.open import open_source
from tests.support.images import build_image, build_index, encode, write_layout
from tests.support.registry_client import image_of

AMD64 = parse_platform("linux/amd64")
LOWER = os.urandom(PIECE_SIZE * 2 + 5)
IMAGE = build_image([LOWER, b"upper"], compression="none")
OTHER = build_image([b"other"], platform="linux/arm64")


async def read(name: str) -> FoundImage:
    """The image, after checking that its layers can be had by range and whole."""
    async with open_source(parse_image(name), SourceSettings()) as source:
        image = await image_of(source, AMD64)
        for layer in image.layers:
            blob = source.blob(layer.descriptor)
            pieces: list[bytes] = []
            await blob.pull(lambda piece, pieces=pieces: pieces.append(bytes(piece)))  # type: ignore[misc]
            whole = b"".join(pieces)
            assert sha256_digest(whole) == layer.descriptor.digest
            assert all(len(piece) <= PIECE_SIZE for piece in pieces)
            assert await blob.fetch(1, len(whole), bytes) == whole[1:]
        assert source.statistics() == SourceStatistics()
        return image


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", {"one": IMAGE})


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tar_of(directory: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as tar:
        tar.add(directory, ".")
    return target


def blob_path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


async def test_a_layout_holds_an_image(layout: Path) -> None:
    image = await read(f"oci:{layout}:one")
    assert image.descriptor.digest == IMAGE.digest
    assert image.config == parse_config(IMAGE.config)
    assert image == await read(f"oci:{layout}")


async def test_an_archived_layout_holds_the_same(layout: Path, tmp_path: Path) -> None:
    archive = tar_of(layout, tmp_path / "layout.tar")
    assert await read(f"oci-archive:{archive}:one") == await read(f"oci:{layout}:one")


async def test_a_tag_chooses_and_its_absence_is_explained(tmp_path: Path) -> None:
    layout = write_layout(tmp_path, {"one": IMAGE, "two": build_index([OTHER, IMAGE]), "": OTHER})
    assert (await read(f"oci:{layout}:two")).descriptor.digest == IMAGE.digest
    with pytest.raises(NotFound, match="no image 'three'; it has one, two"):
        await read(f"oci:{layout}:three")
    with pytest.raises(NotFound, match="name one of its images; it has one, two"):
        await read(f"oci:{layout}")


async def test_a_tag_that_stands_twice_is_refused(tmp_path: Path) -> None:
    layout = write_layout(tmp_path, {"one": IMAGE, "two": OTHER})
    index = (layout / "index.json").read_bytes()
    (layout / "index.json").write_bytes(index.replace(b'"two"', b'"one"'))
    with pytest.raises(NotFound, match="several images are called 'one'"):
        await read(f"oci:{layout}:one")


async def test_containerds_whole_names_are_tags_too(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = "docker.io/library/app:one"
    (layout / "index.json").write_bytes(encode(index))
    assert (await read(f"oci:{layout}:docker.io/library/app:one")).descriptor.digest == IMAGE.digest


async def test_an_empty_layout_holds_no_image(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no image"):
        await read(f"oci:{write_layout(tmp_path, {})}")


async def test_a_place_without_layout_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("absent", "file", "."):
        with pytest.raises(NotFound):
            await read(f"oci:{tmp_path / name}")
        with pytest.raises((NotFound, FormatError)):
            await read(f"oci-archive:{tmp_path / name}")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", FormatError),
        (b"{}", FormatError),
        (b'{"imageLayoutVersion": 1}', FormatError),
        (b'{"imageLayoutVersion": "2.0.0"}', Unsupported),
    ],
)
async def test_the_marker_of_a_layout_must_be_right(
    layout: Path, content: bytes, error: type[Exception]
) -> None:
    (layout / "oci-layout").write_bytes(content)
    with pytest.raises(error):
        await read(f"oci:{layout}")


async def test_an_index_that_is_too_large_is_not_read(layout: Path) -> None:
    with (layout / "index.json").open("r+b") as file:
        file.truncate(5 << 20)
    with pytest.raises(LimitExceeded):
        await read(f"oci:{layout}")


async def test_a_truncated_blob_is_found_out(layout: Path) -> None:
    path = blob_path(layout, sha256_digest(LOWER))
    with path.open("r+b") as file:
        file.truncate(len(LOWER) - 1)
    with pytest.raises(FormatError, match="its descriptor says"):
        await read(f"oci:{layout}")


async def test_a_blob_that_shrinks_while_open_is_found_out(layout: Path) -> None:
    async with open_source(parse_image(f"oci:{layout}"), SourceSettings()) as source:
        image = await image_of(source, AMD64)
        blob = source.blob(image.layers[0].descriptor)
        await blob.fetch(0, 5, bytes)
        os.truncate(blob_path(layout, sha256_digest(LOWER)), 100)
        with pytest.raises(FormatError, match="ends 899 bytes early"):
            await blob.fetch(99, 999, bytes)
        with pytest.raises(RangeRefused):
            await blob.fetch(0, len(LOWER) + 1, bytes)


async def test_a_changed_document_is_found_out(layout: Path) -> None:
    path = blob_path(layout, sha256_digest(IMAGE.config))
    path.write_bytes(IMAGE.config.replace(b"amd64", b"arm64"))
    with pytest.raises(DigestMismatch):
        await read(f"oci:{layout}")


async def test_a_missing_blob_is_not_found(layout: Path) -> None:
    blob_path(layout, IMAGE.digest).unlink()
    with pytest.raises(NotFound, match="blobs/sha256"):
        await read(f"oci:{layout}")


async def test_the_layout_itself_may_be_a_link(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layout)
    assert (await read(f"oci:{tmp_path / 'link'}")).descriptor.digest == IMAGE.digest


def blobs_as_link(layout: Path) -> None:
    (layout / "blobs").rename(layout.parent / "blobs")
    (layout / "blobs").symlink_to("../blobs")


def blob_as_link(layout: Path) -> None:
    path = blob_path(layout, IMAGE.digest)
    path.rename(layout / "elsewhere")
    path.symlink_to("../../elsewhere")


def blob_as_directory(layout: Path) -> None:
    path = blob_path(layout, IMAGE.digest)
    path.unlink()
    path.mkdir()


def blob_as_fifo(layout: Path) -> None:
    path = blob_path(layout, IMAGE.digest)
    path.unlink()
    os.mkfifo(path)


def index_as_link(layout: Path) -> None:
    (layout / "index.json").rename(layout / "other.json")
    (layout / "index.json").symlink_to("other.json")


@pytest.mark.parametrize(
    "damage", [blobs_as_link, blob_as_link, blob_as_directory, blob_as_fifo, index_as_link]
)
async def test_no_link_is_followed_and_nothing_but_files_is_read(
    layout: Path, damage: Callable[[Path], None]
) -> None:
    damage(layout)
    with trio.fail_after(10), pytest.raises((SourceError, FormatError)):
        await read(f"oci:{layout}")


@pytest.mark.parametrize("damage", [blob_as_directory, blob_as_fifo])
async def test_what_is_no_file_is_not_held_open(layout: Path, damage: Callable[[Path], None]) -> None:
    damage(layout)
    with Directory(layout) as directory:
        before = open_files()
        with pytest.raises(FormatError, match="regular"):
            directory.find(IMAGE.digest)
        assert open_files() == before


async def test_a_compressed_archive_is_refused_in_words(layout: Path, tmp_path: Path) -> None:
    archive = tar_of(layout, tmp_path / "layout.tar")
    archive.write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(Unsupported, match="decompress it first"):
        await read(f"oci-archive:{archive}")


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, 1 << 63])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
async def test_an_archive_that_says_its_headers_are_huge_is_none(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    archive = tmp_path / "saved.tar"
    archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(FormatError):
        await read(f"docker-archive:{archive}")


async def test_a_truncated_archive_is_found_out(layout: Path, tmp_path: Path) -> None:
    archive = tar_of(layout, tmp_path / "layout.tar")
    for size in (0, 100, archive.stat().st_size // 2):
        with archive.open("r+b") as file:
            file.truncate(size)
        with pytest.raises((FormatError, NotFound)):
            await read(f"oci-archive:{archive}")


def docker_archive(target: Path, *, compress: bool = False, linked: bool = False, **changes: Any) -> Path:
    """What `docker save` writes for IMAGE under two names; its second layer may be a link."""
    with tarfile.open(target, "w") as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        layers = [gzip.compress(layer) if compress else layer for layer in IMAGE.layers]
        add("config.json", IMAGE.config)
        add("a/layer.tar", layers[0])
        add("real/layer.tar" if linked else "b/layer.tar", layers[1])
        if linked:
            link = tarfile.TarInfo("b/layer.tar")
            link.type, link.linkname = tarfile.SYMTYPE, "../real/layer.tar"
            tar.addfile(link)
        tags = ["app:1", "ghcr.io/team/app:2"]
        entry = {"Config": "config.json", "RepoTags": tags, "Layers": ["a/layer.tar", "b/layer.tar"]}
        add("manifest.json", json.dumps([entry | changes, entry | {"RepoTags": None}]).encode())
    return target


@pytest.mark.parametrize("linked", [False, True])
async def test_a_saved_image_is_read_like_one_in_a_registry(tmp_path: Path, linked: bool) -> None:
    archive = docker_archive(tmp_path / "saved.tar", linked=linked)
    image = await read(f"docker-archive:{archive}:app:1")
    assert image.config == parse_config(IMAGE.config)
    assert [layer.descriptor.digest for layer in image.layers] == [layer.diff_id for layer in image.layers]
    assert image == await read(f"docker-archive:{archive}:ghcr.io/team/app:2")


async def test_a_saved_image_may_have_compressed_layers(tmp_path: Path) -> None:
    image = await read(f"docker-archive:{docker_archive(tmp_path / 'saved.tar', compress=True)}:app:1")
    assert {layer.compression for layer in image.layers} == {Compression.GZIP}


async def test_who_waits_for_digests_of_a_saved_images_layers_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = docker_archive(tmp_path / "saved.tar", compress=True)
    real = archive.read_range
    read_by_then: list[str] = []

    def look(found: FileRange, start: int, end: int, what: str) -> bytearray:
        read_by_then.append(what)
        if read_by_then.count("layer") == 2:  # after its very first bytes, the first piece of a layer
            trio.from_thread.run_sync(scope.cancel, trio_token=token)
        return real(found, start, end, what)

    monkeypatch.setattr(archive, "read_range", look)
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:
        await read(f"docker-archive:{target}:app:1")
    assert scope.cancelled_caught
    assert read_by_then.count("layer") == 2


async def test_a_saved_image_is_chosen_by_name(tmp_path: Path) -> None:
    archive = docker_archive(tmp_path / "saved.tar")
    with pytest.raises(NotFound, match=r"name one of its images; it has app:1, ghcr\.io/team/app:2"):
        await read(f"docker-archive:{archive}")
    with pytest.raises(NotFound, match=r"no image docker\.io/library/app:9"):
        await read(f"docker-archive:{archive}:app:9")


@pytest.mark.lab
async def test_real_tools_write_what_we_read(layout: Path, tmp_path: Path) -> None:
    for name in ("oci-archive", "docker-archive"):
        target = f"{name}:{tmp_path / name}:app:one"
        await trio.run_process(["skopeo", "copy", "--quiet", f"oci:{layout}:one", target])
        image = await read(target)
        assert [layer.diff_id for layer in image.layers] == list(parse_config(IMAGE.config).diff_ids)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_a_damaged_archive_is_an_image_or_our_error(tmp_path: Path, data: st.DataObject) -> None:
    small = build_image([b"layer"])
    layout = write_layout(tmp_path / "small", {"one": small})
    content = bytearray(tar_of(layout, tmp_path / "small.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=4))
        content[position : position + len(patch)] = patch
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(content)
    for name in (parse_image(f"oci-archive:{damaged}"), DockerArchiveImage(damaged)):
        try:
            async with open_source(name, SourceSettings()) as source:
                await image_of(source, AMD64)
        except (IndexerError, LazyfsError):
            continue


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"Layers": ["a/layer.tar", "z/layer.tar"]}, NotFound, "holds no file 'z/layer.tar'"),
        ({"Config": "other.json"}, NotFound, "holds no file 'other.json'"),
        ({"Layers": ["a/layer.tar"]}, FormatError, "1 layers, the configuration has 2"),
        ({"Layers": None}, FormatError, "0 layers, the configuration has 2"),
        ({"Config": None}, FormatError, "'Config' is missing"),
        ({"Config": "a/layer.tar"}, FormatError, "image configuration"),
        ({"RepoTags": ["Not A Name"]}, NotFound, "it has Not A Name"),
    ],
)
async def test_a_saved_image_must_agree_with_itself(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    archive = docker_archive(tmp_path / "saved.tar", **changes)
    with pytest.raises(error, match=words):
        await read(f"docker-archive:{archive}:app:1")


async def test_links_in_an_archive_end(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "loop.tar", "w") as tar:
        for name, target in (("manifest.json", "other"), ("other", "manifest.json")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    with pytest.raises(NotFound, match=r"holds no file 'manifest\.json'"):
        await read(f"docker-archive:{tmp_path / 'loop.tar'}")


async def test_a_document_has_its_limits_on_disk_too(layout: Path) -> None:
    async with open_source(parse_image(f"oci:{layout}"), SourceSettings()) as source:
        root = await source.resolve()
        with pytest.raises(LimitExceeded):
            await source.document(root, max_bytes=root.size - 1)
        with pytest.raises(Unsupported):
            source.blob(replace(root, digest="sha512:" + "0" * 128))
