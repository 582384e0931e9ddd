"""The erofs driver, mounted for real; and that both drivers show the same."""

import os
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from indexer.toc import Kind
from tests.support.mount_server import (
    PATIENCE_S,
    directory,
    error_of,
    file,
    hardlink,
    mounted,
    special,
    started,
    symlink,
    wait_until,
    write_image,
)

CONTENT = os.urandom(1_000_000)
IN_NAMESPACE = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
TREE = [
    [
        file(b"big", CONTENT, mode=0o4755, mtime_ns=1_234_567_890_123_456_789),
        hardlink(b"dir/again", b"big", mode=0o4755, mtime_ns=1_234_567_890_123_456_789),
        directory(b"dir", mode=0o1777, uid=1, gid=70_000, mtime_ns=-1),
        symlink(b"dir/link", b"../big"),
        symlink(b"long link", b"./" * 2000 + b"big"),
        file(b"empty", mtime_ns=-(10**9)),
        special(b"null", Kind.CHARACTER, (1, 3)),
        special(b"disk", Kind.BLOCK, (259, 70_000)),
        special(b"pipe", Kind.FIFO),
        file(b"ping", b"x", xattrs=((b"security.capability", CAPABILITY), (b"user.a", b"v" * 3000))),
        *[file(b"many/%05d" % number, b"%d" % number) for number in range(3000)],
    ],
    [file(b"upper", CONTENT[::-1]), file(b"\xff\xfe\n", b"odd")],
]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("erofs") / "image", TREE)


@pytest.fixture(params=[False, True], ids=["own", "pyfuse3"])
def erofs(request):
    """The driver, with either session."""
    return {"driver": "erofs", "by_pyfuse3": request.param}


@pytest.fixture
def two_layers(tmp_path):
    away = [file(b"away", b"a" * 500_000), file(b"away too", b"b" * 9000)]
    return write_image(tmp_path / "image", [[file(b"here", b"h" * 500_000)], away])


def everything(tree: Path) -> dict[bytes, tuple]:
    """All that a program can learn of a tree."""
    seen = {}
    top = os.fsencode(tree)
    for directory_path, names, files in os.walk(top):
        for name in (b".", *names, *files):
            path = directory_path + b"/" + name
            found = os.lstat(path)
            xattrs = sorted(os.listxattr(path, follow_symlinks=False))
            seen[path.removeprefix(top)] = (
                found[: stat.ST_CTIME],
                (found.st_mtime_ns, found.st_atime_ns, found.st_ctime_ns, found.st_rdev),
                [(key, os.getxattr(path, key, follow_symlinks=False)) for key in xattrs],
                os.readlink(path) if stat.S_ISLNK(found.st_mode) else b"",  # noqa: PTH115  # bytes
                Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(found.st_mode) else b"",
            )
    return {path: tuple(fields) for path, fields in seen.items()}


def without_device(seen: dict[bytes, tuple]) -> dict[bytes, tuple]:
    return {
        path: ([value for index, value in enumerate(fields[0]) if index != stat.ST_DEV], *fields[1:])
        for path, fields in seen.items()
    }


def test_both_drivers_show_the_same(image, tmp_path, erofs):
    with mounted(image, tmp_path / "fuse") as server:
        through_fuse = without_device(everything(server.mount_point))
    with mounted(image, tmp_path / "erofs", "local", "remote", **erofs) as server:
        assert server.mount.fstype == b"erofs"
        assert server.mount.source == os.fsencode(image / "metadata")
        assert without_device(everything(server.mount_point)) == through_fuse
        assert server.logged == ""
    assert len(through_fuse) > 3010


def test_loop_devices_serve_older_kernels(image, tmp_path):
    with mounted(image, tmp_path / "mnt", driver="loop") as server:
        used = server.mount.source.decode()
        assert used.startswith("/dev/loop")
        use = Path(f"/sys/block/{Path(used).name}/diskseq")
        ours = use.read_text()
        assert (server.mount_point / "big").read_bytes() == CONTENT
        assert (server.mount_point / "upper").read_bytes() == CONTENT[::-1]
        assert server.terminate() == 0
    wait_until(lambda: use.read_text() != ours)  # a test beside this one may have it at once


