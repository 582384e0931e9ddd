"""Images that other people's tools converted or indexed, each once, in the storage of a real registry.

`ctr-remote` and containerd are those of this Debian. skopeo, `soci` and a newer `ctr-remote` come from
Debian's packages of a later release, unpacked and run by their own loader: nothing is installed.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import debian_tools
from tests.support.debian_tools import Tools
from tests.support.lab import Lab, push_layout, recipe_hash
from tests.support.lab_build import PRIVATE_MOUNTS, run
from tests.support.lab_process import running
from tests.support.lab_registry import docker_registry

VERSION = "1"  # of this way to make them: another one, and all are made anew
SUITE = "trixie"
TOOLS = ("skopeo", "stargz-snapshotter", "soci-snapshotter")
REPOSITORY = "lab/image"

_BOOTED = re.compile("containerd successfully booted")


@dataclass(frozen=True, slots=True)
class Foreign:
    """One way to make an image that is lazy without us.

    Attributes:
        source: the image of the laboratory it is made of.
        kind: whose indexes it is read by then.
        make: pushes it, given the laboratory and its name in a registry.
    """

    source: str
    kind: str
    make: Callable[[Lab, str, str], None]


def storage(lab: Lab, name: str) -> Path:
    """The storage of a docker-registry with one foreign image, as REPOSITORY:latest."""
    foreign = FOREIGN[name]
    recipe = sha256(f"{VERSION} {SUITE} {recipe_hash(foreign.source)}".encode()).hexdigest()[:12]

    def make(out: Path) -> None:
        with docker_registry(out) as address:
            foreign.make(lab, foreign.source, f"{address}/{REPOSITORY}:latest")

    return lab.once(f"foreign/{name}-{recipe}", make)


@contextmanager
def serve_foreign(lab: Lab, name: str) -> Iterator[str]:
    """A foreign image's name in a registry of its own, read only."""
    with docker_registry(storage(lab, name), read_only=True) as address:
        yield f"{address}/{REPOSITORY}:latest"


# Tools


def tools(lab: Lab) -> Tools:
    """The programs, unpacked when first asked for."""
    return debian_tools.tools(lab, SUITE, SUITE, TOOLS)


@contextmanager
def containerd(lab: Lab) -> Iterator[str]:
    """The socket of a containerd of its own."""
    with TemporaryDirectory(prefix="containerd-", dir=lab.home) as folder:
        top = Path(folder)
        socket = top / "sock"
        config = top / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{top}/root"\nstate = "{top}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{socket}"\n[ttrpc]\naddress = "{socket}.ttrpc"\n'
        )
        command = [*PRIVATE_MOUNTS, "containerd", "--config", str(config)]
        with running(command, _BOOTED, env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"}):
            yield str(socket)


def _import(lab: Lab, source: str, socket: str, reference: str) -> None:
    """Give containerd an image of the laboratory under a name in a registry."""
    layout = lab.image(source)
    with TemporaryDirectory(dir=lab.home) as folder:
        archive = f"{folder}/image.tar"
        run("tar", "-cf", archive, "-C", str(layout), ".")
        name = reference.removesuffix(":latest")
        run("ctr", "--address", socket, "images", "import", "--no-unpack", "--base-name", name, archive)


# Ways


def _converted(*options: str, newer: bool = False) -> Callable[[Lab, str, str], None]:
    """`ctr-remote image convert`."""

    def make(lab: Lab, source: str, reference: str) -> None:
        ctr_remote = tools(lab).command("ctr-remote") if newer else ["ctr-remote"]
        with containerd(lab) as socket:
            _import(lab, source, socket, "lab/original:latest")
            convert = ("image", "convert", *options, "--oci", "lab/original:latest", reference)
            run(*ctr_remote, "--address", socket, *convert)
            run(*ctr_remote, "--address", socket, "image", "push", "--plain-http", reference)

    return make


def _optimized(lab: Lab, source: str, reference: str) -> None:
    """`ctr-remote image optimize`: what the container reads comes first in the layers."""
    with containerd(lab) as socket:
        _import(lab, source, socket, "lab/original:latest")
        workload = ("--period", "2", "--entrypoint", '["/bin/cat"]', "--args", '["/etc/debian_version"]')
        optimize = ("image", "optimize", "--oci", *workload, "lab/original:latest", reference)
        run("ctr-remote", "--address", socket, *optimize)
        run("ctr-remote", "--address", socket, "image", "push", "--plain-http", reference)


def _chunked(*, newer: bool) -> Callable[[Lab, str, str], None]:
    """`skopeo copy` to zstd:chunked, which podman's push is too."""

    def make(lab: Lab, source: str, reference: str) -> None:
        skopeo = tools(lab).command("skopeo") if newer else ["skopeo"]
        with TemporaryDirectory(dir=lab.home) as folder:
            run(
                *(*skopeo, "--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd:chunked"),
                *(f"oci:{lab.image(source)}:latest", f"oci:{folder}/image:latest"),
            )
            push_layout(Path(folder) / "image", reference)

    return make


def _indexed(lab: Lab, source: str, reference: str) -> None:
    """The image as it is, and beside it what `soci create` and `soci push` make."""
    push_layout(lab.image(source), reference)
    soci = tools(lab).command("soci")
    with containerd(lab) as socket:
        _import(lab, source, socket, reference)
        private = (
            *PRIVATE_MOUNTS,
            "sh",
            "-euc",
            'mount -t tmpfs none /var/lib; "$@" create $0; "$@" push --plain-http $0',
        )
        run(*private, reference, *soci, "--address", socket)


FOREIGN = {
    "estargz": Foreign("nginx", "estargz", _converted("--estargz")),
    "estargz-optimized": Foreign("base", "estargz", _optimized),
    "estargz-min-chunk": Foreign(
        "base", "estargz", _converted("--estargz", "--estargz-min-chunk-size", "50000", newer=True)
    ),
    "stargz-zstd": Foreign("nginx", "zstd-chunked", _converted("--zstdchunked")),
    "zstd-chunked": Foreign("nginx", "zstd-chunked", _chunked(newer=True)),
    "zstd-chunked-old": Foreign("base", "zstd-chunked", _chunked(newer=False)),
    "soci": Foreign("postgres", "soci", _indexed),
    "oddities-estargz": Foreign("oddities", "estargz", _converted("--estargz")),
    "oddities-zstd-chunked": Foreign("oddities", "zstd-chunked", _chunked(newer=True)),
}
"""The foreign images by name."""
