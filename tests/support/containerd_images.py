"""Images for containerd: the smallest sandbox there can be, and the laboratory's where bytes are counted."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.images import BuiltDocument, build_image
from tests.support.lab import Lab, manifest_digest
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

_PAUSE = """
void _start(void) {
    for (;;)
        __asm__ volatile("syscall" : : "a"(34L) : "rcx", "r11", "memory");
}
"""


@cache
def pause_program() -> bytes:
    """A program without libraries that calls pause(2) for ever."""
    with TemporaryDirectory() as folder:
        source, program = Path(folder) / "pause.c", Path(folder) / "pause"
        source.write_text(_PAUSE)
        options = ("-static", "-nostdlib", "-ffreestanding", "-O1")
        subprocess.run(["gcc", *options, "-o", str(program), str(source)], check=True)
        return program.read_bytes()


def pause_image() -> BuiltDocument:
    """The image of a sandbox."""
    return build_image([tar(file(b"pause", pause_program(), mode=0o755))], process={"Entrypoint": ["/pause"]})


def push_layout_files(registry: Registry, repository: str, layout: Path, tag: str = "latest") -> str:
    """Put the one image of a layout into a registry, blob for blob; its digest. No request is made."""
    digest = manifest_digest(layout)
    blobs = layout / "blobs" / "sha256"
    manifest = (blobs / digest.removeprefix("sha256:")).read_bytes()
    for path in blobs.iterdir():
        if path.name != digest.removeprefix("sha256:"):
            registry.put_blob(repository, path.read_bytes())
    for reference in (digest, tag):
        registry.put_manifest(repository, reference, "application/vnd.oci.image.manifest.v1+json", manifest)
    return digest


@contextmanager
def indexed_and_plain(lab: Lab, publisher: LazyfsRunner) -> Iterator[Registry]:
    """A registry with the python image, with an index and without one under another name, and a sandbox's."""
    with Registry() as registry:
        registry.push("pause", pause_image(), tag="1")
        for repository in ("indexed", "plain"):
            push_layout_files(registry, repository, lab.image("python"))
        publisher("index", "--push", f"{registry.host}/indexed:latest")
        yield registry