def test_metadata_on_tmpfs_is_served_through_fuse(tmp_path, erofs):
    memory = tmp_path / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "memory", memory], check=True)
    try:
        image = write_image(memory / "image", [[file(b"d/a", b"content")]])
        with mounted(image, tmp_path / "mnt", **erofs) as server:
            assert server.mount.source.startswith(b"/proc/self/fd/")
            assert (server.mount_point / "d/a").read_bytes() == b"content"
    finally:
        subprocess.run(["umount", memory], check=True)


def test_a_metadata_file_far_away_is_mounted(tmp_path, erofs):
    far = tmp_path.joinpath(*["d" * 200] * 3)
    far.mkdir(parents=True)
    image = write_image(far / "image", [[file(b"a", b"content")]])
    with mounted(image, tmp_path / "mnt", **erofs) as server:
        assert (server.mount_point / "a").read_bytes() == b"content"


def test_an_image_of_300_layers_is_mounted(tmp_path, erofs):
    layers = [[file(b"%d" % number, b"content %d" % number)] for number in range(300)]
    image = write_image(tmp_path / "image", layers)
    with mounted(image, tmp_path / "mnt", **erofs) as server:
        for number in (0, 1, 150, 299):
            assert (server.mount_point / str(number)).read_bytes() == b"content %d" % number


def read_ahead_of(bdis: set[Path]) -> set[str]:
    """Of those that are still there: mounts of tests beside this one come and go."""
    found = set()
    for bdi in bdis:
        with suppress(OSError):
            found.add((bdi / "read_ahead_kb").read_text())
    return found


def test_options_reach_the_kernel(image, tmp_path, erofs):
    found: set[str] = set()
    for _ in range(5):  # tests beside this one may mount at the same instant, and turn each other's knobs
        before = set(Path("/sys/class/bdi").glob("erofs-*"))
        with mounted(image, tmp_path / "mnt", **erofs, read_ahead_kb=16) as server:
            assert {b"ro", b"nosuid", b"nodev"} <= server.mount.options
            found |= read_ahead_of(set(Path("/sys/class/bdi").glob("erofs-*")) - before)
        if "16\n" in found:
            break
    assert "16\n" in found
    with mounted(image, tmp_path / "mnt", **erofs, setuid=True, devices=True) as server:
        assert not {b"nosuid", b"nodev"} & server.mount.options


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_reader_of_a_stalled_layer_can_be_killed_and_nobody_else_waits(two_layers, tmp_path, number, erofs):
    how = {**erofs, "read_timeout_s": 1000}
    with mounted(two_layers, tmp_path / "mnt", "local", "stalled", **how) as server:
        readers = [subprocess.Popen(["cat", server.mount_point / "away"]) for _ in range(10)]
        assert (server.mount_point / "here").read_bytes() == b"h" * 500_000
        for reader in readers:
            assert reader.poll() is None
            reader.send_signal(number)
            assert reader.wait(PATIENCE_S) == -number


def test_after_an_error_a_reader_can_still_be_killed(two_layers, tmp_path, erofs):
    how = {**erofs, "read_timeout_s": 1000}
    with mounted(two_layers, tmp_path / "mnt", "local", "divided", **how) as server:
        assert error_of((server.mount_point / "away").read_bytes) == "EIO"
        reader = subprocess.Popen(["cat", server.mount_point / "away too"])
        assert (server.mount_point / "here").read_bytes() == b"h" * 500_000
        reader.kill()
        assert reader.wait(PATIENCE_S) == -signal.SIGKILL


@pytest.mark.parametrize("behaviour", ["unreachable", "corrupt", "buggy"])
def test_a_failing_layer_fails_its_readers_alone(two_layers, tmp_path, behaviour, erofs):
    with mounted(two_layers, tmp_path / "mnt", "local", behaviour, **erofs) as server:
        assert error_of((server.mount_point / "away").read_bytes) == "EIO"
        assert (server.mount_point / "here").read_bytes() == b"h" * 500_000
        assert "answer" in server.logged


def test_after_the_deadline_a_reader_gets_an_error(two_layers, tmp_path, erofs):
    how = {**erofs, "read_timeout_s": 0.1}
    with mounted(two_layers, tmp_path / "mnt", "local", "stalled", **how) as server:
        assert error_of((server.mount_point / "away").read_bytes) == "EIO"
        assert server.logged.count("no answer within 0.1 s") == 1


def test_the_daemon_ends_when_anybody_unmounts(two_layers, tmp_path, erofs):
    with mounted(two_layers, tmp_path / "mnt", **erofs) as server:
        subprocess.run(["umount", server.mount_point], check=True)
        assert server.process.wait(PATIENCE_S) == 0
        assert server.logged == ""


