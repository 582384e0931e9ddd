"""Credentials that come with the pulls of containerd's clients.

They are kept where the daemon's descriptors are, by its keeper and by the service manager, in files that
exist in memory only. So they outlive every process of ours, and are never written to a file system.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any, Final

from indexer.errors import FormatError
from lazyfs.errors import BadReference
from lazyfs.oci.json_fields import Fields
from lazyfs.oci.reference import parse_reference
from lazyfs.service.survival.supervisor import Supervisor
from lazyfs.source.auth.credentials import Credentials, credentials_of_entry, normal_key
from lazyfs.source.auth.given import GivenCredentials

_log = logging.getLogger(__name__)

_KEPT: Final = "credentials-"  # and a number: two are kept while one takes the other's place
_MOST_TEXT: Final = 1 << 16


class PullCredentials:
    """What pulls have told.

    Args:
        supervisor: keeps them for the daemon after us, and what the one before us was told.

    Attributes:
        given: all of it.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._number = 0
        self._descriptor: int | None = None
        self.given = GivenCredentials()
        for number, descriptor in sorted(_inherited(supervisor)):
            self._replace(number, descriptor)
            self.given = _read(descriptor) or self.given

    def __repr__(self) -> str:
        return f"<PullCredentials {self.given!r}>"

    def log_in(self, image: str, entry: Mapping[str, Any], *, proved: bool = False) -> bool:
        """A pull of an image begins, or has succeeded.

        Args:
            image: its name.
            entry: what the pull tells of who pulls, with the names of an entry of `auths` in Docker's
                `config.json`; "serveraddress" may say which registry it is for.
            proved: whether it has succeeded.

        Returns:
            Whether these credentials were not known for its repository.

        Raises:
            BadReference: the name is none, or these are no credentials.
        """
        told = _told(image, entry)
        if told is None:
            return False
        is_new = self.given.give(*told, proved=proved)
        if is_new:
            self._keep()
        return is_new

    def log_out(self, image: str, entry: Mapping[str, Any]) -> None:
        """A pull has failed: forget what it told.

        Raises:
            BadReference: as for `log_in`.
        """
        told = _told(image, entry)
        if told is not None and self.given.take_back(*told):
            self._keep()

    def _keep(self) -> None:
        descriptor = os.memfd_create("lazyfs-credentials", os.MFD_CLOEXEC)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(self.given.encoded())
        number = self._number + 1
        self._supervisor.store(f"{_KEPT}{number}", descriptor)
        self._replace(number, descriptor)

    def _replace(self, number: int, descriptor: int) -> None:
        if self._descriptor is not None:
            self._supervisor.remove(f"{_KEPT}{self._number}")
            os.close(self._descriptor)
        self._number, self._descriptor = number, descriptor


def _inherited(supervisor: Supervisor) -> list[tuple[int, int]]:
    """Numbers and descriptors of what was kept."""
    found = []
    for name in supervisor.stored:
        number = name.removeprefix(_KEPT)
        if number != name and number.isdecimal() and (kept := supervisor.take(name)) is not None:
            found.append((int(number), kept))
    return found


def _read(descriptor: int) -> GivenCredentials | None:
    try:
        return GivenCredentials.decoded(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    except (OSError, ValueError, TypeError, AttributeError):  # of another release of ours
        _log.warning("what earlier pulls told of who we are cannot be read; the next ones tell again")
        return None


def _told(image: str, entry: Mapping[str, Any]) -> tuple[str, Credentials] | None:
    """The repository and its credentials; None if there are none for it."""
    if sum(len(value) for value in entry.values() if isinstance(value, str)) > _MOST_TEXT:
        raise BadReference(f"credentials of more than {_MOST_TEXT} characters")
    reference = parse_reference(image)
    fields = Fields(entry, "the pull's credentials")
    try:
        server = normal_key(fields.text("serveraddress", "")).partition("/")[0]
        found = credentials_of_entry(fields)
    except FormatError as error:
        raise BadReference(error.what) from None
    is_for_it = server in {"", normal_key(reference.registry)}
    return (reference.name, found) if found and is_for_it else None
