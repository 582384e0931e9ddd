"""`ctr snapshots diff` with our differ, and a machine whose disk is full, on real containerd."""

import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from tests.support.containerd_images import indexed_and_plain
from tests.support.containerd_node import Node, node
from tests.support.containerd_release import release
from tests.support.crash import fill_up, small_disk
from tests.support.docker import containerd_text
from tests.support.lab import Lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner

LAYER = "application/vnd.oci.image.layer.v1.tar"
CHANGES = "echo new > /new; rm /etc/debian_version; mkdir -p /made/in; rm -r /mnt"
CHANGED = [".", ".wh.mnt", "etc", "etc/.wh.debian_version", "made", "made/in", "new"]
SNAPSHOTS = ("snapshots", "--snapshotter", "lazyfs")
NO_ROOM = "No space left on device"
STILL_COMING = 9_000_000
"""Bytes of what a start has foreseen that may come after it; to compare the image takes 74 MB."""


@dataclass
class World:
    """A machine with a lazy image, and the registry that it is from.

    Attributes:
        registry: it counts.
        machine: it.
        image: its name.
    """

    registry: Registry
    machine: Node
    image: str

    @property
    def moved(self) -> int:
        """Bytes of bodies that the registry has sent."""
        return sum(self.registry.journal.bytes_sent.values())

    def ctr(self, *words: str) -> str:
        return self.machine.ctr(*words, namespace="default")

    def run(self, name: str, script: str) -> None:
        """Run a container, and let it stay."""
        run = ("run", "--snapshotter", "lazyfs", "--cgroup", f"/{self.machine.name}", self.image, name)
        self.ctr(*run, "sh", "-c", script)

    def parent(self, name: str) -> str:
        """What a snapshot stands on."""
        lines = [line.split() for line in self.ctr(*SNAPSHOTS, "ls").splitlines()]
        return next(words[1] for words in lines if words[0] == name)

    def difference(self, *words: str) -> bytes:
        """What `ctr snapshots diff` writes."""
        out = self.machine.top / "difference"
        address = ("--address", str(self.machine.socket("containerd")), "--namespace", "default")
        command = ("ctr", *address, *SNAPSHOTS, "diff", *words)
        self.machine.inside("sh", "-c", 'out=$0; exec "$@" > "$out"', str(out), *command)
        return out.read_bytes()


@contextmanager
def world_on(lab: Lab, publisher: LazyfsRunner, top: Path, version: str) -> Iterator[World]:
    """A machine below `top` that has pulled its image."""
    with indexed_and_plain(lab, publisher) as registry:
        image, pause = f"{registry.host}/indexed:latest", f"{registry.host}/pause:1"
        with node(top, release(lab, version), registry.host, pause, more=containerd_text()) as machine:
            machine.remote_pull(["ctr-remote"], image, "default")
            yield World(registry, machine, image)


def names_in(layer: bytes) -> list[str]:
    """The names of a layer's members, in order."""
    if layer.startswith(b"\x1f\x8b"):
        layer = gzip.decompress(layer)
    elif layer.startswith(zstandard.FRAME_HEADER):
        layer = zstandard.ZstdDecompressor().decompressobj().decompress(layer)
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return sorted(archive.getnames())


@pytest.mark.parametrize("version", ["1.7", "2.1"])
def test_what_a_container_changed_is_told_without_fetching_the_image(
    version: str, lab: Lab, publisher: LazyfsRunner, tmp_path: Path
) -> None:
    with world_on(lab, publisher, tmp_path / "n", version) as world:
        world.run("one", CHANGES)
        before, top = world.moved, world.parent("one")
        for media_type in (f"{LAYER}+gzip", f"{LAYER}+zstd", LAYER):
            assert names_in(world.difference("--media-type", media_type, "one")) == CHANGED
        assert names_in(world.difference(top, "one")) == CHANGED
        world.ctr(*SNAPSHOTS, "commit", "made", "one")
        assert names_in(world.difference("made")) == CHANGED
        assert world.moved - before < STILL_COMING
        both = names_in(world.difference(world.parent(top), "made"))  # containerd compares all files
        assert {"new", "made/in"} < set(both)


def test_on_a_full_disk_every_call_says_so_and_what_goes_makes_room(
    lab: Lab, publisher: LazyfsRunner, tmp_path: Path
) -> None:
    disk = tmp_path / "d"
    with small_disk(disk, 200 << 20, "ext4"), world_on(lab, publisher, disk / "n", "1.7") as world:
        world.run("one", "head -c 1000000 /dev/urandom > /new")
        world.run("other", "head -c 1000000 /dev/urandom > /new")
        fill_up(disk / "ballast")
        for words in (("diff", "one"), ("prepare", "more"), ("commit", "made", "one")):
            with pytest.raises(AssertionError, match=f"{NO_ROOM}|disk is full"):
                world.ctr(*SNAPSHOTS, *words)
        assert len(world.machine.directories()) == 2
        world.ctr("containers", "rm", "other")
        world.ctr("leases", "rm", "--sync", world.ctr("leases", "create").strip())  # collects garbage
        assert len(world.machine.directories()) == 1
        (disk / "ballast").unlink()
        assert names_in(world.difference("one")) == [".", "new"]
        world.ctr(*SNAPSHOTS, "commit", "made", "one")
        world.run("more", "true")
