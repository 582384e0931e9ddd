"""Trees of the data daemon that are lost under it: unmounted by hand, aborted, their metadata images gone."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lazyfs.oci.chain import ChainOrder
from tests.support.images import build_image
from tests.support.mount_server import wait_until
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.service import Daemon, running_daemon
from tests.support.tars import file, tar

CONTENT = os.urandom(300_000)


@pytest.fixture
def order() -> Iterator[ChainOrder]:
    with Registry() as registry:
        image = build_image([tar(file(b"one", CONTENT), file(b"other", CONTENT))])
        registry.push("app", image)
        put(registry, "app", index_of(image))
        layer = image.json["layers"][0]["digest"]
        yield ChainOrder(f"{registry.host}/app", image.digest, 1, layer, "")


@pytest.fixture
def daemon(tmp_path: Path, driver: str) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "daemon", flags=["--driver", driver]) as daemon:
        yield daemon


def abort(path: Path) -> None:
    """What the kernel does where a FUSE connection fails."""
    number = os.minor(path.stat().st_dev)
    with TemporaryDirectory() as control:
        subprocess.run(["mount", "-t", "fusectl", "fusectl", control], check=True)
        Path(control, str(number), "abort").write_text("1")
        unmount(Path(control))


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize(
    ("driver", "lose"),
    [("erofs", unmount), ("fuse", unmount), ("fuse", abort)],
    ids=["erofs-unmount", "fuse-unmount", "fuse-abort"],
)
def test_a_tree_that_is_lost_is_mounted_anew_when_it_is_ordered_next(daemon, order, lose):
    first = daemon.ask("mount", order)
    assert (first.path / "one").read_bytes() == CONTENT
    lose(first.path)
    again = daemon.ask("mount", order)
    assert again == first
    assert (again.path / "one").read_bytes() == CONTENT
    assert [mount["state"] for mount in daemon.ask("mounts")] == ["live"]
    daemon.ask("release", again.name)
    assert not again.path.exists()
    (told,) = [line for line in daemon.complaints() if "bug" not in line]
    assert told.endswith("it is mounted anew")


@pytest.mark.parametrize("driver", ["fuse"])
def test_a_tree_goes_on_where_its_metadata_image_is_gone_when_the_daemon_comes_back(daemon, order):
    mounted = daemon.ask("mount", order)
    assert (mounted.path / "one").read_bytes() == CONTENT
    with (mounted.path / "one").open("rb") as reader:
        (image,) = (daemon.cache / "images").glob("*.erofs")
        image.unlink()
        daemon.kill_worker()
        wait_until(lambda: daemon.ask("mounts"))
        assert (mounted.path / "other").read_bytes() == CONTENT
        assert reader.read() == CONTENT
    assert daemon.complaints() == [], daemon.log_text()
