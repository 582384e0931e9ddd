"""What a bill of materials says, whichever format it is written in."""

import uuid
from datetime import datetime
from typing import NamedTuple

from lazyfs.image.inside.packages.find import Inventory
from lazyfs.image.inside.packages.package import Package


class Bill(NamedTuple):
    """An image and what is in it.

    Attributes:
        image: the image's name.
        digest: of its manifest.
        inventory: what was found in it.
        made_at: when this was written; with a time zone.
        program: name and version of who writes it.
    """

    image: str
    digest: str
    inventory: Inventory
    made_at: datetime
    program: tuple[str, str]

    @property
    def serial(self) -> uuid.UUID:
        """A number that the same image always has."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self.image}@{self.digest}")


def shown_place(package: Package) -> str:
    """Where a package was found, as text that any encoder takes: what is no UTF-8 is escaped."""
    return "/" + package.where.decode("utf-8", "backslashreplace")


def shown_source(package: Package) -> str:
    """The source package, where that says more than the package itself; else ""."""
    return f"{package.source} {package.source_version}".strip() if package.has_other_source else ""
