"""From an orphaned daemon to the next keeper: all descriptors or none, whoever of them is stopped or dies."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.flock import try_flock
from lazyfs.service.survival import descriptors, handover
from tests.support.crash import child, lines, stop

ORPHAN = """
    import os, sys
    from pathlib import Path
    from lazyfs.flock import try_flock
    from lazyfs.service.survival import handover

    root = Path(sys.argv[1])
    assert try_flock(os.open(root / "lock", os.O_RDWR | os.O_CREAT))
    listening = handover.offer(root)
    print("offered")
    sys.stdin.readline()
"""


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A root that a daemon has: we."""
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert try_flock(descriptor)
    yield tmp_path
    os.close(descriptor)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who is stopped is waited for."""
    monkeypatch.setattr(handover, "_PATIENCE_S", 0.0)


def open_here() -> set[int]:
    """All descriptors, but that of the listing itself."""
    return {int(link.name) for link in Path("/proc/self/fd").iterdir() if link.exists()}


def claimed_from(
    root: Path, orphan: Callable[[socket.socket], None]
) -> tuple[dict[str, int], os.stat_result]:
    """What a keeper gets of an orphan, and what the socket is at which that listens."""
    with handover.offer(root) as listening:
        thread = threading.Thread(target=orphan, args=(listening,))
        thread.start()
        kept = handover.claim(root)
        thread.join()
        return kept, os.fstat(listening.fileno())


def test_all_that_is_kept_is_handed_over_once_it_was_taken(locked: Path) -> None:
    told = []

    def hand_over(listening: socket.socket) -> None:
        with listening.accept()[0] as keeper:
            told.append(handover.hand_over(keeper, dict.fromkeys(("one", "two"), listening.fileno())))

    kept, listening = claimed_from(locked, hand_over)
    assert told == [True]
    assert sorted(kept) == ["one", "two"]
    for descriptor in kept.values():
        assert os.path.samestat(os.fstat(descriptor), listening)
        os.close(descriptor)


def test_a_stopped_orphan_is_named_and_not_waited_for_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_SILENCE_S", 0.01)
    monkeypatch.setattr(handover, "_ANSWER_S", 0.01)
    with child(ORPHAN, tmp_path) as orphan:
        assert lines(orphan, 1) == ["offered"]
        stop(orphan.pid)
        assert handover.claim(tmp_path) == {}
        (line,) = capsys.readouterr().err.splitlines()
        who = f"process {orphan.pid}, which is stopped: `kill -CONT {orphan.pid}` lets it go on"
        assert line == f"lazyfs: waiting for the data daemon of before in {tmp_path}: it is {who}"


def test_who_was_taken_for_dead_asks_again(locked: Path) -> None:
    told = []

    def hand_over_late(listening: socket.socket) -> None:
        with listening.accept()[0] as keeper:
            keeper.shutdown(socket.SHUT_RD)
            keeper.send(b"ALL=1\n")
            with listening.accept()[0] as again:
                told.append(handover.hand_over(again, {"one": listening.fileno()}))

    kept, _ = claimed_from(locked, hand_over_late)
    assert told == [True]
    assert list(kept) == ["one"]
    os.close(kept["one"])


def test_half_of_it_is_nothing(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_SILENCE_S", 0.01)
    monkeypatch.setattr(handover, "_ANSWER_S", 0.5)
    held = []

    def send_half() -> None:
        held.append(listening.accept()[0])
        descriptors.send(held[0], descriptors.store("one"), [listening.fileno()])

    with handover.offer(locked) as listening:
        before = open_here()
        thread = threading.Thread(target=send_half)
        thread.start()
        assert handover.claim(locked) == {}
        thread.join()
        assert open_here() - before == {held[0].fileno()}
        with held[0], pytest.raises(OSError, match="Broken pipe"):
            held[0].send(b"ALL=1\n")  # it was told that nothing was taken


@pytest.mark.parametrize("how", ["gone", "done without a word", "silent"])
def test_who_does_not_take_it_is_not_given_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_TAKEN_S", 0.01)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Path(os.devnull).open() as file:
        if how == "gone":
            theirs.close()
        elif how == "done without a word":
            theirs.shutdown(socket.SHUT_WR)
        assert not handover.hand_over(ours, {"one": file.fileno()})
