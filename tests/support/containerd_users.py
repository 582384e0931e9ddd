"""What pods with user namespaces need of a machine: a runtime that maps mounts, and networks of their own."""

import json
from pathlib import Path

from tests.support.containerd_node import Node
from tests.support.debian_tools import tools
from tests.support.lab import Lab

_RUNTIME = 'plugins."io.containerd.cri.v1.runtime"'
_HYBRID = "/sys/fs/cgroup/unified"
_PLUGIN = """#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
ADD) echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}],
  "ips": [{"address": "198.51.100.1/32", "interface": 0}]}' ;;
esac
"""


def configuration(lab: Lab, top: Path) -> str:
    """More for the configuration of a containerd 2.

    Args:
        lab: keeps the runtime.
        top: an empty directory, for a network that leads nowhere.
    """
    programs, networks = top / "programs", top / "networks"
    programs.mkdir()
    networks.mkdir()
    (programs / "nowhere").write_text(_PLUGIN)
    (programs / "nowhere").chmod(0o755)
    network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "nowhere"}]}
    (networks / "pods.conflist").write_text(json.dumps(network))
    return f"""
[{_RUNTIME}.cni]
bin_dirs = ["{programs}"]
conf_dir = "{networks}"
use_internal_loopback = true
[{_RUNTIME}.containerd.runtimes.runc.options]
BinaryName = "{_crun(lab)}"
"""


def hide_hybrid_cgroups(machine: Node) -> None:
    """crun takes either version of cgroups, not both at once."""
    machine.inside("sh", "-c", f"! mountpoint -q {_HYBRID} || umount {_HYBRID}")


def _crun(lab: Lab) -> Path:
    """A crun that maps mounts: the runc and crun of Debian 12 do not."""
    unpacked = tools(lab, "crun-packages", "trixie", ("crun",))
    return lab.once("tools/crun-1", lambda out: unpacked.copy("usr/bin/crun", out))
