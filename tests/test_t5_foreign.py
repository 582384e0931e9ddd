"""Images that other tools made lazy, mounted as they are: no index is built, the tree is the original's."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.foreign_images import foreign_image
from tests.support.foreign_layers import LIVING, MIXED, contents, write_layer
from tests.support.lab_foreign import FOREIGN, serve_foreign
from tests.support.oracle import compare_trees
from tests.support.registry import Registry

SMALL = "etc/debian_version"
SMALLEST_WITH_ZTOC = 10 << 20  # what `soci create` leaves out by default
REAL = [name for name, foreign in FOREIGN.items() if foreign.source != "oddities"]
EMBEDDED = [name for name in REAL if name != "soci"]


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    point = tmp_path / "mnt"
    point.mkdir()
    return point


def _stats(lazyfs, mount_point: Path) -> dict:
    return json.loads(lazyfs("stats", mount_point, "--json").stdout)


@contextmanager
def mounted(lazyfs, mount_point: Path, reference: str, *options: str) -> Iterator[None]:
    lazyfs("mount", *options, reference, mount_point)
    try:
        yield
    finally:
        lazyfs("umount", mount_point)


@pytest.mark.parametrize("name", REAL)
def test_a_foreign_image_is_mounted_as_it_is_and_shows_the_originals_tree(
    name, lazyfs, lab, unpacked, mount_point
):
    foreign = FOREIGN[name]
    with serve_foreign(lab, name) as reference, mounted(lazyfs, mount_point, reference):
        stats = _stats(lazyfs, mount_point)
        assert stats["source"]["data_bytes"] < 0.05 * stats["image_bytes"]
        assert foreign.kind in stats["indexes"]
        assert compare_trees(unpacked(foreign.source), mount_point) == []


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_small_file_of_a_converted_image_costs_little_and_no_layer_is_indexed(
    name, lazyfs, lab, unpacked, mount_point
):
    foreign = FOREIGN[name]
    with (
        serve_foreign(lab, name) as reference,
        mounted(lazyfs, mount_point, reference, "--driver", "fuse"),
    ):
        content = (mount_point / SMALL).read_bytes()
        stats = _stats(lazyfs, mount_point)
        layers = json.loads(lazyfs("inspect", reference, "--json").stdout)["layers"]
        assert stats["indexes"] == {foreign.kind: len(layers)}
        assert {layer["index"]["vouched_by"] for layer in layers} == {"manifest"}
        assert stats["bytes"] < 0.05 * stats["image_bytes"]
        # The configuration, at most two requests for each layer's table, and one for the file.
        assert stats["source"]["data_requests"] <= 2 + 2 * len(layers)
    assert content == (unpacked(foreign.source) / SMALL).read_bytes()


def test_names_that_json_cannot_carry_are_read_by_an_index_made_here(lazyfs, lab, unpacked, mount_point):
    with serve_foreign(lab, "oddities-zstd-chunked") as reference, mounted(lazyfs, mount_point, reference):
        assert _stats(lazyfs, mount_point)["indexes"] == {"lazyfs": 1, "zstd-chunked": 4}
        assert compare_trees(unpacked("oddities"), mount_point) == []


def test_estargz_drops_parts_of_seconds_and_puts_its_own_files_into_what_is_read_without_its_table(
    lazyfs, lab, unpacked, mount_point
):
    with serve_foreign(lab, "oddities-estargz") as reference, mounted(lazyfs, mount_point, reference):
        assert _stats(lazyfs, mount_point)["indexes"] == {"lazyfs": 1, "estargz": 4}
        assert compare_trees(unpacked("oddities"), mount_point) == [
            ".no.prefetch.landmark: unexpected",
            "hidden/file: mtime: expected 1600000000250000000, got 1600000000000000000",
            "stargz.index.json: unexpected",
        ]


def test_an_image_indexed_by_soci_costs_its_ztocs_its_small_layers_and_a_span(
    lazyfs, lab, unpacked, mount_point
):
    with serve_foreign(lab, "soci") as reference:
        with mounted(lazyfs, mount_point, reference):
            content = (mount_point / SMALL).read_bytes()
            first = _stats(lazyfs, mount_point)
            layers = json.loads(lazyfs("inspect", reference, "--json").stdout)["layers"]
            by_soci = [layer["index"] for layer in layers if layer["index"]["kind"] == "soci"]
            small = [layer for layer in layers if layer["index"]["kind"] == "lazyfs"]
            assert len(by_soci) + len(small) == len(layers)
            assert max(layer["size"] for layer in small) < SMALLEST_WITH_ZTOC
            assert {index["vouched_by"] for index in by_soci} == {"nobody"}
            # The configuration, the zTOCs, layers too small for one, and a span.
            assert first["source"]["data_requests"] == 2 + len(layers)
            assert first["bytes"] < 0.05 * first["image_bytes"]
        assert content == (unpacked("postgres") / SMALL).read_bytes()
        with mounted(lazyfs, mount_point, reference):
            assert (mount_point / SMALL).read_bytes() == content
            assert _stats(lazyfs, mount_point)["source"]["data_requests"] == 0


def test_a_pinned_image_is_not_read_by_an_index_that_anyone_could_attach(lazyfs, lab, mount_point):
    with serve_foreign(lab, "soci") as reference:
        name = reference.rpartition(":")[0]
        digest = json.loads(lazyfs("inspect", reference, "--json").stdout)["digest"]
        with mounted(lazyfs, mount_point, f"{name}@{digest}"):
            assert _stats(lazyfs, mount_point)["indexes"] == {"lazyfs": 5}


def test_a_foreign_image_stays_readable_without_its_registry(lazyfs, lab, mount_point):
    with serve_foreign(lab, "zstd-chunked-old") as reference, mounted(lazyfs, mount_point, reference):
        content = (mount_point / SMALL).read_bytes()
    with mounted(lazyfs, mount_point, reference, "--offline"):
        assert (mount_point / SMALL).read_bytes() == content


def test_own_indexes_can_be_asked_for(lazyfs, lab, mount_point):
    with serve_foreign(lab, "zstd-chunked-old") as reference:
        lazyfs("index", reference, "--index", "local")
        with mounted(lazyfs, mount_point, reference):
            assert _stats(lazyfs, mount_point)["indexes"] == {"lazyfs": 3}


@pytest.mark.parametrize("driver", ["fuse", "auto"])
@pytest.mark.parametrize("dialect", LIVING)
def test_a_table_that_lies_about_content_is_an_error_for_that_file_and_never_wrong_bytes(
    dialect, driver, lazyfs, mount_point
):
    def lie(table):
        for entry in table["entries"]:
            if entry["name"] == "big":
                entry |= {key: "sha256:" + "0" * 64 for key in ("digest", "chunkDigest") if key in entry}
        return table

    layer = write_layer(MIXED, dialect, edit=lie)
    with Registry() as registry:
        compression = "zstd" if "zstd" in dialect else "gzip"
        registry.push("app", foreign_image(layer, compression=compression))
        with mounted(lazyfs, mount_point, f"{registry.host}/app", "--driver", driver):
            for path, content in contents(MIXED).items():
                file = mount_point / os.fsdecode(path)
                if path == b"big":
                    for _ in range(2):
                        with pytest.raises(OSError, match="Input/output error"):
                            file.read_bytes()
                else:
                    assert file.read_bytes() == content
