"""mount and umount."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
from msgspec.structs import replace

from lazyfs.cli.completing import complete_image, complete_mount
from lazyfs.cli.daemon_events import follow
from lazyfs.cli.options import PATH, configured, configured_by
from lazyfs.cli.output import complain, print_json
from lazyfs.config import Config
from lazyfs.errors import LazyfsError, MountError, NotMounted
from lazyfs.exit_codes import exit_code, message_of
from lazyfs.mount.mounts import Mount, mount_at, resolve_mount_point, unmount
from lazyfs.mount_states import MountFacts, MountStates, drop_empty_log, runtime_directory
from lazyfs.oci.image_name import anchored, parse_image

_DAEMON_END_S: Final = 60.0  # it makes durable what it fetched, on a disk that others use too


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("directory", type=PATH)
@click.option("--foreground", is_flag=True, help="Stay; unmount at Ctrl-C. The log goes to stderr.")
@click.option(
    "--driver", type=click.Choice(["auto", "erofs", "fuse"]), default="auto", show_default=True,
    help="Who reads the metadata: the kernel (erofs) or the daemon (fuse).",
)  # fmt: skip
@click.option("--read-timeout", type=float, help="Seconds until a read that waits for the network fails.")
@click.option("--suid", is_flag=True, help="Let setuid bits and file capabilities count (root only).")
@click.option("--dev", is_flag=True, help="Let device nodes be opened (root only).")
@click.option("--noexec", is_flag=True, help="Let no program be run from it.")
@click.option(
    "--background", type=click.Choice(["off", "idle", "full"]),
    help="Fetch what nobody reads yet: while nobody waits (idle), or at any time (full).",
)  # fmt: skip
@click.option("--background-rate", type=int, metavar="KIB", help="How many KiB a second that may be.")
@click.option(
    "--limit-rate", type=int, metavar="KIB", help="Fetch at most so many KiB a second, whatever for."
)
@click.option("--metrics", metavar="[HOST:]PORT", help="Tell counts to Prometheus there, on loopback.")
@click.option(
    "--record",
    is_flag=True,
    help="Read as little ahead as possible, so that the trace tells what was wanted.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what is mounted as JSON.")
def mount(
    config: Config,
    image: str,
    directory: Path,
    foreground: bool,
    driver: str,
    read_timeout: float | None,
    suid: bool,
    dev: bool,
    noexec: bool,
    background: str | None,
    background_rate: int | None,
    limit_rate: int | None,
    metrics: str | None,
    record: bool,
    as_json: bool,
) -> int:
    """Mount IMAGE at DIRECTORY, read-only, and return; a daemon goes on fetching what is read.

    An image that was never indexed is pulled once for that; from then on every mount is immediate.

    \b
      lazyfs mount debian:12 /mnt
      lazyfs mount --platform linux/arm64 oci:./layout:latest /mnt
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    wishes: dict[str, Any] = {
        "read_timeout_s": read_timeout,
        "background": background,
        "background_rate_kib": background_rate,
        "limit_rate_kib": limit_rate,
        "metrics": metrics,
    }
    config = replace(config, **{name: value for name, value in wishes.items() if value is not None})
    order: dict[str, Any] = {
        "image": image,
        "mount_point": os.fsdecode(resolve_mount_point(directory)),
        "driver": driver,
        "runtime_dir": str(runtime_directory(os.environ)),
        "setuid": suid,
        "devices": dev,
        "programs": not noexec,
        "record": record,
    }
    if not foreground:
        order["log_file"] = str(_log_file(order["mount_point"], order["runtime_dir"]))
    told = json.dumps({"order": order, "config": config.as_flags()}).encode()
    daemon = _start_daemon(told, foreground=foreground)
    return _wait(daemon, foreground=foreground, as_json=as_json)


def _log_file(mount_point: str, runtime_dir: str) -> Path:
    return MountStates(Path(runtime_dir)).path(Path(mount_point)).with_suffix(".log")


