"""Programs of others that are measured, where no package installs them: built once."""

import shutil
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.support.lab import Lab
from tests.support.lab_build import PRIVATE_MOUNTS, run

STARGZ_SOURCE: Final = Path(__file__).parent / "stargz" / "main.go"
_SUITE: Final = "trixie"
_STARGZ_LIBRARY: Final = "golang-github-containerd-stargz-snapshotter-dev"
_GO: Final = "/usr/lib/go-1.24"


def stargz_daemon(store: Lab) -> Path:
    """The stargz snapshotter, built once from the library that Debian packages.

    Raises:
        LabError: it cannot be built here.
    """
    made_from = sha256(f"{_SUITE} {_STARGZ_LIBRARY}".encode() + STARGZ_SOURCE.read_bytes()).hexdigest()[:12]
    return store.once(f"peers/stargz-{made_from}", _build_stargz)


def _build_stargz(out: Path) -> None:
    sys.stderr.write("bench: building the stargz snapshotter, once; that takes minutes\n")
    with TemporaryDirectory(dir=out.parent) as folder:
        root = Path(folder) / "root"
        packages = f"--include=golang-go,{_STARGZ_LIBRARY}"
        run("mmdebstrap", "--quiet", "--variant=apt", packages, _SUITE, str(root))
        source = root / "usr/share/gocode/src/bench/stargz"
        source.mkdir(parents=True)
        shutil.copy(STARGZ_SOURCE, source)
        settings = {
            "GOROOT": _GO, "GOPATH": "/usr/share/gocode", "GO111MODULE": "off", "CGO_ENABLED": "0",
            "GOCACHE": "/tmp/go-cache", "GOTELEMETRY": "off", "HOME": "/root",
        }  # fmt: skip
        variables = [f"{key}={value}" for key, value in settings.items()]
        build = [f"{_GO}/bin/go", "build", "-o", "/tmp/stargz-grpc", "bench/stargz"]
        mounted = ("sh", "-euc", 'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"', str(root))
        run(*PRIVATE_MOUNTS, *mounted, "env", *variables, *build)
        shutil.copy(root / "tmp/stargz-grpc", out)
