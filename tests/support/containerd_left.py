"""What is left on a machine once everything was removed, and who still refers to it.

A call that a SIGKILL of containerd cut off is not taken up again by it. What such a call held stays until
whoever manages the machine removes it:

* a pull's lease, which ends by itself after a day;
* a sandbox or container of which the client was never told: CRI lists it after the restart, and the kubelet
  removes what belongs to no pod that it knows;
* the record of a container whose own files CRI had not written yet, or not all: CRI does not list it.
"""

import time

from tests.support.containerd_node import PROBE, PROGRAMS, Node

PATIENCE_S = 60
_LOG_LINES = 40


def give_back(machine: Node) -> None:
    """Remove what calls that were cut short hold, as the kubelet and who manages the machine would."""
    machine.cri.remove_pods()
    for container in machine.ctr("containers", "ls", "--quiet").split():
        machine.ctr("containers", "rm", container)
    listed = machine.ctr("snapshots", "--snapshotter", "lazyfs", "ls").split()
    for key in (word for word in listed if word.startswith(PROBE)):  # a probe of ours was cut off
        machine.ctr("snapshots", "--snapshotter", "lazyfs", "rm", key)
    for image in machine.ctr("images", "ls", "--quiet").split():
        machine.ctr("images", "rm", image)
    end_leases(machine)


def end_leases(machine: Node) -> None:
    """End all leases, and have collected what only they held."""
    for lease in machine.ctr("leases", "ls", "--quiet").split():
        machine.ctr("leases", "rm", "--sync", lease)


def nothing_is_left(machine: Node) -> None:
    """Once containerd has collected its garbage, and the daemon was told."""
    machine.wait_until_ready()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        machine.collect_garbage()
        left = [machine.snapshots.names(), machine.mounts(), machine.directories(), list(machine.blobs())]
        if not any(left):
            return
        assert time.monotonic() < deadline, f"{left}\n{who_refers(machine)}"
        time.sleep(0.2)


def who_refers(machine: Node) -> str:
    """All that containerd's records have, and what the programs said last."""
    lists = (
        *(("leases", "ls"), ("images", "ls"), ("containers", "ls"), ("tasks", "ls"), ("content", "ls")),
        ("snapshots", "--snapshotter", "lazyfs", "ls"),
    )
    said = [f"ctr {' '.join(words)}:\n{machine.ctr(*words)}" for words in lists]
    said.append(f"CRI: sandboxes {machine.cri.pods()}, containers {machine.cri.containers()}")
    logs = {program: machine.log(program).splitlines()[-_LOG_LINES:] for program in PROGRAMS}
    return "\n".join([*said, *("\n".join([f"{program}:", *lines]) for program, lines in logs.items())])
