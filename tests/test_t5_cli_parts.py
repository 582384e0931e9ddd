"""Commands in small: variables for containers, the time of what is made, dead mounts, failed recordings."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.cli.build_time import build_time
from lazyfs.cli.containers import variables
from lazyfs.cli.followed import run_followed
from lazyfs.errors import ConfigError, ContainerError
from lazyfs.exit_codes import BUG
from lazyfs.mount_states import MountStates
from tests.support.images import build_image, write_layout
from tests.support.tars import file, tar


def test_variables_come_from_files_first_and_files_are_named_when_they_are_wrong(tmp_path) -> None:
    good, no_text, no_name = (tmp_path / name for name in ("good", "no-text", "no-name"))
    good.write_text("A=1\n# none\nB\n")
    no_text.write_bytes(b"A=\xff\n")
    no_name.write_text("A=1\n=2\n")
    assert list(variables([good], ["A=2", "C"], {"B": "ours"})) == ["A=1", "B=ours", "A=2"]
    for wrong in (no_text, no_name):
        with pytest.raises(ContainerError, match=f"^{wrong}: "):
            list(variables([wrong], [], {}))


def test_the_time_of_what_is_made_can_be_set() -> None:
    assert build_time({"SOURCE_DATE_EPOCH": "86400"}).isoformat() == "1970-01-02T00:00:00+00:00"
    assert build_time({"SOURCE_DATE_EPOCH": ""}).microsecond == 0
    for wrong in ("yesterday", "9" * 12, "9" * 30):
        with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH is seconds since 1970"):
            build_time({"SOURCE_DATE_EPOCH": wrong})


@pytest.mark.parametrize("command", ["stats", "explain"])
def test_of_a_mount_that_died_a_line_tells_and_the_others_are_told_of(lazyfs, tmp_path, command) -> None:
    state = MountStates(tmp_path / "run").path(Path("/gone"))
    state.mkdir(parents=True)
    state.parent.chmod(0o700)
    facts = {"mount_point": "/gone", "image": "app", "digest": "", "driver": "fuse", "pid": 1}
    (state / "mount.json").write_text(json.dumps(facts))
    done = lazyfs(command, "--json", env={"LAZYFS_RUNTIME_DIR": str(state.parent)})
    assert json.loads(done.stdout) == []
    said = (
        "lazyfs: the daemon of /gone does not answer (No such file or directory); lazyfs umount cleans up\n"
    )
    assert done.stderr == said


def test_no_boot_pack_is_made_of_a_command_that_fails_before_its_time_is_up(lazyfs, tmp_path) -> None:
    layout = write_layout(tmp_path / "layout", {"latest": build_image([tar(file(b"f", b"1"))])})
    done = lazyfs("optimize", "--for", "60", f"oci:{layout}", "--", "nothing", exit_code=127)
    assert done.stderr.splitlines()[-1] == "lazyfs: the command ended with 127: no boot pack is made of that"


def test_a_bug_in_a_part_that_has_a_process_of_its_own_is_told(capfd):
    def work(_begun: Callable[[], None]) -> int:
        raise KeyError("gone")

    assert run_followed(work) == BUG
    assert capfd.readouterr().err == "lazyfs: a bug: KeyError: 'gone'\n"


def test_the_time_of_a_part_is_counted_from_where_it_says_so(tmp_path):
    def work(begun: Callable[[], None]) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        early = signal.sigtimedwait({signal.SIGTERM}, 0.3)
        begun()
        signal.sigwait({signal.SIGTERM})
        (tmp_path / "told").write_text("too early" if early else "in time")
        return 0

    assert run_followed(work, 0.01) == 0
    assert (tmp_path / "told").read_text() == "in time"
