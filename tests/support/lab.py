"""The laboratory: real images, made once by the tools that people use, and a real registry that serves them.

An image is a folder `tests/lab/NAME` with a Containerfile, or "oddities", which is written by hand. What is
made lies under `.cache/lab` (or `$LAZYFS_LAB`), under the hash of its recipe: change the recipe and it is
made anew. Any number of processes may ask at once; one makes, the others wait.

    python -m tests.support.lab build [NAME ...]
    python -m tests.support.lab serve [NAME ...]
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path

from tests.support import lab_build, lab_oddities
from tests.support.lab_registry import docker_registry

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "tests" / "lab"
ODDITIES = "oddities"
BASE = "base"


def image_names() -> list[str]:
    """The names of all images of the laboratory."""
    return sorted([ODDITIES, *(path.parent.name for path in RECIPES.glob("*/Containerfile"))])


@dataclass(frozen=True, slots=True)
class Lab:
    """The images, made when first asked for.

    Attributes:
        home: where they are kept.
    """

    home: Path

    def image(self, name: str) -> Path:
        """The OCI layout of an image; its tag there is "latest"."""
        return self.once(f"images/{name}-{recipe_hash(name)}", lambda out: self._make(name, out))

    def unpacked(self, name: str) -> Path:
        """The image's root as `umoci unpack` writes it. Do not write there."""
        layout = self.image(name)
        bundle = self.once(
            f"unpacked/{layout.name}",
            lambda out: lab_build.run("umoci", "unpack", "--image", f"{layout}:latest", str(out)),
        )
        return bundle / "rootfs"

    def registry_storage(self) -> Path:
        """The storage directory of a docker-registry, with the images that were pushed so far."""
        storage = self.home / "registry"
        storage.mkdir(parents=True, exist_ok=True)
        return storage

    def push(self, name: str) -> None:
        """See that the registry's storage holds the image as `lab/NAME:latest`, with the same blobs."""
        layout = self.image(name)
        digest = manifest_digest(layout)
        pushed = self.home / "pushed" / name
        with self._locked("push"):
            if pushed.is_file() and pushed.read_text() == digest:
                return
            with docker_registry(self.registry_storage()) as address:
                push_layout(layout, f"{address}/lab/{name}:latest")
            pushed.parent.mkdir(exist_ok=True)
            pushed.write_text(digest)

    def _make(self, name: str, out: Path) -> None:
        downloads = self.home / "apt" / name
        if name == ODDITIES:
            lab_oddities.write_layout(out)
        elif name == BASE:
            lab_build.build_base(RECIPES / name, out, downloads=downloads)
        else:
            lab_build.build_image(RECIPES / name, out, parent=self.image(BASE), downloads=downloads)

    def once(self, relative: str, make: Callable[[Path], object]) -> Path:
        """The path `relative`, made whole under another name first, and older versions of it removed."""
        path = self.home / relative
        if path.exists():
            return path
        with self._locked(relative.replace("/", "-")):
            if path.exists():
                return path
            partial = path.with_name(path.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            make(partial)
            name, _, recipe = path.name.rpartition("-")
            for old in path.parent.glob(f"{name}-{'[0-9a-f]' * len(recipe)}*"):
                if old != partial:
                    shutil.rmtree(old)
            partial.rename(path)
        return path

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock `name` against all other processes."""
        locks = self.home / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / name).open("w") as lock:
            flock(lock, LOCK_EX)
            yield


@dataclass(frozen=True, slots=True)
class LabRegistry:
    """A running, read-only registry over the laboratory's images.

    Attributes:
        address: "127.0.0.1:PORT"; it speaks plain HTTP.
        lab: the images.
    """

    address: str
    lab: Lab

    def reference(self, name: str) -> str:
        """The image's name in this registry, by tag. The image is made and pushed when first asked for."""
        self.lab.push(name)
        return f"{self.address}/lab/{name}:latest"


def recipe_hash(name: str) -> str:
    """Twelve hexadecimal digits that change with anything an image is made from but the packages.

    Raises:
        LabError: there is no such image.
    """
    if name == ODDITIES:
        return sha256(Path(lab_oddities.__file__).read_bytes()).hexdigest()[:12]
    if name not in image_names():
        raise lab_build.LabError(f"no image {name!r} in the laboratory: there are {', '.join(image_names())}")
    parts = [lab_build.VERSION.encode()]
    parts += [path.read_bytes() for path in sorted((RECIPES / name).rglob("*")) if path.is_file()]
    if name != BASE:
        parts.append(recipe_hash(BASE).encode())
    return sha256(b"\0".join(parts)).hexdigest()[:12]


def manifest_digest(layout: Path) -> str:
    """The digest of the one manifest of a layout."""
    (descriptor,) = json.loads((layout / "index.json").read_text())["manifests"]
    return str(descriptor["digest"])


def push_layout(layout: Path, reference: str, tag: str = "latest") -> None:
    """Copy an image into a registry that speaks plain HTTP, blob for blob."""
    lab_build.run(
        *("skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"),
        *(f"oci:{layout}:{tag}", f"docker://{reference}"),
    )


def default_lab() -> Lab:
    """The laboratory of this checkout, or the one that `$LAZYFS_LAB` names."""
    return Lab(Path(os.environ.get("LAZYFS_LAB") or REPOSITORY / ".cache" / "lab"))


@contextmanager
def serve(lab: Lab) -> Iterator[LabRegistry]:
    """A registry process of its own over the laboratory's storage."""
    with docker_registry(lab.registry_storage(), read_only=True) as address:
        yield LabRegistry(address, lab)


if __name__ == "__main__":
    from tests.support.lab_cli import main

    main()
