"""The whole image first: by skopeo, umoci and runc, and by containerd."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from subprocess import Popen

from bench.cold.methods.base import Context, Session
from bench.cold.methods.containerd import Containerd
from bench.cold.methods.runc import Runc
from bench.cold.methods.tools import need, say_versions
from bench.cold.store import Store
from bench.cold.workload import Workload


@dataclass(frozen=True, slots=True)
class Skopeo:
    """`skopeo copy`, `umoci unpack`, `runc run`."""

    name: str = "full-skopeo"
    title: str = "full pull: skopeo copy, umoci unpack, runc run"

    def check(self) -> None:
        need("skopeo", "umoci", "runc")

    def publish(self, store: Store, workload: Workload) -> str:
        return store.publish_plain(workload)

    @contextmanager
    def session(self, context: Context) -> Iterator[Session]:
        yield _Unpacking(context)

    def warm_up(self, context: Context) -> None:
        say_versions(context.box, "skopeo", "umoci", "runc")


class _Unpacking:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._runc = Runc(context)
        self._bundle = context.scratch / "unpacked"

    def pull(self) -> None:
        if self._bundle.exists():
            return
        context, layout = self._context, self._context.scratch / "layout"
        insecure = ("--insecure-policy", "copy", "--quiet", "--src-tls-verify=false")
        context.box.run("skopeo", *insecure, f"docker://{context.reference}", f"oci:{layout}:latest")
        context.box.run("umoci", "unpack", "--image", f"{layout}:latest", self._bundle)

    def run(self) -> Popen[bytes]:
        return self._runc.run(self._bundle / "rootfs")

    def remove(self) -> None:
        self._runc.remove()


@dataclass(frozen=True, slots=True)
class FullContainerd:
    """`ctr images pull`, `ctr run`, by the overlayfs snapshotter."""

    name: str = "full-containerd"
    title: str = "full pull: containerd with overlayfs, ctr images pull, ctr run"

    def check(self) -> None:
        need("containerd", "ctr", "runc")

    def publish(self, store: Store, workload: Workload) -> str:
        return store.publish_plain(workload)

    def session(self, context: Context) -> AbstractContextManager[Session]:
        return _containerd_session(context)

    def warm_up(self, context: Context) -> None:
        say_versions(context.box, "ctr", "runc", "containerd-shim-runc-v2")


@contextmanager
def _containerd_session(context: Context) -> Iterator[Session]:
    yield Containerd.start(context).session("overlayfs", ["ctr"], ["images", "pull", "--plain-http"])
