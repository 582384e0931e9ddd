"""The doctor, of what ordinary users' mounts and containers stand on."""

import pytest

from lazyfs.doctor.users import check_id_ranges, check_runtime_directory, check_user_namespaces
from tests.support.doctors import machine_at, program, states

ALLOWED = {
    "/proc/sys/user/max_user_namespaces": "100\n",
    "/proc/sys/kernel/unprivileged_userns_clone": "1\n",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0\n",
}


@pytest.mark.parametrize(("file", "value"), list(zip(ALLOWED, ("0\n", "0\n", "1\n"), strict=True)))
def test_user_namespaces_can_be_switched_off(tmp_path, file, value) -> None:
    assert states(check_user_namespaces(machine_at(tmp_path, ALLOWED))) == {"user namespaces": "ok"}
    (found,) = check_user_namespaces(machine_at(tmp_path, ALLOWED | {file: value}))
    assert found.state.value == "warning"
    assert file.removeprefix("/proc/sys/").replace("/", ".") in found.advice


def test_most_kernels_lack_the_switches_of_distributions(tmp_path) -> None:
    machine = machine_at(tmp_path)
    assert states(check_user_namespaces(machine)) == {"user namespaces": "warning"}
    machine_at(tmp_path, dict([*ALLOWED.items()][:1]))
    assert states(check_user_namespaces(machine)) == {"user namespaces": "ok"}


def test_ordinary_users_take_ranges_of_ids(tmp_path) -> None:
    assert list(check_id_ranges(machine_at(tmp_path))) == []
    user = machine_at(tmp_path, {"/etc/subuid": "4242:100000:65536\n", "/etc/subgid": "1:100000:9\n"}, 4242)
    program(tmp_path, "newuidmap", "")
    (found,) = check_id_ranges(user)
    assert found.fact == "newgidmap cannot be found"
    program(tmp_path, "newgidmap", "")
    (found,) = check_id_ranges(user)
    assert found.fact == "there is no range of ours in /etc/subgid"
    (tmp_path / "etc/subgid").write_text("4242:100000:65536\n")
    assert states(check_id_ranges(user)) == {"ids": "ok"}


def test_the_runtime_directory_must_be_ours_alone(tmp_path) -> None:
    place = tmp_path / "run"
    assert states(check_runtime_directory(place)) == {"runtime directory": "ok"}
    assert not place.exists()
    for mode, state in ((0o700, "ok"), (0o755, "problem"), (0o750, "problem")):
        place.mkdir(exist_ok=True)
        place.chmod(mode)
        assert states(check_runtime_directory(place)) == {"runtime directory": state}
