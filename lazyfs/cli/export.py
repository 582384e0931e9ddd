"""export: an image's tree as one tar."""

import secrets
import sys
from pathlib import Path

import click

from lazyfs.api import AsyncImage
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import GivenPath, configured
from lazyfs.cli.output import STDOUT, naming
from lazyfs.cli.running import with_image
from lazyfs.cli.stream import Output
from lazyfs.config import Config


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option(
    "-o", "--output", type=GivenPath(path_type=Path, dir_okay=False),
    help="Write to this file, which is there whole or not at all; - is standard output.",
)  # fmt: skip
def export(config: Config, image: str, output: Path | None) -> None:
    """Write IMAGE's whole tree as one tar to standard output, as docker export does for a container.

    \b
      lazyfs export debian:12 | tar -x -C rootfs
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    if output is None or str(output) == "-":
        if sys.stdout.isatty():
            raise click.UsageError("a tar is not for a terminal: redirect it, or give -o FILE")
        _write(config, image, sys.stdout.fileno(), STDOUT)
    elif output.is_symlink() or (output.exists() and not output.is_file()):
        with output.open("wb", buffering=0) as file:  # a device, a pipe, /dev/stdout: it stays what it is
            _write(config, image, file.fileno(), output)
    else:
        # Others may export to the same file at the same time.
        partial = output.with_name(f"{output.name}.{secrets.token_hex(4)}.partial")
        with naming(output):
            file = partial.open("xb", buffering=0)
        try:
            with file:
                _write(config, image, file.fileno(), output)
            partial.rename(output)
        finally:
            partial.unlink(missing_ok=True)


def _write(config: Config, image: str, descriptor: int, path: Path) -> None:
    out = Output(descriptor, path)
    with_image(config, image, lambda opened: _export(opened, out))


async def _export(opened: AsyncImage, out: Output) -> None:
    await opened.export(out.write)
    await out.flush()
