"""The registry's storage: every workload's image as it is, and as other ways want it, each made once.

An image stands in it as `WAY/WORKLOAD:latest`: "plain/python:latest" is the image as it is. A registry of the
user's is only read: there, images have their own names.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from bench.cold.images import Images
from bench.cold.workload import Workload
from bench.measure import MethodFailed
from tests.support.lab import Lab, manifest_digest, push_layout
from tests.support.lab_build import LabError
from tests.support.lab_registry import docker_registry

PLAIN: Final = "plain"
INDEXED: Final = "indexed"
PACKED: Final = "packed"
SOCI: Final = "soci"
_BESIDE: Final = (PLAIN, INDEXED, PACKED, SOCI)
"""What leaves the image as it is, and puts more beside it at most."""


@dataclass(frozen=True, slots=True)
class Store:
    """Images and the storage of a registry that has them.

    Attributes:
        home: where everything lies.
        images: the images as layouts.
        registry: the user's, "HOST:PORT"; "": our own.
    """

    home: Path
    images: Images
    registry: str = ""

    @property
    def storage(self) -> Path:
        """Of docker-registry."""
        return self.home / "cold-registry"

    def layout(self, workload: Workload) -> Path:
        """The workload's image.

        Raises:
            MethodFailed: it cannot be made or copied.
        """
        try:
            if workload.recipe:
                return self.images.recipe(workload.recipe)
            if self.registry:
                return self.images.copy(
                    f"docker://{self.registry}/{workload.image}", "--src-tls-verify=false"
                )
            return self.images.copy(workload.image)
        except LabError as error:
            raise MethodFailed(str(error)) from error

    def configuration(self, workload: Workload) -> dict[str, Any]:
        """The configuration of the workload's image.

        Raises:
            MethodFailed: it cannot be made or copied.
        """
        layout = self.layout(workload)
        manifest = json.loads(_blob(layout, manifest_digest(layout)))
        configuration: dict[str, Any] = json.loads(_blob(layout, manifest["config"]["digest"]))
        return configuration

    def image_bytes(self, workload: Workload) -> int:
        """The size of its layers, compressed.

        Raises:
            MethodFailed: it cannot be made or copied.
        """
        layout = self.layout(workload)
        return sum(layer["size"] for layer in json.loads(_blob(layout, manifest_digest(layout)))["layers"])

    def keep_touched(self, workload: Workload, touched_bytes: int) -> None:
        """Remember how much of its image a start of the workload touches, uncompressed."""
        file = self._touched(workload)
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(touched_bytes))

    def touched_bytes(self, workload: Workload) -> int:
        """What was remembered; 0 if nobody looked."""
        file = self._touched(workload)
        return int(file.read_text()) if file.exists() else 0

    def _touched(self, workload: Workload) -> Path:
        asked = [manifest_digest(self.layout(workload)), *workload.command, repr(workload.ready)]
        return self.home / "cold-touched" / sha256("\0".join(asked).encode()).hexdigest()[:24]

    def publish(
        self, way: str, workload: Workload, make: Callable[[str], None], *, version: str = "1"
    ) -> str:
        """See that the image is there in some way; its name there, "REPOSITORY:TAG".

        Args:
            way: what is made of it.
            workload: whose image.
            make: given "HOST:PORT/REPOSITORY:latest" of a registry that can be written, pushes it there.
            version: of the way; another one, and it is made anew.

        Raises:
            MethodFailed: it cannot be made here, or does not stand in the user's registry.
        """
        if self.registry:
            return self._named(way, workload)
        name = f"{way}/{workload.name}:latest"
        made_of = f"{manifest_digest(self.layout(workload))} {version}"
        done = self.home / "cold-pushed" / name.replace("/", "-")
        if not done.is_file() or done.read_text() != made_of:
            try:
                with self.writable() as address:
                    make(f"{address}/{name}")
            except LabError as error:
                raise MethodFailed(str(error)) from error
            done.parent.mkdir(exist_ok=True)
            done.write_text(made_of)
        return name

    def publish_plain(self, workload: Workload, way: str = PLAIN) -> str:
        """See that the image is there as it is; its name there."""
        layout = self.layout(workload)
        return self.publish(way, workload, lambda reference: push_layout(layout, reference))

    def _named(self, way: str, workload: Workload) -> str:
        name = workload.variants.get(way) or (workload.image if way in _BESIDE else "")
        if not name:
            raise MethodFailed(
                f"`variants` of workload {workload.name} names none of {way} in {self.registry}"
            )
        return name if ":" in name.rpartition("/")[2] else f"{name}:latest"

    @contextmanager
    def writable(self) -> Iterator[str]:
        """The address of a registry over the storage that can be pushed to."""
        self.storage.mkdir(parents=True, exist_ok=True)
        with docker_registry(self.storage) as address:
            yield address


def store(home: Path, lab: Lab, registry: str = "") -> Store:
    """The store in a folder, or over a user's registry."""
    return Store(home, Images(Lab(home), lab), registry)


def _blob(layout: Path, digest: str) -> bytes:
    return layout.joinpath("blobs", *digest.split(":", 1)).read_bytes()
