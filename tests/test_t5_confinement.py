"""What a container is kept from, under both runtimes, asked of the kernel by its processes."""

import os

import pytest

# By machine: keyctl, bpf, io_uring_setup, clone3, unshare; numbers from the kernel's tables.
CALLS = {"x86_64": [250, 321, 425, 435, 272], "aarch64": [219, 280, 425, 435, 97]}

PROBE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for number, *arguments in eval(sys.argv[1]):
    got = libc.syscall(number, *map(ctypes.c_long, arguments))
    print(os.strerror(ctypes.get_errno()) if got < 0 else "done")
"""

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def python(lab_image) -> str:
    return f"oci:{lab_image('python')}:latest"


@pytest.fixture(params=["runc", "crun"])
def probe(request, containers, python):
    """What becomes of calls of the kernel in a container with these options."""
    keyctl, bpf, io_uring, clone3, unshare = CALLS[os.uname().machine]
    calls = [(keyctl, 0, -3, 0), (bpf, 999, 0, 0), (io_uring, 0, 0), (clone3, 0, 0), (unshare, 0x20000)]

    def ask(*options: str) -> list[str]:
        words = ("run", "--runtime", request.param, *options, python, "python3", "-c", PROBE, str(calls))
        return containers(*words).stdout.splitlines()

    return ask


def test_calls_that_reach_beyond_a_container_are_denied(probe):
    denied = "Operation not permitted"
    assert probe() == [denied, denied, denied, "Function not implemented", denied]
    allowed = probe("--cap-add", "SYS_ADMIN", "--cap-drop", "CHOWN")
    assert allowed == [denied, "Invalid argument", denied, "Invalid argument", "done"]
    free = probe("--security-opt", "seccomp=unconfined")
    assert free[0] != denied
    assert free[3] == "Invalid argument"


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_capabilities_and_privileges_are_as_wished(containers, python, tmp_path, runtime):
    (tmp_path / "profile").write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW",'
        ' "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}'
    )
    options = ["--cap-drop", "ALL", "--cap-add", "net_bind_service", "--security-opt", "no-new-privileges"]
    options += ["--security-opt", f"seccomp={tmp_path}/profile", "--runtime", runtime]
    script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; mkdir /x 2>&1"
    done = containers("run", *options, python, "sh", "-c", script, exit_code=1)
    *facts, said = done.stdout.splitlines()
    assert facts == ["CapEff:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"]
    assert said.endswith("No space left on device")
