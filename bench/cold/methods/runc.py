"""Starting a container with runc alone, for methods that bring only a root directory."""

import subprocess
from pathlib import Path
from subprocess import Popen

from bench.cold.bundle import write_bundle
from bench.cold.methods.base import Context
from bench.measure import MethodFailed


class Runc:
    """One container after the other, by runc with a state of its own.

    Args:
        context: where, and which.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._state = context.scratch / "runc"

    def run(self, rootfs: Path) -> Popen[bytes]:
        """A container with this root, a path inside the sandbox."""
        context = self._context
        bundle = context.scratch / "bundle"
        try:
            write_bundle(
                bundle, rootfs, context.image, users=context.box.path(rootfs),
                command=context.workload.command, environment=context.environment, name=context.mark,
            )  # fmt: skip
        except KeyError as error:
            raise MethodFailed(f"no user {error} in the image") from error
        return context.box.start("runc", "--root", self._state, "run", "--bundle", bundle, context.mark)

    def remove(self) -> None:
        """End it and forget it."""
        command = ("runc", "--root", self._state, "delete", "--force", self._context.mark)
        subprocess.run(
            self._context.box.command(list(map(str, command))),
            env=dict(self._context.box.environment), capture_output=True, check=False,
        )  # fmt: skip
