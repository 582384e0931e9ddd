"""The data daemon on real images from a real registry: who asks, what dies, what containers notice."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from lazyfs.errors import BadReference, MountError, NotFound
from lazyfs.oci.chain import ChainOrder
from lazyfs.service.survival.handover import is_locked
from tests.support.images import build_image
from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.mounts import mounts_below
from tests.support.oracle import compare_trees
from tests.support.page_cache import PAGE, forget, pages_in_memory
from tests.support.published import index_of, put
from tests.support.registry import Registry
from tests.support.runner import executable
from tests.support.service import Daemon, name_of, running_daemon
from tests.support.service_images import ALL_CONTENT, Published, container, content_of, published
from tests.support.tars import file, tar


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def python(lab, address, tmp_path_factory) -> Published:
    """An image of several layers, whose lowest is that of `base`."""
    return published(lab, address, "python", tmp_path_factory.mktemp("publisher"))


@pytest.fixture(scope="module")
def base(lab, address, tmp_path_factory) -> Published:
    return published(lab, address, "base", tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def daemon(tmp_path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "daemon") as daemon:
        yield daemon


@pytest.fixture(params=["erofs", "fuse"])
def any_daemon(tmp_path, request) -> Iterator[Daemon]:
    """A daemon with either driver."""
    with running_daemon(tmp_path / "daemon", flags=["--driver", request.param]) as daemon:
        yield daemon


# Asking


def test_an_image_with_a_published_index_is_lazy_and_one_look_serves_all_its_layers(
    tmp_path, python, monkeypatch
):
    monkeypatch.setenv("LAZYFS_BOOT_PACK", "false")  # nor is its start foreseen: that costs more
    with running_daemon(tmp_path / "daemon") as daemon:
        for order in python.orders:
            assessment = daemon.ask("assess", order)
            assert (assessment.lazy, assessment.why) == (True, "")
        (source,) = daemon.ask("statistics")["sources"]
    # Manifest, referrers (unknown to this registry), their fallback tag, the artifact; configuration, heads.
    assert source["control_requests"] == 4
    assert source["data_requests"] == 1 + len(python.orders)
    assert source["control_bytes"] + source["data_bytes"] < 150_000


def test_an_image_without_an_index_is_not_lazy_until_it_was_indexed(daemon, registry):
    reference = registry.reference("nginx")
    manifest = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"],
        check=True,
        capture_output=True,
    ).stdout
    layers = [layer["digest"] for layer in json.loads(manifest)["layers"]]
    order = ChainOrder(reference, "", len(layers), layers[-1], "")
    assert not daemon.ask("assess", order).lazy
    assert daemon.ask("index", order) is True
    while daemon.ask("statistics")["indexing"]["waiting"]:
        time.sleep(0.05)
    assert daemon.ask("statistics")["indexing"] == {"waiting": 0, "done": 1, "failed": 0}
    assert daemon.ask("assess", order).lazy


def test_orders_that_contradict_their_image_are_not_lazy_and_not_mounted(daemon, python, base):
    first, second = python.orders[:2]
    wrong_layer = ChainOrder(first.image, first.manifest, 2, first.layer, "")
    too_deep = ChainOrder(first.image, first.manifest, 99, first.layer, "")
    wrong_chain = ChainOrder(first.image, first.manifest, 2, second.layer, first.chain_id)
    for order in (wrong_layer, too_deep, wrong_chain):
        assert not daemon.ask("assess", order).lazy
    for order in (wrong_layer, too_deep):
        with pytest.raises(NotFound):
            daemon.ask("mount", order)
    nowhere = ChainOrder("127.0.0.1:9/lab/python:latest", first.manifest, 1, first.layer, "")
    assert not daemon.ask("assess", nowhere).lazy
    for name in ("oci:/etc", "", "a b", "x" * 5000):
        order = ChainOrder(name, first.manifest, 1, first.layer, "")
        try:
            assert not daemon.ask("assess", order).lazy
        except BadReference:
            continue


# Mounting


@pytest.mark.parametrize("name", ["base", "python"])
def test_a_chain_shows_what_its_layers_unpack_to(any_daemon, python, base, unpacked, name):
    order = python.orders[len(base.orders) - 1] if name == "base" else python.whole
    mounted = any_daemon.ask("mount", order)
    assert compare_trees(unpacked(name), mounted.path) == []
    assert any_daemon.ask("mount", order) == mounted
    any_daemon.ask("release", mounted.name)
    any_daemon.ask("release", mounted.name)
    any_daemon.ask("release", "nothing of the kind")
    assert any_daemon.ask("mounts") == []
    assert not mounted.path.exists()


def test_stats_tell_what_the_daemon_serves(daemon, base, lazyfs):
    words = ("stats", "--daemon", daemon.socket)
    assert lazyfs(*words).stdout.splitlines()[-1].split() == [
        "image",
        "layers",
        "state",
        "driver",
        "mounted",
        "at",
    ]
    mounted = daemon.ask("mount", base.whole)
    (mounted.path / "etc/os-release").read_bytes()
    facts = json.loads(lazyfs(*words, "--json").stdout)
    assert facts["pid"] == daemon.ask("statistics")["pid"]
    assert [(one["name"], one["state"]) for one in facts["mounts"]] == [(mounted.name, "live")]
    lines = lazyfs(*words).stdout.splitlines()
    row = [base.whole.image, str(base.whole.layers), "live", mounted.driver, str(mounted.path)]
    assert lines[-1].split() == row
    moved = facts["source"]["control_bytes"] + facts["source"]["data_bytes"]
    assert f"fetched         {moved} bytes in " in "\n".join(lines)


def test_chains_are_named_by_their_layers_and_share_them(daemon, python, base):
    mounts = [daemon.ask("mount", order) for order in python.orders]
    assert [mount.name for mount in mounts] == [
        name_of(python.orders[:depth]) for depth in range(1, len(mounts) + 1)
    ]
    assert daemon.ask("mount", base.whole) == mounts[len(base.orders) - 1]
    assert daemon.ask("statistics")["layers"] == len(python.orders)
    kept = [mounts[0].name, mounts[-1].name]
    assert sorted(daemon.ask("keep", kept)) == sorted(m.name for m in mounts if m.name not in kept)
    assert sorted(mount["name"] for mount in daemon.ask("mounts")) == sorted(kept)


def test_many_who_ask_at_once_get_one_mount_each(any_daemon, python):
    async def ask_all() -> list:
        found = []

        async def ask(order: ChainOrder) -> None:
            found.append(await any_daemon.client().mount(order))

        async with trio.open_nursery() as nursery:
            for order in python.orders * 4:
                nursery.start_soon(ask, order)
        return found

    mounts = trio.run(ask_all)
    assert len(mounts) == 4 * len(python.orders)
    assert len({mount.name for mount in mounts}) == len(any_daemon.ask("mounts")) == len(python.orders)
    assert any_daemon.ask("statistics")["layers"] == len(python.orders)


def test_twenty_images_over_one_base_share_it_and_outlive_the_worker(any_daemon):
    base = tar(file(b"base", b"base\n" * 10_000))
    built = [build_image([base, tar(file(b"own", b"%d\n" % number))]) for number in range(20)]
    with Registry() as registry:
        orders = []
        for number, image in enumerate(built):
            registry.push(f"app{number}", image)
            put(registry, f"app{number}", index_of(image))
            layers = [layer["digest"] for layer in image.json["layers"]]
            orders.append(ChainOrder(f"{registry.host}/app{number}", image.digest, 2, layers[1], ""))
        paths = [any_daemon.ask("mount", order).path for order in orders]
        assert len(set(paths)) == 20
        assert any_daemon.ask("statistics")["layers"] == 21
        for _ in range(2):
            any_daemon.kill_worker()
            assert [mount["state"] for mount in any_daemon.ask("mounts")] == ["live"] * 20
        for number, path in enumerate(paths):
            assert (path / "own").read_bytes() == b"%d\n" % number
            assert (path / "base").read_bytes() == b"base\n" * 10_000
        assert len(any_daemon.ask("keep", [paths[0].name])) == 19
        assert (paths[0] / "base").read_bytes()


# Dying


def test_a_container_reads_on_while_the_worker_is_killed_again_and_again(any_daemon, python, unpacked):
    expected = content_of(unpacked("python"))
    mounted = any_daemon.ask("mount", python.whole)
    with container(mounted.path, ALL_CONTENT) as reader:
        got = [reader.stdout.read(1 << 20)]
        for part in range(1, 5):
            any_daemon.kill_worker()
            got.append(reader.stdout.read(len(expected) // 5 * part - sum(map(len, got))))
        got.append(reader.stdout.read())
        assert reader.wait() == 0, reader.stderr.read()
    assert b"".join(got) == expected
    (there,) = any_daemon.ask("mounts")
    assert (there["name"], there["state"]) == (mounted.name, "live")


def test_a_released_chain_is_served_on_for_its_container_through_deaths(any_daemon, python, unpacked):
    expected = content_of(unpacked("python"))
    mounted = any_daemon.ask("mount", python.whole)
    with container(mounted.path, f"read go; {ALL_CONTENT}") as reader:
        any_daemon.ask("release", mounted.name)
        assert any_daemon.ask("mounts") == []
        any_daemon.kill_worker()
        assert any(any_daemon.ask("statistics")["in_use"].values())
        any_daemon.kill_worker()
        assert reader.communicate(b"go\n")[0] == expected
    while any(any_daemon.ask("statistics")["in_use"].values()):
        time.sleep(0.05)


@pytest.mark.parametrize("victim", ["worker", "keeper"])
@pytest.mark.parametrize("delay", [0.02, 0.1])
def test_a_death_in_the_middle_of_a_mount_is_not_noticed_by_who_orders(
    daemon, python, base, unpacked, victim, delay
):
    orders = python.orders
    first = daemon.ask("mount", base.whole)

    async def order_and_kill() -> list:
        found = []

        async def ask(order: ChainOrder) -> None:
            found.append(await daemon.client().mount(order))

        worker = (await daemon.client().statistics())["pid"]
        async with trio.open_nursery() as nursery:
            for order in orders:
                nursery.start_soon(ask, order)
            await trio.sleep(delay)
            if victim == "worker":
                os.kill(worker, signal.SIGKILL)
            else:
                await trio.to_thread.run_sync(daemon.kill_keeper)
                await trio.to_thread.run_sync(daemon.start)
        return found

    mounts = {mount.name: mount.path for mount in trio.run(order_and_kill)}
    assert set(mounts) == {mount["name"] for mount in daemon.ask("mounts")}
    assert first.name in mounts
    assert compare_trees(unpacked("base"), first.path) == []
    assert (mounts[name_of(orders)] / "usr/bin/python3").read_bytes()


def test_a_container_reads_on_while_the_keeper_is_killed_and_started_again(any_daemon, python, unpacked):
    expected = content_of(unpacked("python"))
    mounted = any_daemon.ask("mount", python.whole)
    with container(mounted.path, ALL_CONTENT) as reader:
        got = reader.stdout.read(1 << 20)
        orphan = any_daemon.worker
        any_daemon.kill_keeper()
        got += reader.stdout.read(1 << 20)
        any_daemon.start()
        got += reader.stdout.read()
        assert reader.wait() == 0
    assert got == expected
    assert any_daemon.worker != orphan
    assert [mount["state"] for mount in any_daemon.ask("mounts")] == ["live"]


def test_all_is_mounted_again_after_a_restart_even_without_the_registry(tmp_path, lab):
    with docker_registry(tmp_path / "registry") as address:
        image = published(lab, address, "base", tmp_path / "publisher")
        with running_daemon(tmp_path / "daemon") as daemon:
            mounted = daemon.ask("mount", image.whole)
            content = (mounted.path / "etc/passwd").read_bytes()
    assert not mounted.path.exists()
    with running_daemon(tmp_path / "daemon") as daemon:
        while [mount["state"] for mount in daemon.ask("mounts")] != ["remade"]:
            time.sleep(0.05)
        assert (mounted.path / "etc/passwd").read_bytes() == content
        daemon.kill()
        daemon.start()
        while [mount["state"] for mount in daemon.ask("mounts")] != ["remade"]:
            time.sleep(0.05)
        assert (mounted.path / "etc/passwd").read_bytes() == content


def test_what_cannot_be_mounted_again_is_said_to_be_stale(tmp_path, lab):
    with docker_registry(tmp_path / "registry") as address:
        image = published(lab, address, "base", tmp_path / "publisher")
        with running_daemon(tmp_path / "daemon") as daemon:
            mounted = daemon.ask("mount", image.whole)
    daemon.cache = tmp_path / "empty"
    with running_daemon(tmp_path / "daemon", tmp_path / "empty") as daemon:
        (there,) = daemon.ask("mounts")
        assert (there["name"], there["state"]) == (mounted.name, "stale")
        assert daemon.ask("keep", []) == [mounted.name]
        assert daemon.ask("mounts") == []


@pytest.mark.parametrize("driver", ["erofs", "fuse"])
def test_a_released_mount_waits_for_the_next_container_but_for_no_later_daemon(tmp_path, python, driver):
    flags = ["--driver", driver, "--linger", "3600"]
    with running_daemon(tmp_path / "daemon", flags=flags) as daemon:
        mounted = daemon.ask("mount", python.whole)
        device = mounted.path.stat().st_dev
        daemon.ask("release", mounted.name)
        assert [mount["state"] for mount in daemon.ask("mounts")] == ["idle"]
        assert daemon.ask("mount", python.whole) == mounted
        assert mounted.path.stat().st_dev == device
        daemon.kill_worker()  # what is in use again is gone on with
        assert [mount["state"] for mount in daemon.ask("mounts")] == ["live"]
        assert (mounted.path / "etc/passwd").read_bytes()
        daemon.ask("release", mounted.name)
        daemon.kill_worker()  # what nobody uses is not
        assert daemon.ask("mounts") == []
        assert not mounted.path.exists()


def test_a_released_mount_is_used_again_without_waiting_for_the_disk(tmp_path, python, monkeypatch):
    monkeypatch.setenv("LAZYFS_BOOT_PACK", "false")  # nothing comes unasked
    with running_daemon(tmp_path / "daemon", flags=["--linger", "3600"]) as daemon, ExitStack() as files:
        mounted = daemon.ask("mount", python.whole)
        assert (mounted.path / "usr/lib/os-release").read_bytes()
        orders = daemon.root / "orders.json"
        written = orders.stat().st_ino
        daemon.ask("release", mounted.name)
        contents = [files.enter_context(path.open("rb")) for path in daemon.cache.glob("layers/**/data")]

        def pages() -> int:
            sizes = [os.fstat(content.fileno()).st_size for content in contents]
            places = zip(contents, sizes, strict=True)
            return sum(pages_in_memory(content.fileno(), 0, size // PAGE) for content, size in places)

        def forgotten() -> bool:
            for content in contents:
                forget(content.fileno())
            return pages() == 0

        assert contents
        wait_until(forgotten)  # what came with what was read may land after it
        assert daemon.ask("mount", python.whole) == mounted
        wait_until(lambda: pages() > 0)
        assert orders.stat().st_ino == written


def test_a_released_mount_goes_after_a_while(tmp_path, python):
    with running_daemon(tmp_path / "daemon", flags=["--linger", "0.05"]) as daemon:
        mounted = daemon.ask("mount", python.whole)
        daemon.ask("release", mounted.name)
        while mounted.path.exists():
            time.sleep(0.05)
        assert daemon.ask("mounts") == []


def test_left_alone_by_sighup_a_mount_is_gone_on_with(tmp_path, python):
    with running_daemon(tmp_path / "daemon") as daemon:
        mounted = daemon.ask("mount", python.whole)
        daemon.stop(signal.SIGHUP)
        assert mounted.path.is_mount()
        daemon.start()
        while [mount["state"] for mount in daemon.ask("mounts")] != ["remade"]:
            time.sleep(0.05)
        assert (mounted.path / "etc/passwd").read_bytes()


def test_told_to_end_between_two_workers_it_ends_and_unmounts_everything(tmp_path, python):
    with running_daemon(tmp_path / "daemon") as daemon:
        daemon.ask("mount", python.orders[0])
        for _ in range(4):  # the pause before the next one grows
            daemon.kill_worker()
        children = Path(f"/proc/{daemon.keeper.pid}/task/{daemon.keeper.pid}/children")
        wait_until(lambda: not children.read_text())
        daemon.stop()
        assert mounts_below(tmp_path) == []


def test_an_orphan_with_nothing_to_serve_ends(daemon, python):
    mounted = daemon.ask("mount", python.orders[0])
    daemon.kill_keeper()
    assert is_locked(daemon.root)
    daemon.ask("release", mounted.name)
    wait_until(lambda: not is_locked(daemon.root))
    daemon.start()


def test_where_no_mount_point_can_be_made_only_the_order_fails(any_daemon, python):
    worker, mounts = any_daemon.worker, any_daemon.root / "mounts"
    mounts.rmdir()
    mounts.touch()
    with pytest.raises(MountError, match=r"cannot make .*: Not a directory"):
        any_daemon.ask("mount", python.orders[0])
    assert any_daemon.worker == worker
    mounts.unlink()
    (mounts / "of somebody else").mkdir(parents=True)
    (mounts / "of somebody else/file").touch()
    any_daemon.kill_worker()  # the next one lets alone what is none of its own
    assert (any_daemon.ask("mount", python.orders[0]).path / "etc/passwd").exists()


def test_a_second_daemon_is_refused(daemon, tmp_path):
    second = Daemon(tmp_path / "second")
    second.root = daemon.root
    second.launch()
    assert second.keeper.wait() == 71
    assert "another data daemon uses" in second.log_text()


def test_who_cannot_listen_ends_at_once_and_leaves_nothing(tmp_path):
    root = tmp_path / "root"
    words = ["daemon", "--root", root, "--socket", "/proc/no/daemon.sock", "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([executable(), *words], capture_output=True, text=True, check=False, timeout=60)
    said = "lazyfs: cannot listen at /proc/no/daemon.sock: No such file or directory\n"
    assert (done.returncode, done.stderr) == (71, said)
    assert mounts_below(root) == []
