"""How the laboratory makes images: mmdebstrap for the base, buildah for the layers that stand on it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "1"  # of this way to make them: another one, and all are made anew
SUITE = "bookworm"
TAG = "localhost/lab:latest"
# Other tests' mounts, of which a new mount namespace has copies that would keep them in use; where mounts are
# shared, as systemd has them, they go by themselves.
LEAVE_OTHERS = "awk '$3 ~ /lazyfs|erofs/ {print $2}' /proc/self/mounts | xargs -rn1 umount -l 2>&- || true"
# A mount namespace of its own: containers-storage leaves its overlay directory mounted.
PRIVATE_MOUNTS = ("unshare", "--mount", "sh", "-c", f'{LEAVE_OTHERS}; exec "$@"', "sh")


class LabError(Exception):
    """The laboratory cannot make something; the message says what to do."""


def run(*command: str, cwd: Path | None = None) -> str:
    """The standard output of a tool.

    Raises:
        LabError: it is not installed, or it failed.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise LabError(f"{command[0]} is missing: run scripts/setup test") from None
    if done.returncode:
        raise LabError(
            f"{' '.join(command)}: exit code {done.returncode}\n{(done.stderr + done.stdout)[-4000:]}"
        )
    return done.stdout


def build_base(recipe: Path, out: Path, *, downloads: Path) -> None:
    """Write to `out` the OCI layout of Debian's minimal system and what the recipe does to it.

    Package files are kept in, and taken from, `downloads`.
    """
    packages = _packages(downloads)
    with _scratch(out) as scratch:
        context = scratch / "context"
        shutil.copytree(recipe, context)
        run(
            *("mmdebstrap", "--quiet", "--variant=minbase", "--skip=essential/unlink"),
            '--setup-hook=mkdir -p "$1/var/cache/apt/archives"',
            f"--setup-hook=sync-in {packages} /var/cache/apt/archives",
            f"--customize-hook=sync-out /var/cache/apt/archives {packages}",
            *(SUITE, str(context / "base.tar")),
        )
        _bud(context, out, cwd=context, scratch=scratch, options=())


def build_image(recipe: Path, out: Path, *, parent: Path, downloads: Path) -> None:
    """Write to `out` the OCI layout that a Containerfile makes of the image in the layout `parent`.

    Package files are kept in, and taken from, `downloads`; package lists are fetched anew.
    """
    with _scratch(out) as scratch:
        lists = scratch / "lists"
        lists.mkdir()
        options = (
            *("--from", f"oci:{parent.name}:latest"),  # relative: buildah makes an image name of the path
            *("--volume", f"{_packages(downloads)}:/var/cache/apt/archives"),
            *("--volume", f"{lists}:/var/lib/apt/lists"),
        )
        _bud(recipe, out, cwd=parent.parent, scratch=scratch, options=options)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """An empty directory beside `out`, removed afterwards."""
    scratch = out.with_suffix(".scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _packages(downloads: Path) -> Path:
    """The directory for package files, as apt wants it."""
    (downloads / "partial").mkdir(parents=True, exist_ok=True)
    return downloads


def _bud(context: Path, out: Path, *, cwd: Path, scratch: Path, options: tuple[str, ...]) -> None:
    """Build one image, a layer per RUN, in a storage of its own, and copy it to the layout `out`."""
    buildah = (
        *PRIVATE_MOUNTS,
        "buildah",
        "--root",
        str(scratch / "storage"),
        "--runroot",
        str(scratch / "run"),
    )
    run(*buildah, "bud", "--isolation", "chroot", "--layers", "--tag", TAG, *options, str(context), cwd=cwd)
    run(*buildah, "push", TAG, f"oci:{out}:latest")
