"""The entries of a JSON table of contents, one at a time: never more than one is in memory as an object.

The text is looked at through a window, value by value. What does not fit into the window is not read.
"""

import json
import re
from codecs import utf_8_decode
from collections.abc import Iterator
from typing import Any, Final

from indexer.errors import FormatError, LimitExceeded, Unsupported

MAX_TOC: Final = 128 << 20
"""Bytes of the largest table, uncompressed; containers/storage takes 150 MiB."""

MAX_VALUE: Final = 1 << 20
"""Bytes that a value must be shorter than: so many may take 40 MB as objects."""

_MAX_KEYS: Final = 100  # of the outer object; writers know four
_AHEAD: Final = 8  # characters that no mark is longer than, nor what a number may go on with
_SPACE: Final = re.compile(r"[ \t\n\r]*")


def read_entries(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects in `entries` of a table, which must be of version 1.

    Raises:
        FormatError: (also later, from the iterator) not such a table; a key that stands twice in an object;
            a value of MAX_VALUE bytes.
        LimitExceeded: it is longer than MAX_TOC.
        Unsupported: of another version.
    """
    if len(data) > MAX_TOC:
        raise LimitExceeded(f"a table of contents of {len(data)} bytes; at most {MAX_TOC} are read")
    return _Reader(data).entries()


class _Reader:
    """Walks the outer object and its list of entries; what stands in them the json module reads."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._start = self._end = 0  # of the window in the data
        self._text = ""  # the window
        self._at = 0  # in the text
        self._scan = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse).raw_decode

    def entries(self) -> Iterator[dict[str, Any]]:
        version = None
        seen: set[str] = set()
        for key in self._keys():
            if key in seen:
                raise FormatError(f"a table of contents with {key[:100]!r} twice")
            if len(seen) == _MAX_KEYS:
                raise LimitExceeded(f"a table of contents with more than {_MAX_KEYS} keys")
            seen.add(key)
            if key == "entries":
                yield from self._list()
            elif key == "version":
                version = self._value()
            else:
                self._value()
        self._skip_space()
        if self._at < len(self._text):
            raise FormatError("a table of contents with something after it", self._start)
        if type(version) is not int or "entries" not in seen:
            raise FormatError("a table of contents without version or entries")
        if version != 1:
            raise Unsupported(f"a foreign table of contents of version {version}; only 1 is read")

    def _keys(self) -> Iterator[str]:
        """The keys of the outer object; whoever takes one reads its value before the next."""
        self._expect("{")
        while not self._next_is("}"):
            key = self._value()
            if not isinstance(key, str):
                raise FormatError("a table of contents with a key that is no string", self._start)
            self._expect(":")
            yield key
            if not self._next_is(","):
                self._expect("}")
                return

    def _list(self) -> Iterator[dict[str, Any]]:
        if self._next_is("null"):  # as Go writes an empty list
            return
        self._expect("[")
        if self._next_is("]"):
            return
        while True:
            entry = self._value()
            if not isinstance(entry, dict):
                raise FormatError("a table of contents with an entry that is no object", self._start)
            yield entry
            if not self._next_is(","):
                self._expect("]")
                return

    def _value(self) -> Any:
        self._skip_space()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError:
                raise FormatError("a table of contents nested too deeply", self._start) from None
            except ValueError as error:
                why = str(error)[:100]
            else:
                if self._shows(end):
                    self._at = end
                    return value
                why = "it goes on"
            if not self._at or self._end == len(self._data):
                what = f"a table of contents with a value that is not JSON or has {MAX_VALUE} bytes: {why}"
                raise FormatError(what, self._start)
            self._move()

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match, "it matches anywhere"
            self._at = match.end()
            if self._shows(self._at):
                return
            self._move()

    def _next_is(self, mark: str) -> bool:
        self._skip_space()
        found = self._text.startswith(mark, self._at)
        self._at += len(mark) if found else 0
        return found

    def _expect(self, mark: str) -> None:
        if not self._next_is(mark):
            raise FormatError(f"a table of contents without {mark!r} where it belongs", self._start)

    def _shows(self, at: int) -> bool:
        """Whether the window shows what the text goes on with there."""
        return len(self._text) - at >= _AHEAD or self._end == len(self._data)

    def _move(self) -> None:
        """Have the window begin at the next character."""
        self._start += len(self._text[: self._at].encode())
        end = min(self._start + MAX_VALUE, len(self._data))
        try:
            piece = self._data[self._start : end]
            self._text, size = utf_8_decode(piece, "strict", end == len(self._data))
        except UnicodeDecodeError as error:
            raise FormatError(f"a table of contents that is not UTF-8: {error}", self._start) from None
        self._end = self._start + size
        self._at = 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
