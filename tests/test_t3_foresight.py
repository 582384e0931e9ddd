"""What is brought before a program starts: all that its files name, and nothing else."""

import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lazyfs.assembly import opened
from lazyfs.image.boot.foresight import Process, foresee
from lazyfs.image.image import Image
from lazyfs.image.reading.traffic import Purpose
from tests.support.elf import elf
from tests.support.images import build_image
from tests.support.published import registry_with
from tests.support.tars import file, symlink, tar
from tests.support.workshops import workshop_of

NOISE = random.Random(3)
LIBC = b"usr/lib/x86_64-linux-gnu/libc.so.6"
LOADER = b"lib64/ld-linux.so.2"
PROGRAM = elf([b"libown.so", b"libc.so.6"], interpreter=b"/lib64/ld-linux.so.2", runpath=b"$ORIGIN/../own")
PLAIN = {
    b"usr/bin/app": PROGRAM,
    b"usr/own/libown.so": elf([b"libdeep.so"], runpath=b"/opt/deep"),
    b"opt/deep/libdeep.so": elf([b"libown.so", b"libnowhere.so"]),
    LIBC: elf([b"ld-linux.so.2"]),
    LOADER: elf(),
    b"etc/ld.so.cache": b"cache",
    b"etc/passwd": b"root",
    b"usr/lib/locale/C.utf8/LC_CTYPE": b"locale",
    b"usr/lib/libown.so": b"another of this name",
    b"etc/shadow": b"nobody's business",
    b"usr/bin/other": elf([b"libc.so.6"]),
}
NEEDED = frozenset(list(PLAIN)[:8])


def apart(files: Mapping[bytes, bytes], *more: bytes) -> bytes:
    """A layer of files so far from each other that none comes with another."""
    members = [
        member
        for number, (path, data) in enumerate(files.items())
        for member in (file(path, data, mode=0o755), file(b"noise/%d" % number, NOISE.randbytes(200_000)))
    ]
    return tar(*members, *more)


@asynccontextmanager
async def foreseen(
    layer: bytes, cache: Path, words: Iterable[str] = ("app",), env: Iterable[str] = (), directory: str = "/"
) -> AsyncIterator[Image]:
    """An image of one layer, after all has come that is brought for such a process."""
    with registry_with(build_image([layer])) as registry:
        async with (
            workshop_of(f"{registry.host}/app:1", cache) as workshop,
            opened(workshop, mounted=True) as image,
        ):
            await foresee(Process([*words], [*env], directory), image.metadata, image.layers)
            yield image


async def bring(image: Image, path: bytes, size: int) -> None:
    """Bring the front of a file alone: with what a reader waits for, more comes where the line is slow."""
    nid = image.metadata.resolve(path)
    assert nid is not None
    number, start = image.metadata.extent(nid)
    for landing in image.layers[number].bring_place(start, start + size, Purpose.DEMAND):
        await landing.wait()


def here(image: Image, files: Iterable[bytes]) -> set[bytes]:
    """Those of the files that can be read without a request."""
    found = set()
    for path in files:
        nid = image.metadata.resolve(path)
        assert nid is not None, path
        if image.read_nowait(nid, 0, image.metadata.inode(nid).size) is not None:
            found.add(path)
    return found


async def test_a_program_comes_with_all_that_it_needs_and_nothing_else(tmp_path):
    async with foreseen(apart(PLAIN), tmp_path, env=["LANG=C.UTF-8"]) as image:
        assert here(image, PLAIN) == NEEDED
        assert image.traffic.counts()[Purpose.DEMAND].requests == 0


async def test_no_reader_is_seen_in_it(tmp_path):
    async with foreseen(apart(PLAIN), tmp_path) as image:
        assert image.layers[0].statistics().bytes_served == 0
        assert image.layers[0].statistics().hits == 0


@pytest.mark.parametrize(
    ("words", "env", "directory"),
    [
        (["/usr/bin/app"], [], "/"),
        (["bin/app"], [], "/usr"),
        (["app"], ["PATH=/nowhere:/usr/bin"], "/"),
        (["init", "--", "app", "--flag"], [], "/"),
    ],
)
async def test_the_program_is_found_as_exec_finds_it(tmp_path, words, env, directory):
    async with foreseen(apart(PLAIN), tmp_path, words, env, directory) as image:
        assert here(image, [LIBC, LOADER, b"usr/bin/app"]) == {LIBC, LOADER, b"usr/bin/app"}


async def test_scripts_lead_to_their_interpreters_and_links_to_their_targets(tmp_path):
    files = {b"start.sh": b"#!/usr/bin/env app\n", b"usr/bin/env": b"env", **PLAIN}
    layer = apart({**files, b"real/app": PROGRAM}, symlink(b"usr/bin/link", b"../../start.sh"))
    async with foreseen(layer, tmp_path, ["link"]) as image:
        assert here(image, [b"start.sh", b"usr/bin/env", *NEEDED]) >= {b"start.sh", b"usr/bin/env", LIBC}


async def test_what_has_started_before_is_not_looked_through(tmp_path):
    async with foreseen(apart(PLAIN), tmp_path, words=[]) as image:
        await bring(image, b"usr/bin/app", len(PROGRAM))
        before = image.traffic.counts()
        await foresee(Process(["app"], [], "/"), image.metadata, image.layers)
        assert image.traffic.counts() == before


async def test_what_is_here_of_another_image_is_no_reason_to_stop(tmp_path):
    async with foreseen(apart(PLAIN), tmp_path, words=[]) as image:
        await bring(image, b"usr/own/libown.so", 1)
        await foresee(Process(["app"], ["LANG=C.UTF-8"], "/"), image.metadata, image.layers)
        assert here(image, PLAIN) == NEEDED


@pytest.mark.parametrize(
    "words",
    [[], [""], ["nothing"], ["/etc"], ["\udcff\ud800"], ["broken"], ["empty"], ["/" + "x/" * 5000], ["loop"]],
)
async def test_whatever_is_wrong_with_the_command_is_no_error(tmp_path, words):
    broken = {b"usr/bin/broken": PROGRAM[:100], b"usr/bin/empty": b"", **PLAIN}
    layer = apart(broken, symlink(b"usr/bin/loop", b"loop"))
    async with foreseen(layer, tmp_path, words) as image:
        assert LIBC not in here(image, [LIBC])


async def test_of_a_large_program_only_both_ends_come(tmp_path):
    large = elf([b"libc.so.6"], interpreter=b"/lib64/ld-linux.so.2", padding=NOISE.randbytes(9 << 20))
    async with foreseen(apart({**PLAIN, b"usr/bin/app": large}), tmp_path) as image:
        assert here(image, [LIBC, LOADER, b"usr/bin/app"]) == {LIBC, LOADER}
        nid = image.metadata.resolve(b"usr/bin/app")
        assert image.read_nowait(nid, 0, 4096) == large[:4096]
        assert image.read_nowait(nid, len(large) - 64, 64) == large[-64:]
        assert image.traffic.counts()[Purpose.PACK].bytes < 4 << 20


async def test_a_program_with_very_many_libraries_is_not_followed_for_ever(tmp_path):
    names = [b"lib%d.so" % number for number in range(200)]
    every = {b"usr/lib/" + name: elf(names) for name in names}
    layer = tar(file(b"usr/bin/app", elf(names)), *(file(path, data) for path, data in every.items()))
    async with foreseen(layer, tmp_path) as image:
        assert image.layers[0].missing_spans(0, 1) == []
