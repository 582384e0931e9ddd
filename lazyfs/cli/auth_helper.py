"""lazyfs-auth-helper: what Podman and CRI-O call with the credentials of a pull.

They name it as `additional-layer-store-auth-helper` in registries.conf, and call it without arguments once an
image's manifest has come; on standard input: `{"IMAGE": {"username": …, "password": …, "identityToken": …}}`.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
import trio

from lazyfs.cli.options import PATH
from lazyfs.cli.service import DEFAULT_SOCKET
from lazyfs.errors import BadReference, LazyfsError
from lazyfs.exit_codes import exit_code, message_of
from lazyfs.printable import one_line
from lazyfs.service.client import ServiceClient

_MOST: Final = 1 << 20
_PATIENCE_S: Final = 3.0  # a pull goes on without us
_FIELDS: Final = {"username": "username", "password": "password", "identityToken": "identitytoken"}


@click.command()
@click.option(
    "--daemon", type=PATH, default=DEFAULT_SOCKET, show_default=True, help="Where `lazyfs daemon` answers."
)
@click.version_option(package_name="lazyfs")
def main(daemon: Path) -> None:
    """Give the credentials of a pull, on standard input, to `lazyfs daemon`, which reads layers by them.

    Podman and CRI-O call it: docs/podman.md says how they are told.
    """
    try:
        told = _told(sys.stdin.buffer.read(_MOST))
        trio.run(_tell, ServiceClient(daemon.absolute(), _PATIENCE_S), told)
    except LazyfsError as error:
        click.echo(f"lazyfs-auth-helper: {one_line(message_of(error))}", err=True)
        sys.exit(exit_code(error))


async def _tell(client: ServiceClient, told: Mapping[str, Mapping[str, str]]) -> None:
    for image, entry in told.items():
        if entry:
            await client.log_in(image, entry, proved=True)  # the manifest came


def _told(data: bytes) -> dict[str, dict[str, str]]:
    """Entries as `ServiceClient.log_in` takes them, by image.

    Raises:
        BadReference: something else was given; what, is not told.
    """
    try:
        return {
            image: {_FIELDS[name]: value for name, value in given.items() if name in _FIELDS and value}
            for image, given in json.loads(data).items()
        }
    except (ValueError, RecursionError, AttributeError):
        raise BadReference(
            "standard input holds no credentials of a pull; Podman and CRI-O give them"
        ) from None