def _start_daemon(told: bytes, *, foreground: bool) -> "subprocess.Popen[bytes]":
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # so it is for the daemon, until it can end well
    try:
        daemon = subprocess.Popen(
            # -P: no module comes from the working directory, which may be a stranger's.
            [sys.executable, "-P", "-m", "lazyfs.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if foreground else subprocess.DEVNULL,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert daemon.stdin is not None
    with suppress(BrokenPipeError), daemon.stdin:  # of a dead daemon the lack of events tells
        daemon.stdin.write(told)
    return daemon


def _wait(daemon: "subprocess.Popen[bytes]", *, foreground: bool, as_json: bool) -> int:
    assert daemon.stdout is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    outcome: dict[str, Any] = {}
    try:
        outcome = follow(daemon.stdout)
        if "ready" in outcome:
            _tell(outcome, as_json=as_json)
        if foreground or "ready" not in outcome:
            daemon.wait()
    except KeyboardInterrupt:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        if "ready" not in outcome:
            raise
    if "ready" in outcome:
        return daemon.returncode or 0
    complain(str(outcome["error"]))
    return int(outcome["code"])


def _tell(outcome: dict[str, Any], *, as_json: bool) -> None:
    facts = outcome["ready"]
    if as_json:
        print_json({**facts, "why": outcome["why"]})
        sys.stdout.flush()  # before a wait in the foreground
    elif sys.stderr.isatty():
        complain(f"mounted by the {facts['driver']} driver: {outcome['why']}")


@click.command()
@configured_by()
@click.argument("directories", nargs=-1, type=PATH, metavar="DIRECTORY...", shell_complete=complete_mount)
@click.option("--all", "all_of_them", is_flag=True, help="All that `lazyfs mount` has mounted.")
@click.option("--lazy", is_flag=True, help="Detach now, even if in use.")
def umount(config: Config, directories: tuple[Path, ...], all_of_them: bool, lazy: bool) -> int:
    """Unmount each DIRECTORY, and wait until its daemon has ended. Cleans up after a dead daemon too."""
    del config
    if bool(directories) is all_of_them:
        raise click.UsageError("name directories, or --all")
    states = MountStates(runtime_directory(os.environ))
    code = 0
    for directory in directories or [Path(facts.mount_point) for facts in states.all()]:
        try:
            _unmount(states, directory, lazy=lazy)
        except LazyfsError as error:  # the others can be unmounted all the same
            complain(message_of(error))
            code = exit_code(error)
    return code


def _unmount(states: MountStates, directory: Path, *, lazy: bool) -> None:
    mount_point = Path(os.fsdecode(resolve_mount_point(directory)))
    facts = states.find(mount_point)
    mounted = mount_at(mount_point)
    if mounted is None and facts is None:
        raise NotMounted(f"nothing is mounted at {mount_point}")
    if mounted is not None and not _is_ours(mounted, facts):
        raise NotMounted(
            f"what is mounted at {mount_point} is not of lazyfs: umount {mount_point} unmounts it"
        )
    while mounted is not None and _is_ours(mounted, facts):
        unmount(mount_point, lazy=lazy)
        mounted = mount_at(mount_point)
    if facts is None:
        return
    if not lazy:  # else it goes on until its last user has gone
        _wait_for_end(facts.pid, mount_point)
    states.forget(facts)
    with suppress(OSError), Path(facts.log).open("rb") as log:  # of a daemon that was killed
        drop_empty_log(log.fileno(), facts.log)


def has_mounted(image: str, directory: Path) -> bool:
    """Whether the image of this name is mounted there, and served.

    Raises:
        LazyfsError: it is no name, or no place.
    """
    mount_point = Path(os.fsdecode(resolve_mount_point(directory)))
    mounted = mount_at(mount_point)
    facts = MountStates(runtime_directory(os.environ)).find(mount_point)
    if mounted is None or facts is None or not _is_ours(mounted, facts) or _has_ended(facts.pid):
        return False
    return facts.image == str(anchored(parse_image(image)))


def _is_ours(mounted: Mount, facts: MountFacts | None) -> bool:
    """Whether a mount is of lazyfs. `facts` may be lacking or outlive it, where a daemon was killed."""
    over_loop = mounted.fstype == b"erofs" and facts is not None and facts.driver == "erofs"
    return mounted.looks_ours or over_loop


def _wait_for_end(pid: int, mount_point: Path) -> None:
    """Wait for the daemon, which makes what it fetched durable."""
    end = time.monotonic() + _DAEMON_END_S
    while not _has_ended(pid):
        if time.monotonic() > end:
            raise MountError(f"{mount_point} is unmounted, but its daemon {pid} has not ended yet")
        time.sleep(0.01)


def _has_ended(pid: int) -> bool:
    """Whether the daemon is gone; its number may belong to another process by now."""
    try:
        return b"lazyfs.daemon" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
