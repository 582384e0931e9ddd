"""Lazy pulling by others: the stargz snapshotter, which converts images, and SOCI's, which indexes them."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Final

from bench.cold.methods.base import Context, Session
from bench.cold.methods.containerd import Containerd
from bench.cold.methods.tools import need, say_versions
from bench.cold.peers import stargz_daemon
from bench.cold.store import SOCI, Store
from bench.cold.workload import Workload
from bench.measure import MethodFailed
from tests.support.lab import push_layout
from tests.support.lab_build import PRIVATE_MOUNTS, LabError, run
from tests.support.lab_foreign import containerd, tools
from tests.support.registry_tls import TestAuthority, make_authority

_REPOSITORY: Final = Path(__file__).parents[3]
_ORIGINAL: Final = "docker.io/bench/original:latest"
_RECORDED_S: Final = 10
"""How long `ctr-remote image optimize` watches a start; its default."""


@dataclass(frozen=True, slots=True)
class Stargz:
    """`ctr-remote image rpull` and `ctr run`, by the stargz snapshotter, on an image converted beforehand.

    Attributes:
        store: has its programs.
        optimized: the conversion has seen the workload run, and put first what that reads.
    """

    store: Store
    optimized: bool = False

    @property
    def name(self) -> str:
        return "stargz-optimized" if self.optimized else "stargz"

    @property
    def title(self) -> str:
        how = "image optimize, which ran the same command" if self.optimized else "image convert --estargz"
        return f"stargz snapshotter 0.14.3, containerd; converted by ctr-remote {how}"

    def check(self) -> None:
        need("containerd", "ctr", "ctr-remote", "runc", "mmdebstrap")
        _made(lambda: (stargz_daemon(self.store.images.store), tools(self.store.images.lab)))

    def publish(self, store: Store, workload: Workload) -> str:
        way = "estargz-optimized" if self.optimized else "estargz"
        how = _optimizing(workload) if self.optimized else ("convert", "--estargz", "--oci")
        return store.publish(
            way, workload, lambda target: _convert(store, workload, how, target), version=json.dumps(how)
        )

    @contextmanager
    def session(self, context: Context) -> Iterator[Session]:
        socket, root = context.scratch / "stargz.sock", context.scratch / "stargz"
        root.mkdir()
        context.box.serve(
            stargz_daemon(self.store.images.store), socket, root,
            log=context.scratch / "stargz.log", ready=socket.exists,
        )  # fmt: skip
        daemon = Containerd.start(context, proxies={"stargz": socket})
        ctr_remote = tools(self.store.images.lab).command("ctr-remote")
        yield daemon.session("stargz", ctr_remote, ["image", "rpull", "--plain-http"])

    def warm_up(self, context: Context) -> None:
        _warm_up(context, tools(self.store.images.lab).command("ctr-remote"))


@dataclass(frozen=True, slots=True)
class Soci:
    """`soci image rpull` and `ctr run`, by the SOCI snapshotter, on the image with an index beside it.

    Attributes:
        store: has its programs.
    """

    store: Store
    name: str = "soci"
    title: str = "SOCI snapshotter 0.4.1, containerd; index by soci create"

    def check(self) -> None:
        need("containerd", "ctr", "runc", "mmdebstrap")
        _made(lambda: tools(self.store.images.lab))

    def publish(self, store: Store, workload: Workload) -> str:
        return store.publish(SOCI, workload, lambda target: _index(store, workload, target))

    @contextmanager
    def session(self, context: Context) -> Iterator[Session]:
        programs = tools(self.store.images.lab)
        socket, root = context.scratch / "soci.sock", context.scratch / "soci"
        root.mkdir(mode=0o700)
        authority = make_authority(context.scratch)
        trusting = ("env", f"SSL_CERT_FILE={authority.ca_file}")
        with _tls_door(context, authority) as address:
            context.box.serve(
                *trusting, *programs.command("soci-snapshotter-grpc"), "--address", socket, "--root", root,
                log=context.scratch / "soci.log", ready=socket.exists,
            )  # fmt: skip
            through = replace(context, reference=f"{address}/{context.reference.partition('/')[2]}")
            daemon = Containerd.start(through, proxies={"soci": socket})
            yield daemon.session("soci", programs.command("soci"), ["image", "rpull", "--plain-http"])

    def warm_up(self, context: Context) -> None:
        _warm_up(context, tools(self.store.images.lab).command("soci"))


@contextmanager
def _tls_door(context: Context, authority: TestAuthority) -> Iterator[str]:
    """Another address of the registry, where TLS is spoken as well."""
    server = context.reference.partition("/")[0]
    command = (
        sys.executable,
        "-m",
        "bench.cold.tls_door",
        server,
        authority.server_cert,
        authority.server_key,
    )
    process = Popen(
        context.box.beside(command),
        cwd=_REPOSITORY,
        stdin=PIPE,
        stdout=PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.communicate()


def _warm_up(context: Context, client: Sequence[str]) -> None:
    say_versions(context.box, "ctr", "runc", "containerd-shim-runc-v2")
    context.box.run(*client, "--version")


def _made(make: Callable[[], object]) -> None:
    try:
        make()
    except LabError as error:
        raise MethodFailed(str(error)[-300:]) from error


def _optimizing(workload: Workload) -> tuple[str, ...]:
    """How `ctr-remote image` is told what to run."""
    options = ["optimize", "--oci", "--net-host", "--period", str(_RECORDED_S)]
    if workload.command:
        first, *rest = workload.command
        options += ["--entrypoint", json.dumps([first]), "--args", json.dumps(rest)]
    for key, value in workload.environment.items():
        options += ["--env", f"{key}={value}"]
    return tuple(options)


def _convert(store: Store, workload: Workload, how: Sequence[str], target: str) -> None:
    lab = store.images.lab
    # The newer one cannot start a container below this containerd.
    ctr_remote = ["ctr-remote"] if how[0] == "optimize" else tools(lab).command("ctr-remote")
    with containerd(lab) as socket:
        _import(store.layout(workload), socket, _ORIGINAL)
        run(*ctr_remote, "--address", socket, "image", *how, _ORIGINAL, target)
        run(*ctr_remote, "--address", socket, "image", "push", "--plain-http", target)


def _index(store: Store, workload: Workload, target: str) -> None:
    layout = store.layout(workload)
    push_layout(layout, target)
    soci = tools(store.images.lab).command("soci")
    # It keeps what it makes in /var/lib.
    script = 'mount -t tmpfs none /var/lib; "$@" create $0; "$@" push --plain-http $0'
    with containerd(store.images.lab) as socket:
        _import(layout, socket, target)
        run(*PRIVATE_MOUNTS, "sh", "-euc", script, target, *soci, "--address", socket)


def _import(layout: Path, socket: str, reference: str) -> None:
    """Give containerd the image of a layout under a name."""
    with TemporaryDirectory(dir=layout.parent) as folder:
        archive = f"{folder}/image.tar"
        run("tar", "-cf", archive, "-C", str(layout), ".")
        name = reference.removesuffix(":latest")
        run("ctr", "--address", socket, "images", "import", "--no-unpack", "--base-name", name, archive)
