"""A container's terminal: bytes between its master side and our own terminal, and the window's size."""

import errno
import os
import selectors
import termios
import tty
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

_PIECE: Final = 64 << 10
_MOST_LEFT: Final = 1 << 20
"""How much is still shown at the end: a dead container left less, a living one could go on for ever."""

_STDIN: Final = 0
_STDOUT: Final = 1
_CLOSED: Final = -1


def window_size() -> tuple[int, int] | None:
    """Rows and columns of our own terminal; None if we have none."""
    for descriptor in (_STDIN, _STDOUT):
        with suppress(OSError, termios.error):
            return termios.tcgetwinsize(descriptor)
    return None


class Terminal:
    """Passes on what is typed and what is shown. A context manager: in it our own terminal is raw.

    Args:
        master: the terminal's master side; closed at the end.
        interactive: whether what is typed is passed on.
    """

    def __init__(self, master: int, *, interactive: bool) -> None:
        self._master = master
        self._interactive = interactive
        self._saved: list[Any] | None = None
        self._typed = b""
        os.set_blocking(master, False)

    def __enter__(self) -> Self:
        if self._interactive and os.isatty(_STDIN):
            self._saved = termios.tcgetattr(_STDIN)
            tty.setraw(_STDIN)
        self.resize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._show_rest()
        finally:  # also where nobody sees it any more
            if self._saved is not None:
                with suppress(termios.error):  # it hung up
                    termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._saved)
            self._close()

    def resize(self) -> None:
        """Give the terminal the size of ours."""
        size = window_size()
        if size is not None and self._master != _CLOSED:
            termios.tcsetwinsize(self._master, size)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have the selector watch what we read."""
        selector.register(self._master, selectors.EVENT_READ, self)
        if self._interactive:
            selector.register(_STDIN, selectors.EVENT_READ, self)

    def move(self, descriptor: int, selector: selectors.BaseSelector) -> None:
        """Pass on what a descriptor has, or can take: one piece, so that signals have their turn too."""
        if descriptor == _STDIN:
            self._typed = _read(_STDIN)
            selector.unregister(_STDIN)  # until that has been taken
            if not self._typed:  # our terminal hung up: so does the container's, which nobody will see again
                selector.unregister(self._master)
                self._close()
                return
        elif self._show() == b"":
            self._watch_no_more(selector)
            return
        self._type(selector)

    def _close(self) -> None:
        if self._master != _CLOSED:
            os.close(self._master)
            self._master = _CLOSED

    def _watch_no_more(self, selector: selectors.BaseSelector) -> None:
        """Nobody has the other side open any more: nothing is shown, and what is typed is for nobody."""
        for descriptor in (self._master, _STDIN):
            if descriptor in selector.get_map():
                selector.unregister(descriptor)

    def _type(self, selector: selectors.BaseSelector) -> None:
        if not self._typed:
            return
        with suppress(BlockingIOError):
            self._typed = self._typed[os.write(self._master, self._typed) :]
        if self._typed:
            selector.modify(self._master, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
        else:
            selector.modify(self._master, selectors.EVENT_READ, self)
            selector.register(_STDIN, selectors.EVENT_READ, self)

    def _show_rest(self) -> None:
        left = _MOST_LEFT
        while left > 0 and (shown := self._show()):
            left -= len(shown)

    def _show(self) -> bytes | None:
        """Show a piece, and return it; None if there is none now, b"" if there will be none."""
        try:
            data = piece = _read(self._master) if self._master != _CLOSED else b""
        except BlockingIOError:
            return None
        while data:
            data = data[os.write(_STDOUT, data) :]
        return piece


def _read(terminal: int) -> bytes:
    """A piece of what there is; b"" if there will be none, as the other side is closed (pty(7))."""
    try:
        return os.read(terminal, _PIECE)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