def test_the_mount_ends_when_the_daemon_is_told_to(two_layers, tmp_path, erofs):
    how = {**erofs, "read_timeout_s": 1000}
    with mounted(two_layers, tmp_path / "mnt", "local", "stalled", **how) as server:
        reader = subprocess.Popen(["cat", server.mount_point / "away"])
        reader.kill()
        reader.wait(PATIENCE_S)
        assert server.terminate() == 0
        assert server.mount is None
        assert server.logged == ""


def test_a_mount_in_use_fails_its_users_when_the_daemon_is_told_to_end(two_layers, tmp_path, erofs):
    with (
        mounted(two_layers, tmp_path / "mnt", **erofs) as server,
        (server.mount_point / "here").open("rb", buffering=0) as held,
    ):
        assert server.terminate() == 0
        assert server.mount is None
        assert error_of(held.read) == "EIO"
        assert "still in use" in server.logged


def test_what_a_dead_daemon_leaves_is_read_as_far_as_it_is_there(two_layers, tmp_path, erofs):
    with mounted(two_layers, tmp_path / "mnt", **erofs) as server:
        assert (server.mount_point / "here").read_bytes() == b"h" * 500_000
        server.process.kill()
        server.process.wait()
        assert (server.mount_point / "here").read_bytes() == b"h" * 500_000
        assert (server.mount_point / "away").stat().st_size == 500_000
        assert error_of((server.mount_point / "away").read_bytes) == "EIO"


def test_the_daemon_serves_until_the_last_mount_namespace_lets_go(two_layers, tmp_path, erofs):
    with mounted(two_layers, tmp_path / "mnt", **erofs) as server:
        command = [*IN_NAMESPACE, 'echo; read line; cat "$0"', server.mount_point / "away"]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout.readline() == b"\n"
        subprocess.run(["umount", server.mount_point], check=True)
        assert server.process.poll() is None
        output, _ = other.communicate(b"go\n", timeout=PATIENCE_S)
        assert output == b"a" * 500_000
        assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("driver", ["fuse", "erofs"])
def test_an_overlay_over_the_mount_is_a_writable_tree(image, tmp_path, driver):
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    with mounted(image, tmp_path / "mnt", driver=driver, setuid=True, devices=True) as server:
        options = f"lowerdir={server.mount_point},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        root = tmp_path / "root"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
        try:
            with (root / "big").open("ab") as opened:
                opened.write(b"more")
            (root / "upper").unlink()
            shutil.rmtree(root / "dir")
            (root / "new").write_bytes(b"new")
            assert (root / "big").read_bytes() == CONTENT + b"more"
            assert error_of(os.stat, root / "upper") == "ENOENT"
            assert os.getxattr(root / "ping", "security.capability") == CAPABILITY
            assert len(list((root / "many").iterdir())) == 3000
        finally:
            subprocess.run(["umount", root], check=True)
        assert (server.mount_point / "big").read_bytes() == CONTENT


def test_auto_takes_erofs_and_says_why(two_layers, tmp_path):
    with mounted(two_layers, tmp_path / "mnt", driver="auto") as server:
        assert server.said() == "erofs: the kernel can read the image by itself"
        assert server.mount.fstype == b"erofs"


def test_auto_falls_back_to_fuse_without_the_right_to_mount_erofs(two_layers, tmp_path):
    prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    with mounted(two_layers, tmp_path / "mnt", driver="auto", prefix=prefix) as server:
        said = server.said()
        assert said.startswith("fuse: the erofs driver does not work here: the kernel cannot mount erofs: ")
        assert "Operation not permitted" in said


def test_auto_falls_back_to_fuse_when_a_step_fails(two_layers, tmp_path):
    without_loops = [*IN_NAMESPACE, 'mount --bind /dev/null /dev/loop-control && exec "$@"', "-"]
    with mounted(two_layers, tmp_path / "mnt", driver="auto-loop", prefix=without_loops) as server:
        assert server.said().startswith("fuse: the erofs driver does not work here: no loop device for ")


def test_auto_does_not_hide_that_the_place_is_taken(two_layers, tmp_path):
    with (
        mounted(two_layers, tmp_path / "mnt", driver="auto"),
        started(two_layers, tmp_path / ".." / tmp_path.name / "mnt", driver="auto") as second,
    ):
        assert second.said().startswith("AlreadyMounted: ")
        assert second.process.wait(PATIENCE_S) == 0
