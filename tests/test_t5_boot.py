"""From a recorded start to a cold one elsewhere: trace, optimize, explain, on a real image and registry."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lazyfs.oci.config import chain_ids
from tests.support.lab import push_layout
from tests.support.lab_registry import docker_registry
from tests.support.mount_server import wait_until
from tests.support.runner import LazyfsRunner, executable
from tests.support.service import orders_of, running_daemon

START = ["usr/lib/os-release", "etc/passwd", "usr/bin/cat", "usr/share/common-licenses/GPL-3"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, lab_image: Any) -> Iterator[str]:
    """The base image in a registry that may be pushed to, with its index."""
    place = tmp_path_factory.mktemp("registry")
    with docker_registry(place / "storage") as address:
        reference = f"{address}/base:1"
        push_layout(lab_image("base"), reference)
        maker(place)("index", "--push", reference)
        yield reference


def maker(place: Path) -> LazyfsRunner:
    return LazyfsRunner(home=place / "home", cache_dir=place / "cache")


def told(lazyfs: LazyfsRunner, *words: str | Path) -> Any:
    return json.loads(lazyfs(str(words[0]), *words[1:], "--json").stdout)


def read(mount_point: Path) -> list[bytes]:
    return [(mount_point / name).read_bytes() for name in START]


def wait_for_pack(lazyfs: LazyfsRunner, mount_point: Path) -> dict[str, Any]:
    """What explains the mount, once its boot pack is here."""
    end = time.monotonic() + 60
    while (found := told(lazyfs, "explain", mount_point))["boot"]["state"] in {"coming", "looked for"}:
        assert time.monotonic() < end
    return found


def test_a_start_that_was_recorded_costs_others_one_pack(published, lazyfs, tmp_path):
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    lazyfs("mount", "--record", published, mount_point)
    try:
        content = read(mount_point)
        live = json.loads(lazyfs("trace", "show", mount_point, "--json").stdout)
    finally:
        lazyfs("umount", mount_point)
    assert [file["path"] for file in live["files"]] == START
    assert sum(file["size"] for file in live["files"]) == sum(map(len, content))
    trace = tmp_path / "start.trace"
    trace.write_text(lazyfs("trace", "export", published).stdout)
    made = told(lazyfs, "optimize", "--push", "--trace", trace, published)
    assert made["published"]["new"]
    assert not told(lazyfs, "optimize", "--push", published)["published"]["new"]

    cold = LazyfsRunner(home=tmp_path / "home2", cache_dir=tmp_path / "cache2")
    found = told(cold, "inspect", published)["boot_pack"]
    assert (found["digest"], found["size"]) == (made["pack"], made["size"])
    assert "boot pack   none" in cold("inspect", published, env={"LAZYFS_BOOT_PACK": "false"}).stdout
    cold("mount", published, mount_point)
    try:
        explained = wait_for_pack(cold, mount_point)
        assert explained["boot"] == {"state": "done", "why": "", "leaves": made["leaves"]}
        assert read(mount_point) == content
        stats = told(cold, "stats", mount_point)
        none = {"requests": 0, "bytes": 0}
        packed = {"requests": stats["traffic"]["pack"]["requests"], "bytes": made["size"]}
        assert stats["traffic"] == {"demand": none, "pack": packed, "read-ahead": none, "background": none}
        assert stats["boot"]["written"] == made["leaves"]
        assert stats["reads"]["misses"] == 0
        (mount_point / "etc/shells").read_bytes()
        explained = told(cold, "explain", mount_point)
        assert explained["traffic"]["demand"]["requests"] == 1
        assert explained["lazy"]
        assert {layer["index"] for layer in explained["layers"]} == {"lazyfs"}
        said = cold("explain", mount_point).stdout
        assert "boot pack       done" in said
        assert "demand" in said
    finally:
        cold("umount", mount_point)


def test_a_command_is_run_and_recorded(published, lazyfs, tmp_path):
    environment = {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
    words = ("--", "sh", "-c", "cat /etc/os-release", "a secret")
    done = lazyfs("optimize", published, *words, env=environment)
    assert "Debian" in done.stdout
    assert "leaves" in done.stdout
    found = json.loads(lazyfs("trace", "show", published, "--json").stdout)
    assert found["precise"]
    assert found["command"] == "sh"
    assert "a secret" not in lazyfs("trace", "export", published).stdout
    assert "usr/lib/os-release" in [file["path"] for file in found["files"]]
    failed = lazyfs("optimize", published, "--", "sh", "-c", "exit 3", exit_code=3, env=environment)
    assert "no boot pack is made" in failed.stderr


def test_what_is_run_may_be_told_all_that_run_takes(published, lazyfs, tmp_path):
    environment = {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
    (tmp_path / "start").write_text('#!/bin/sh\necho "$WORD in $PWD"; cat /etc/debian_version\n')
    volume = f"{tmp_path}:/mine:ro"
    options = ("-e", "WORD=hello", "-w", "/var", "-v", volume, "--entrypoint", '["sh", "/mine/start"]')
    done = lazyfs("optimize", published, "--run", *options, env=environment)
    assert "hello in /var\n" in done.stdout
    found = json.loads(lazyfs("trace", "show", published, "--json").stdout)
    assert "etc/debian_version" in [file["path"] for file in found["files"]]
    refused = lazyfs("optimize", "-e", "WORD=hello", published, exit_code=64, env=environment)
    assert "--run" in refused.stderr


def test_a_command_that_is_deaf_ends_when_its_time_is_up(published, lazyfs):
    """The first process of a container gets no signal that it has no handler for."""
    environment = {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)}
    words = ("--for", "1", published, "--", "sh", "-c", "exec sleep 300", "sh")
    began = time.monotonic()
    assert "leaves" in lazyfs("optimize", *words, env=environment).stdout
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("told", [b"\x03", signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "INT", "TERM"])
def test_who_is_told_to_end_takes_the_container_along(published, lazyfs, told):
    """By a terminal, which tells all its processes, or by kill(1), which tells one."""
    words = [published, "--cache-dir", lazyfs.cache_dir, "--", "sh", "-c", "echo up; exec sleep 300"]
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", executable(), "optimize", *words],
        env=lazyfs.environment() | {"LAZYFS_CACHE_DIR": str(lazyfs.cache_dir)},
        stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as optimize:  # fmt: skip
        assert optimize.stdout is not None
        assert optimize.stderr is not None
        assert optimize.stdout.readline() == "up\n"
        for patience_s in (1, 1, 20, 20):  # the third kills what is deaf; those that come together are one
            if isinstance(told, bytes):
                os.write(master, told)
            else:
                optimize.send_signal(told)
            with contextlib.suppress(subprocess.TimeoutExpired):
                optimize.wait(patience_s)
                break
        assert optimize.wait(60) == 128 + (signal.SIGINT if isinstance(told, bytes) else told)
        assert "no boot pack is made" in optimize.stderr.read()
    os.close(master)
    os.close(slave)
    assert not [path for path in (lazyfs.cache_dir / "containers").iterdir() if path.is_dir()]


def test_the_background_brings_the_rest(published, lazyfs, tmp_path):
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    lazyfs("mount", "--background", "full", "--background-rate", "0", published, mount_point)
    try:
        end = time.monotonic() + 120
        while told(lazyfs, "explain", mount_point)["lazy"]:
            assert time.monotonic() < end
        counts = told(lazyfs, "stats", mount_point)
        assert counts["traffic"]["demand"]["requests"] == 0
        subprocess.run(["cat", mount_point / "usr/bin/tar"], check=True, stdout=subprocess.DEVNULL)
        assert told(lazyfs, "stats", mount_point)["source"] == counts["source"]
    finally:
        lazyfs("umount", mount_point)


def test_nothing_was_recorded_is_said(published, lazyfs):
    failed = lazyfs("optimize", published, exit_code=66)
    assert "no start of" in failed.stderr
    failed = lazyfs("trace", "show", published, exit_code=66)
    assert "no trace of" in failed.stderr


@pytest.mark.parametrize("alone", [False, True], ids=["a tree", "a layer alone"])
def test_where_a_start_turns_into_much_reading_the_daemons_kernel_reads_ahead_again(
    published, lazyfs, tmp_path, alone
):
    lazyfs("optimize", "--push", published, "--", "sh", "-c", "cat /etc/passwd", "--")
    facts = told(lazyfs, "inspect", published)
    ids = chain_ids(facts["config"]["rootfs"]["diff_ids"])
    layers = [layer["digest"] for layer in facts["manifest"]["layers"]]
    orders = orders_of(published, facts["digest"], layers, ids)
    order = replace(orders[0], alone=True) if alone else orders[-1]
    with running_daemon(tmp_path / "daemon", flags=["--driver", "fuse"]) as daemon:
        mounted = daemon.ask("mount", order)
        device = mounted.path.stat().st_dev
        knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert knob.read_text() == "16\n"
        subprocess.run(["sh", "-c", "tar -cf - usr | wc -c"], cwd=mounted.path, check=True)
        wait_until(lambda: knob.read_text() == "128\n")
        daemon.ask("release", mounted.name)
