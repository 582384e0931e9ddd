"""The terminal of a container, beside our own."""

import fcntl
import os
import pty
import selectors
import subprocess
import sys
import termios

from lazyfs.container.terminal import Terminal

SHOWS_ONE_LETTER = """
import os, pty
from lazyfs.container.terminal import Terminal
master, slave = pty.openpty()
with Terminal(master, interactive=True):
    os.write(slave, b"x")
"""


def test_our_terminal_is_as_before_though_nobody_reads_what_is_shown() -> None:
    ours, given = pty.openpty()
    reader, writer = os.pipe()
    os.close(reader)
    before = termios.tcgetattr(given)
    done = subprocess.run(
        [sys.executable, "-c", SHOWS_ONE_LETTER],
        stdin=given, stdout=writer, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert b"BrokenPipeError" in done.stderr
    assert termios.tcgetattr(given) == before
    for descriptor in (ours, given, writer):
        os.close(descriptor)


def test_a_container_that_shows_without_end_leaves_others_their_turn(monkeypatch) -> None:
    master, shown = os.open("/dev/zero", os.O_RDWR), os.memfd_create("shown", os.MFD_ALLOW_SEALING)
    os.ftruncate(shown, 8 << 20)
    fcntl.fcntl(shown, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)  # who shows more than that fails
    monkeypatch.setattr("lazyfs.container.terminal._STDOUT", shown)
    with selectors.DefaultSelector() as selector, Terminal(master, interactive=False) as terminal:
        terminal.move(master, selector)
        assert os.lseek(shown, 0, os.SEEK_CUR) <= 1 << 20
    os.close(shown)


def test_a_terminal_that_nobody_has_open_is_not_typed_into(monkeypatch) -> None:
    master, slave = pty.openpty()
    stdin, _ = ends = os.pipe()
    monkeypatch.setattr("lazyfs.container.terminal._STDIN", stdin)
    with selectors.DefaultSelector() as selector, Terminal(master, interactive=True) as terminal:
        terminal.register(selector)
        os.close(slave)
        terminal.move(master, selector)
        assert not selector.get_map()
    for end in ends:
        os.close(end)
