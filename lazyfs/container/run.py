"""One container from its mounts to its end."""

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from lazyfs.container import kernel
from lazyfs.container.changes import Changes, continued, in_use, load_changes, save_changes
from lazyfs.container.given import Volume
from lazyfs.container.image_user import MAX_ACCOUNTS_BYTES, identify
from lazyfs.container.network_files import network_files
from lazyfs.container.overlay import Overlay, mount_overlay, prepare
from lazyfs.container.places import ContainerPlace, clear_when_dead
from lazyfs.container.process import (
    ImageProcess,
    Wishes,
    arguments_of,
    checked_hostname,
    environment_of,
    signal_number,
    working_dir_of,
)
from lazyfs.container.root_tree import RootTree, check_directory
from lazyfs.container.runtime import CONSOLE_SOCKET, UNIFIED, Runtime, leave_one_cgroup_version, write_bundle
from lazyfs.container.runtime_spec import KERNEL_MOUNTS, ContainerSpec, runtime_spec
from lazyfs.container.supervise import Supervisor
from lazyfs.container.terminal import Terminal, window_size
from lazyfs.container.user_namespace import USER_NAMESPACES_HELP, become_root, check_mapped
from lazyfs.errors import ContainerError
from lazyfs.mount.mounts import Busy, unmount

ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""What we are told to end by. Blocked in forks: what a handler raises in the middle of one is lost."""

_ROOT_HELP: Final = (
    "root lacks CAP_SYS_ADMIN here, or a seccomp or AppArmor profile forbids it; "
    "a container around us must be a privileged one"
)


class ImageServer(Protocol):
    """A mounted image."""

    @property
    def image(self) -> str:
        """Its name."""

    @property
    def digest(self) -> str:
        """Of its manifest."""

    @property
    def process(self) -> ImageProcess:
        """What its configuration says of its process."""

    def fileno(self) -> int:
        """The descriptor of its server's process (pidfd_open(2))."""

    def close(self) -> None:
        """Unmount it and wait for the server's end."""


class RunOrder(Struct, frozen=True):
    """What is to be run.

    Attributes:
        wishes: what the user wants otherwise than the image.
        runtime: the runtime's program.
        upper: where changes are kept; None for a directory that goes with the container.
        interactive: our standard input is the container's.
        rootless: we are root of a user namespace only.
        stop_signal: what SIGTERM becomes; "" is what the image says.
    """

    wishes: Wishes
    runtime: str
    upper: Path | None = None
    interactive: bool = False
    rootless: bool = False
    stop_signal: str = ""


def enter_namespaces() -> bool:
    """Have mounts of our own from here on, and the rights to make them; whether as an ordinary user.

    Raises:
        ContainerError: the machine does not allow it.
    """
    rootless = os.geteuid() != 0
    if rootless:
        become_root()
    try:
        if not rootless:
            kernel.unshare(kernel.NEW_MOUNTS)
        kernel.keep_mounts_private()
    except OSError as error:
        raise ContainerError(
            f"containers take mounts of their own, which this machine refuses ({error.strerror}): "
            f"{USER_NAMESPACES_HELP if rootless else _ROOT_HELP}"
        ) from error
    kernel.become_subreaper()
    return rootless


@contextmanager
def undertaken(place: ContainerPlace) -> Iterator[None]:
    """The place is cleared after the block; by a process beside us if we are killed, also while we clear."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            detach()
            clear_when_dead(place.path)
        os._exit(0)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield
    finally:
        place.clear()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def detach(keep: Sequence[int] = ()) -> None:
    """Let go, in a forked process, of our terminal, its signals, and all descriptors but those to keep."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        if descriptor not in keep:
            os.dup2(null, descriptor)
    last = 2
    for descriptor in sorted(number for number in keep if number > 2):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, 1 << 16)


def run_container(
    order: RunOrder,
    place: ContainerPlace,
    serve: Callable[[Path], ImageServer],
    begun: Callable[[], None],
) -> int:
    """Run a container to its end; returns its exit code.

    Args:
        order: what.
        place: where it lives.
        serve: mounts the image at a directory.
        begun: told that the container has been started.

    Raises:
        CommandNotFound, CommandRefused, ContainerError: it cannot be started.
        LazyfsError, IndexerError: its image cannot be mounted.
    """
    with ExitStack() as stack:
        supervision = stack.enter_context(ExitStack())  # left last: nothing disturbs the cleaning up
        directory = order.upper or place.part("changes")
        if order.upper is not None:
            stack.enter_context(in_use(directory))
        known = load_changes(directory)
        server = serve(place.part("image"))
        stack.callback(server.close)
        supervisor = Supervisor(signal_number(order.stop_signal or server.process.stop_signal or "SIGTERM"))
        root = place.part("rootfs")
        changes = Changes(directory, server.image, server.digest, (), order.rootless)
        changes = _mount_root(place, continued(known, changes, ()), root, lasting=order.upper is not None)
        stack.callback(_unmount_root, root)
        spec = _settled(order, place, server.process, root, changes)
        bundle = place.part("bundle")
        write_bundle(bundle, runtime_spec(spec))
        runtime = Runtime(order.runtime, place.part("runtime"), order.rootless)
        # It names the cgroup too, and crun kills whoever is in that: names are another cache's too.
        identifier = f"lazyfs-{place.path.name}-{secrets.token_hex(6)}"
        place.note(
            identifier=identifier, runtime=order.runtime, rootless=order.rootless, changes=str(directory)
        )
        supervision.enter_context(supervisor)
        stack.callback(runtime.delete, identifier)
        if runtime.name == "crun":
            leave_one_cgroup_version()
        pid, master = _start(order, runtime, identifier, bundle)
        begun()
        terminal = None
        if master is not None:
            terminal = stack.enter_context(Terminal(master, interactive=order.interactive))
        return supervisor.wait(pid, terminal, server.fileno())


