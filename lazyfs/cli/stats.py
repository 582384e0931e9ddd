"""stats: what mounts have fetched."""

from pathlib import Path
from typing import Any

import click

from lazyfs.cli.asking import ask_mounts, write_each
from lazyfs.cli.completing import complete_place
from lazyfs.cli.options import CACHE, PATH, configured_by
from lazyfs.cli.output import print_json, write_line
from lazyfs.cli.service import DEFAULT_SOCKET as DAEMON_SOCKET
from lazyfs.config import Config


@click.command()
@configured_by(CACHE)
@click.argument("directory", type=PATH, required=False, shell_complete=complete_place)
@click.option(
    "--daemon", type=PATH, is_flag=False, flag_value=DAEMON_SOCKET, metavar="[SOCKET]",
    help=f"Of what containerd's containers read, by lazyfs daemon [default: at {DAEMON_SOCKET}].",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(config: Config, directory: Path | None, daemon: Path | None, as_json: bool) -> None:
    """What the mount at DIRECTORY has fetched, hit and waited for; without DIRECTORY, of all mounts.

    DIRECTORY may be the name of a container that `lazyfs run` runs.
    """
    if daemon is not None:
        if directory is not None:
            raise click.UsageError("either a directory or --daemon")
        if not (str(daemon).startswith(("/", ".")) or daemon.exists()):
            raise click.UsageError(
                f"--daemon takes a socket, and {str(daemon)!r} is none; of an image tells "
                f"lazyfs explain --daemon {daemon}"
            )
        from lazyfs.cli.service_stats import tell_of_daemon  # noqa: PLC0415  # few want it

        tell_of_daemon(daemon, as_json=as_json)
        return
    answers = ask_mounts(config, directory, "stats")
    if as_json:
        print_json(answers[0] if directory is not None else answers)
        return
    write_each(answers, _print_stats)


def _print_stats(answer: dict[str, Any]) -> None:
    reads, source = answer["reads"], answer["source"]
    image_bytes = max(int(answer["image_bytes"]), 1)
    container = [("container", answer["container"])] if "container" in answer else []
    for name, value in (
        *container,
        ("mounted at", answer["mount_point"]),
        ("image", f"{answer['image']} {answer['digest']}"),
        ("driver", f"{answer['driver']}, daemon {answer['pid']}"),
        ("fetched", f"{answer['bytes']} bytes in {answer['requests']} requests"),
        ("of the image", f"{100 * source['data_bytes'] / image_bytes:.1f} % of {image_bytes} bytes"),
        ("read by", ", ".join(f"{count} {kind}" for kind, count in answer["indexes"].items()) + " indexes"),
        ("reads", f"{reads['hits']} from the cache, {reads['misses']} waited for the source"),
        ("failed fetches", reads["failures"]),
        ("log", answer.get("log") or "on standard error"),
    ):
        write_line(f"{name:16}{value}")
