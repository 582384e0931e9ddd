"""doctor: what of this machine keeps lazyfs from working."""

import os
from pathlib import Path
from typing import Final

import click
from msgspec.structs import asdict

from lazyfs.cli.options import CACHE, PATH, configured_by
from lazyfs.cli.output import print_json, write_line
from lazyfs.cli.service import DEFAULT_SOCKET as DAEMON_SOCKET
from lazyfs.config import Config
from lazyfs.doctor.examine import Places, examine
from lazyfs.doctor.findings import State
from lazyfs.doctor.machine import Machine
from lazyfs.exit_codes import UNFIT
from lazyfs.mount_states import runtime_path

# As the snapshotter has it, whose libraries take their time to load.
SNAPSHOTTER_SOCKET: Final = Path("/run/lazyfs/snapshotter.sock")


@click.command()
@configured_by(CACHE)
@click.option("--daemon", type=PATH, default=DAEMON_SOCKET, show_default=True, help="The daemon's socket.")
@click.option(
    "--snapshotter",
    type=PATH,
    default=SNAPSHOTTER_SOCKET,
    show_default=True,
    help="The snapshotter's socket.",
)
@click.option("--containerd-config", type=PATH, help="containerd's configuration file (default: the usual).")
@click.option("--containerd-socket", type=PATH, help="containerd's socket (default: the usual).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    config: Config,
    daemon: Path,
    snapshotter: Path,
    containerd_config: Path | None,
    containerd_socket: Path | None,
    as_json: bool,
) -> int:
    """Look at this machine, and say what to change.

    A line for each thing that was looked at: ok, warning (it works, but slower or not all of it) or problem,
    then what to do. Nothing is changed. Exit code 69 if there is a problem.
    """
    machine = Machine(Path("/"), os.geteuid(), f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    found = list(
        examine(
            machine,
            config,
            Places(daemon, snapshotter, runtime_path(os.environ), containerd_config, containerd_socket),
        )
    )
    if as_json:
        print_json([{**asdict(finding), "state": finding.state.value} for finding in found])
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            write_line(f"{finding.state.value:8} {finding.name:{width}}  {finding.fact}")
            if finding.advice:
                write_line(f"{'':8} {'':{width}}  -> {finding.advice}")
    return UNFIT if any(finding.state is State.PROBLEM for finding in found) else 0