def _mount_root(place: ContainerPlace, changes: Changes, root: Path, *, lasting: bool) -> Changes:
    overlay = Overlay(
        lower=place.path / "image",
        upper=changes.upper,
        work=changes.work,
        lasting=lasting,
        in_user_namespace=changes.user_namespace,
    )
    try:
        save_changes(changes)  # first: whatever a kill leaves, it is known whose
        prepare(overlay)
    except OSError as error:
        raise ContainerError(f"{changes.directory}: {error.strerror}") from error
    mount_overlay(overlay, root)
    return changes


def _unmount_root(root: Path) -> None:
    try:
        unmount(root)
    except Busy:
        unmount(root, lazy=True)


def _settled(
    order: RunOrder, place: ContainerPlace, image: ImageProcess, root: Path, changes: Changes
) -> ContainerSpec:
    """Everything that the runtime is told, once the image and the user have had their say."""
    wishes = order.wishes
    usual = os.uname().nodename if wishes.network == "host" else place.path.name
    hostname = checked_hostname(wishes.hostname) if wishes.hostname else usual
    volumes = [*_system_volumes(place, wishes, hostname), *wishes.volumes]
    arguments, working_dir = arguments_of(image, wishes), working_dir_of(image, wishes)
    with RootTree(root) as tree:
        identity = identify(
            image.user if wishes.user is None else wishes.user,
            tree.read("/etc/passwd", MAX_ACCOUNTS_BYTES),
            tree.read("/etc/group", MAX_ACCOUNTS_BYTES),
        )
        if order.rootless:
            identity = check_mapped(identity)
        env = environment_of(image, wishes, identity, hostname)
        search = next(pair.removeprefix("PATH=") for pair in env if pair.startswith("PATH="))
        covered = [*(volume.target for volume in volumes), *KERNEL_MOUNTS]
        covered += [*(tmpfs.target for tmpfs in wishes.tmpfs), *(device.target for device in wishes.devices)]
        check_directory(tree, working_dir)
        tree.check_program(arguments[0], search, working_dir, covered)
        save_changes(continued(changes, changes, tree.missing(covered)))
    return ContainerSpec(
        root=root,
        arguments=arguments,
        env=env,
        working_dir=working_dir,
        identity=identity,
        hostname=hostname,
        network=wishes.network,
        read_only=wishes.read_only,
        terminal=wishes.terminal,
        window=window_size() if wishes.terminal else None,
        volumes=volumes,
        tmpfs=wishes.tmpfs,
        devices=wishes.devices,
        shm_size=wishes.shm_size,
        rootless=order.rootless,
        private_cgroups=UNIFIED.exists() and not order.rootless,
        confinement=wishes.confinement,
    )


def _system_volumes(place: ContainerPlace, wishes: Wishes, hostname: str) -> list[Volume]:
    """Files that say where the container is, as copies that it may change; the user's own go before them."""
    taken = {volume.target.rstrip("/") for volume in wishes.volumes}
    files = place.part("files")
    volumes = []
    for target, content in network_files(wishes.network, hostname, Path("/etc")).items():
        if target not in taken:
            path = files / Path(target).name
            path.write_bytes(content)
            path.chmod(0o644)
            volumes.append(Volume(path, target, wishes.read_only))
    return volumes


def _start(order: RunOrder, runtime: Runtime, identifier: str, bundle: Path) -> tuple[int, int | None]:
    stdin = None if order.interactive else subprocess.DEVNULL
    if not order.wishes.terminal:
        return runtime.start(identifier, bundle, stdin, None)
    with socket.socket(socket.AF_UNIX) as console:
        listen_in(console, bundle)
        return runtime.start(identifier, bundle, subprocess.DEVNULL, console)


def listen_in(listener: socket.socket, bundle: Path) -> None:
    """Listen for a runtime's console in a bundle, whose own name may be long."""
    place = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{place}/{CONSOLE_SOCKET}")
    finally:
        os.close(place)
    listener.listen(1)
