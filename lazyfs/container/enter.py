"""One more process in a container that runs, as `lazyfs exec` starts it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from lazyfs.container import kernel
from lazyfs.container.image_user import MAX_ACCOUNTS_BYTES, identify
from lazyfs.container.places import ContainerPlace
from lazyfs.container.root_tree import RootTree, check_directory
from lazyfs.container.runtime import leave_one_cgroup_version
from lazyfs.container.terminal import window_size
from lazyfs.container.user_namespace import check_mapped
from lazyfs.errors import ContainerError


class Entering(Struct, frozen=True):
    """What is wanted of the process; None, and empty values, leave it as the container's first one has it.

    Attributes:
        command: what is executed.
        env: more NAME=VALUE pairs.
        user: USER[:GROUP].
        working_dir: where it starts.
        terminal: it has a terminal of its own.
    """

    command: Sequence[str]
    env: Sequence[str] = ()
    user: str | None = None
    working_dir: str | None = None
    terminal: bool = False


def enter(place: ContainerPlace, wanted: Entering) -> list[str]:
    """The command of the runtime that starts the process; this process is to become it.

    Raises:
        ContainerError: the container does not run, or there cannot be such a process in it.
        CommandNotFound, CommandRefused: there is no such program in it, or not to execute.
    """
    runtime, facts = place.runtime(), place.facts
    try:
        pid = int((place.path / "bundle/pid").read_text())
        first = json.loads((place.path / "bundle/config.json").read_text())["process"]
        if facts.rootless:
            kernel.join_users(pid)
        with RootTree(Path(f"/proc/{pid}/root")) as tree:
            process = _process(first, wanted, tree, rootless=facts.rootless)
    except (OSError, ValueError, KeyError) as error:
        raise ContainerError(f"the container {place.path.name} does not run") from error
    if runtime is None:
        raise ContainerError(f"the container {place.path.name} does not run")
    if runtime.name == "crun":
        _hide_one_cgroup_version()
    told = os.memfd_create("lazyfs-exec", 0)
    os.write(told, json.dumps(process).encode())
    return runtime.words_to_exec(facts.identifier, Path(f"/proc/self/fd/{told}"))


def _hide_one_cgroup_version() -> None:
    kernel.unshare(kernel.NEW_MOUNTS)
    kernel.keep_mounts_private()
    leave_one_cgroup_version()


def _process(first: Mapping[str, Any], wanted: Entering, tree: RootTree, *, rootless: bool) -> dict[str, Any]:
    """The runtime specification's `process`."""
    process = dict(first)
    pairs = dict(pair.split("=", 1) for pair in first["env"])
    if wanted.user is not None:
        identity = identify(
            wanted.user,
            tree.read("/etc/passwd", MAX_ACCOUNTS_BYTES),
            tree.read("/etc/group", MAX_ACCOUNTS_BYTES),
        )
        identity = check_mapped(identity) if rootless else identity
        user = {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)}
        own = first["capabilities"]["bounding"] if identity.uid == 0 else []
        process["user"] = user
        process["capabilities"] = {**first["capabilities"], "effective": own, "permitted": own}
        pairs["HOME"] = identity.home
    if wanted.terminal:
        pairs.setdefault("TERM", "xterm")
    pairs |= dict(pair.split("=", 1) for pair in wanted.env)
    directory = wanted.working_dir or first["cwd"]
    if not directory.startswith("/"):
        raise ContainerError(f"the working directory {directory!r} does not begin with /")
    check_directory(tree, directory)
    tree.check_program(wanted.command[0], pairs.get("PATH", ""), directory, ())
    size = window_size() if wanted.terminal else None
    process.pop("consoleSize", None)
    if size is not None:
        process["consoleSize"] = {"height": size[0], "width": size[1]}
    env = [f"{name}={value}" for name, value in pairs.items()]
    return process | {"terminal": wanted.terminal, "args": list(wanted.command), "env": env, "cwd": directory}
