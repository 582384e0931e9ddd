"""One more process in a container, under both runtimes, and what `lazyfs stats` says of containers."""

import json
import os
import pty
import select
import subprocess
import termios
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.containers import Containers, until
from tests.support.runner import LazyfsRunner, executable

FOR_EVER = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"

pytestmark = pytest.mark.usefixtures("nothing_left")


class Box(NamedTuple):
    """A container named box."""

    process: subprocess.Popen
    pid: int


@pytest.fixture(params=["runc", "crun"])
def box(request, containers, lab_image) -> Iterator[Box]:
    image = f"oci:{lab_image('node')}:latest"
    options = ["--runtime", request.param, "--name", "box", "-e", "A=first", "--cap-drop", "CHOWN"]
    with containers.started(*options, image, "sh", "-c", FOR_EVER) as process:
        pid = containers.pid("box")
        assert process.stdout.readline() == "ready\n"
        yield Box(process, pid)
        process.terminate()
        assert process.wait(30) == 7


def test_a_process_is_like_the_first_or_as_wished(containers, box):
    script = 'id -u; pwd; echo "$A $B $HOME"; grep -E "CapEff|CapBnd|Seccomp:" /proc/self/status; cat'
    plain = containers("exec", "-e", "B", "box", "sh", "-c", script, env={"B": "ours"}, told="unheard")
    uid, directory, variables, effective, bounding, seccomp = plain.stdout.splitlines()
    assert (uid, variables, seccomp) == ("1000", f"first ours {os.fspath('/home/node')}", "Seccomp:\t2")
    assert (effective, bounding) == ("CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fa")
    root = containers(
        *("exec", "-i", "-u", "0", "-w", "/etc", "-e", "A=second", "box", "sh", "-c", script), told="heard"
    )
    assert root.stdout.splitlines() == [
        *("0", "/etc", "second  /root"),
        *("CapEff:\t00000000a80425fa", "CapBnd:\t00000000a80425fa", "Seccomp:\t2", "heard"),
    ]
    assert directory != "/etc"
    assert root.stderr == plain.stderr == ""


def test_the_exit_code_is_the_processs_or_says_why_there_was_none(containers, box):
    containers("exec", "box", "sh", "-c", "exit 33", exit_code=33)
    assert "not found" in containers("exec", "box", "no-such", exit_code=127).stderr
    assert "may not be" in containers("exec", "box", "/etc/passwd", exit_code=126).stderr
    assert "'other'" in containers("exec", "other", "id", exit_code=125).stderr


def test_a_terminal_is_one(containers, box):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    # crun gives the terminal its size once the process runs already.
    sized = "while test \"$(stty size)\" = '0 0'; do :; done; stty size"
    words = ["exec", "-it", "box", "sh", "-c", f"test -t 0 && {sized}; read line; echo got $line"]
    process = subprocess.Popen(
        [executable(), *words], env=containers.environment, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True,
    )  # fmt: skip
    shown = b""
    try:
        os.write(master, b"words\r")
        while b"got words" not in shown:
            assert select.select([master], [], [], 60)[0], shown
            shown += os.read(master, 4096)
        assert b"33 77" in shown
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_stats_know_containers_by_name(containers, box):
    (of_all,) = json.loads(containers("stats", "--json").stdout)
    assert (of_all["container"], of_all["requests"]) == ("box", 0)
    assert json.loads(containers("stats", "--json", "box").stdout)["mount_point"] == of_all["mount_point"]
    assert "container       box" in containers("stats").stdout.splitlines()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_name_is_another_one_in_another_cache(containers, lab_image, tmp_path, runtime):
    """As two users of a machine may both call theirs so; cgroups are the machine's."""
    others = Containers(LazyfsRunner(home=tmp_path / "home", cache_dir=tmp_path / "cache"))
    words = ["--runtime", runtime, "--name", "twin", f"oci:{lab_image('base')}:latest", "sh", "-c", FOR_EVER]
    with containers.started(*words) as ours, others.started(*words) as theirs:
        for process in (ours, theirs):
            assert process.stdout.readline() == "ready\n"
        for process in (theirs, ours):
            process.terminate()
            assert process.wait(30) == 7
    until(lambda: not others.left(), f"{others.left()} go")
