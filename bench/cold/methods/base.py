"""What a method is: an adapter between a way to start containers and the clock.

Another one is a class like these, in any module that can be imported: `--methods my.module:Method`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, Protocol

from bench.cold.probe import MARK
from bench.cold.sandbox import Sandbox
from bench.cold.store import Store
from bench.cold.workload import Workload


@dataclass(frozen=True, slots=True)
class Context:
    """Where and what a method starts.

    Attributes:
        box: what it starts, it starts in there; everything ends with it.
        scratch: an empty folder that is removed afterwards.
        reference: the image, "127.0.0.1:PORT/REPOSITORY:TAG" of a plain HTTP registry.
        workload: command and environment.
        image: the image's configuration (OCI image specification, config.md).
        mark: names this start: for containers, and as the value of MARK in their environment.
    """

    box: Sandbox
    scratch: Path
    reference: str
    workload: Workload
    image: Mapping[str, Any]
    mark: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What the container's environment has besides the image's."""
        return {**self.workload.environment, MARK: self.mark}

    @property
    def environment_options(self) -> Sequence[str]:
        """That, as docker and its likes are told: `--env KEY=VALUE`."""
        return [word for key, value in self.environment.items() for word in ("--env", f"{key}={value}")]


class Session(Protocol):
    """Daemons that run, with nothing of the image here yet."""

    def pull(self) -> None:
        """Get the image so far that a container can be started; again, when it is here, at no cost.

        Raises:
            MethodFailed: it did not work.
        """

    def run(self) -> Popen[bytes]:
        """Start the container; a process that stays as long, and whose output is the container's."""

    def remove(self) -> None:
        """End the container if it still runs, and remove it; what was fetched stays."""


class Method(Protocol):
    """A way to start containers."""

    @property
    def name(self) -> str:
        """In results, and for `--methods`."""

    @property
    def title(self) -> str:
        """What it does, in one line."""

    def check(self) -> None:
        """See that it can work here.

        Raises:
            MethodFailed: it cannot; the message says what is missing.
        """

    def publish(self, store: Store, workload: Workload) -> str:
        """See that the registry has what it needs; the image's name there, "REPOSITORY:TAG".

        Raises:
            MethodFailed: it cannot be made here.
        """

    def session(self, context: Context) -> AbstractContextManager[Session]:
        """Daemons up and idle, all tools in the page cache, caches empty.

        Raises:
            MethodFailed: they do not start.
        """

    def warm_up(self, context: Context) -> None:
        """Bring its tools back into the page cache after that was dropped."""
