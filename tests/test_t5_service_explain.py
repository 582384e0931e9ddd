"""`lazyfs explain --daemon`: each image of the data daemon apart, on real images from a real registry."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli import explain as command
from lazyfs.cli.main import run
from lazyfs.oci.chain import ChainOrder
from tests.support.images import build_image
from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.service import Daemon, running_daemon
from tests.support.service_images import Published, container, published
from tests.support.tars import file, tar
from tests.test_t5_json import described, fields


@pytest.fixture(scope="module")
def images(lab, tmp_path_factory) -> Iterator[dict[str, Published]]:
    """Those of `base` and of `python`, whose lowest layers are those of `base`."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        place = tmp_path_factory.mktemp("publisher")
        yield {name: published(lab, address, name, place / name) for name in ("base", "python")}


@pytest.fixture
def python(images) -> Published:
    return images["python"]


@pytest.fixture
def base(images) -> Published:
    return images["base"]


@pytest.fixture(params=["erofs", "fuse"])
def daemon(tmp_path, request) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "daemon", flags=["--driver", request.param]) as daemon:
        yield daemon


def told(lazyfs: LazyfsRunner, daemon: Daemon, *words: Any) -> Any:
    """What explain tells of a daemon's images."""
    return json.loads(lazyfs("explain", "--json", "--daemon", daemon.socket, *words).stdout)


def test_images_are_told_of_apart(daemon, python, base, lazyfs):
    mounted = daemon.ask("mount", python.whole)
    lower = daemon.ask("mount", base.whole)
    (mounted.path / "usr/bin/python3").resolve().read_bytes()
    library = next(mounted.path.glob("usr/lib/python3*/json/decoder.py"))
    library.read_bytes()
    (lower.path / "etc/os-release").read_bytes()
    both = told(lazyfs, daemon)
    assert [one["image"] for one in both] == [base.reference, python.reference]
    of_base, of_python = both
    for one, order, mount in ((of_base, base.whole, lower), (of_python, python.whole, mounted)):
        assert one["digest"] == order.manifest
        assert one["mounts"] == [
            {
                "path": str(mount.path),
                "driver": mount.driver,
                "state": "live",
                "layers": order.layers,
                "alone": False,
                "why": "",
            }
        ]
        assert one["lazy"]
        assert not one["why_not"]
        assert len(one["layers"]) == order.layers
        assert {layer["index"] for layer in one["layers"]} == {"lazyfs"}
        assert one["boot"]["state"] == "none"
    # What they have in common counts for both, what only one has does not count for the other.
    shared = len(base.orders)
    assert of_python["layers"][:shared] == of_base["layers"]
    upper = [layer for layer in of_python["layers"][shared:] if layer["fetched"]]
    assert upper
    difference = sum(count["bytes"] for count in of_python["traffic"].values()) - sum(
        count["bytes"] for count in of_base["traffic"].values()
    )
    assert difference == sum(layer["fetched"] for layer in upper)
    assert str(library.relative_to(mounted.path)) in {read["path"] for read in of_python["slowest"]}
    assert {read["layer"] for read in of_base["slowest"]} <= {order.layer for order in base.orders}
    everywhere = json.loads(lazyfs("stats", "--json", "--daemon", daemon.socket).stdout)["traffic"]
    for purpose, count in everywhere.items():
        assert count["bytes"] >= of_python["traffic"][purpose]["bytes"], purpose
    assert of_python["traffic"]["demand"]["bytes"] > 0
    assert set(fields(both)) <= described()["explain --daemon"] | described()["explain DIR"]


def test_one_image_is_told_of_by_its_name_or_where_it_is_mounted(daemon, python, base, lazyfs):
    mounted = daemon.ask("mount", python.whole)
    daemon.ask("mount", base.whole)
    for name in (
        python.reference,
        f"docker://{python.reference}",
        python.whole.manifest,
        f"{python.reference.rpartition(':')[0]}@{python.whole.manifest}",
    ):
        assert [one["image"] for one in told(lazyfs, daemon, name)] == [python.reference], name
    assert told(lazyfs, daemon, mounted.path)["image"] == python.reference
    link = daemon.root.parent / "link"
    link.symlink_to(mounted.path)
    assert told(lazyfs, daemon, link)["digest"] == python.whole.manifest
    said = lazyfs("explain", "--daemon", daemon.socket, python.reference).stdout
    assert f"mounted at      {mounted.path} ({mounted.driver}, live)\n" in said
    assert "lazy            yes: content is fetched when it is read\n" in said
    assert "an index of lazyfs" in said
    assert base.reference not in said


def test_what_the_daemon_does_not_have_is_said(daemon, base, lazyfs, tmp_path):
    words = ("explain", "--daemon", daemon.socket)
    done = lazyfs(*words)
    assert (done.stdout, done.stderr) == ("", "lazyfs: the daemon has no image mounted or open\n")
    daemon.ask("mount", base.whole)
    other = f"{base.reference.rpartition(':')[0]}:other"
    failed = lazyfs(*words, other, exit_code=66)
    assert failed.stderr == f"lazyfs: the daemon has neither mounted nor lately opened {other}\n"
    failed = lazyfs(*words, tmp_path, exit_code=66)
    assert failed.stderr == f"lazyfs: nothing of lazyfs is mounted at {tmp_path}\n"
    lazyfs(*words, "oci:layout", exit_code=64)
    lazyfs(*words, "UPPER", exit_code=64)
    lazyfs(*words, "", exit_code=64)
    absent = tmp_path / "absent.sock"
    assert "no data daemon" in lazyfs("explain", "--daemon", absent, exit_code=75).stderr


