"""The installed command line as a test runs it: a process, with a home and a cache of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class LazyfsRunner:
    """Call it like the command: `lazyfs("index", reference)`.

    Attributes:
        home: stands for the user's home, with configuration and runtime directories below.
        cache_dir: given to every command as `--cache-dir`.
    """

    home: Path
    cache_dir: Path

    def __call__(
        self,
        command: str,
        *arguments: str | Path,
        exit_code: int = 0,
        env: dict[str, str] | None = None,
        input: str = "",  # noqa: A002  # as subprocess calls it
    ) -> subprocess.CompletedProcess[str]:
        """What the command printed, once it has ended.

        Args:
            command: the subcommand.
            arguments: its arguments and options.
            exit_code: what it must end with.
            env: more environment variables.
            input: what it reads from standard input.
        """
        words = [command, *map(str, arguments), "--cache-dir", str(self.cache_dir)]
        done = self.run(words, self.environment() | (env or {}), input)
        assert done.returncode == exit_code, (
            f"lazyfs {command}: exit code {done.returncode}, expected {exit_code}\n{done.stdout}{done.stderr}"
        )
        return done

    def run(
        self, words: list[str], environment: dict[str, str], told: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command with these arguments."""
        return subprocess.run(
            [executable(), *words],
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            input=told,
            env=environment,
            timeout=TIMEOUT_S,
        )

    def environment(self) -> dict[str, str]:
        """The caller's environment without what would lead out of `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAZYFS_", "XDG_"))}
        runtime = self.home / "run"
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = {"HOME": str(self.home), "LAZYFS_RUNTIME_DIR": str(runtime), "LAZYFS_HOSTS_DIR": "/dev/null"}
        return kept | own


def executable() -> str:
    """The command of the environment that runs the tests."""
    return str(Path(sys.executable).with_name("lazyfs"))