def test_why_an_image_is_not_lazy_is_told_and_what_to_do(tmp_path, lazyfs):
    image = build_image([tar(file(b"lower", b"lower\n")), tar(file(b"upper", b"upper\n"))])
    layers = [layer["digest"] for layer in image.json["layers"]]
    with Registry(referrers=False) as registry, running_daemon(tmp_path / "daemon") as daemon:
        registry.push("app", image, tag="1")
        name = f"{registry.host}/app:1"
        order = ChainOrder(name, image.digest, 2, layers[1], "")
        assert not daemon.ask("assess", order).lazy
        (one,) = told(lazyfs, daemon, name)
        assert (one["image"], one["digest"], one["lazy"]) == (name, image.digest, False)
        assert one["why_not"] == "no index that may be used of 2 of 2 layers"
        assert [layer["index"] for layer in one["layers"]] == [None, None]
        assert [line.partition(";")[0] for line in one["advice"]] == [
            f"publish indexes of its layers: lazyfs index --push {name}"
        ]
        gone = ChainOrder(f"{registry.host}/gone:1", "", 1, layers[0], "")
        assert not daemon.ask("assess", gone).lazy
        (one,) = told(lazyfs, daemon, gone.image)
        assert (one["digest"], one["lazy"], one["layers"], one["advice"]) == ("", False, [], [])
        said = lazyfs("explain", "--daemon", daemon.socket, gone.image).stdout
        assert said.splitlines()[-1] == f"lazy            no: {one['why_not']}"


def test_a_daemon_that_goes_on_after_a_kill_tells_of_what_is_mounted(daemon, python, lazyfs):
    mounted = daemon.ask("mount", python.whole)
    before = told(lazyfs, daemon, mounted.path)
    with container(mounted.path, "read line; cat etc/os-release"):
        daemon.kill_worker()
        daemon.ask("mounts")
        (mounted.path / "etc/os-release").read_bytes()
        after = told(lazyfs, daemon, mounted.path)
    assert [layer["digest"] for layer in after["layers"]] == [layer["digest"] for layer in before["layers"]]
    assert [layer["toc"] for layer in after["layers"]] == [layer["toc"] for layer in before["layers"]]
    assert all(layer["leaves"] for layer in after["layers"])
    assert after["boot"]["state"] == "unknown"


def test_the_root_of_a_container_leads_to_its_image(daemon, base, lazyfs, tmp_path, capfd, monkeypatch):
    mounted = daemon.ask("mount", base.whole)
    root = tmp_path / "root"
    for path in (root, tmp_path / "upper", tmp_path / "work"):
        path.mkdir()
    options = f"lowerdir={mounted.path},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
    try:
        assert told(lazyfs, daemon, root)["image"] == base.reference
        monkeypatch.setattr(command, "DAEMON_SOCKET", daemon.socket)
        for place in (root, mounted.path):
            assert run(["explain", "--json", str(place)]) == 0
            assert json.loads(capfd.readouterr().out)["image"] == base.reference
        assert run(["explain", str(tmp_path)]) == 66
        capfd.readouterr()
        assert run(["explain", "--daemon", base.reference, "--json"]) == 0
        assert [one["image"] for one in json.loads(capfd.readouterr().out)] == [base.reference]
    finally:
        subprocess.run(["umount", root], check=True)


def test_of_what_could_not_be_mounted_again_it_is_said_why(tmp_path, lab, lazyfs):
    with docker_registry(tmp_path / "registry") as address:
        image = published(lab, address, "base", tmp_path / "publisher")
        with running_daemon(tmp_path / "daemon") as daemon:
            daemon.ask("mount", image.whole)
    with running_daemon(tmp_path / "daemon", tmp_path / "empty") as daemon:
        wait_until(lambda: daemon.ask("mounts")[0]["why"] != "not yet made again")
        (one,) = told(lazyfs, daemon, image.reference)
        (mount,) = one["mounts"]
        assert (one["layers"], mount["state"], bool(mount["why"])) == ([], "stale", True)
        said = lazyfs("explain", "--daemon", daemon.socket).stdout
        assert f"{mount['path']} (stale: " in said or "stale: " in said.splitlines()[0]
        daemon.ask("keep", [])


def test_what_is_not_mounted_any_more_is_told_of_as_long_as_it_is_open(daemon, base, lazyfs):
    mounted = daemon.ask("mount", base.whole)
    (mounted.path / "etc/os-release").read_bytes()
    before = told(lazyfs, daemon, base.reference)[0]
    daemon.ask("release", mounted.name)
    (one,) = told(lazyfs, daemon, base.reference)
    assert one["mounts"] == []
    assert [layer["present"] for layer in one["layers"]] == [layer["present"] for layer in before["layers"]]
    assert Path(one["cache_dir"]) == daemon.cache
