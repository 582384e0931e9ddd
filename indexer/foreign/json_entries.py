"""The entries of a JSON table of contents, one at a time: never more than one is in memory as an object."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from indexer.errors import FormatError, LimitExceeded, Unsupported

MAX_TOC: Final = 128 << 20
"""Bytes of the largest table, uncompressed; containers/storage takes 150 MiB."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")


def read_entries(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects in `entries` of a table, which must be of version 1.

    Raises:
        FormatError: (also later, from the iterator) not such a table; a key that stands twice in an object.
        LimitExceeded: it is longer than MAX_TOC.
        Unsupported: of another version.
    """
    if len(data) > MAX_TOC:
        raise LimitExceeded(f"a table of contents of {len(data)} bytes; at most {MAX_TOC} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"a table of contents that is not UTF-8: {error}") from None
    return _Reader(text).entries()


class _Reader:
    """Walks the outer object and its list of entries; what stands in them the json module reads."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._scan = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse).raw_decode

    def entries(self) -> Iterator[dict[str, Any]]:
        version = None
        seen: set[str] = set()
        for key in self._keys():
            if key in seen:
                raise FormatError(f"a table of contents with {key[:100]!r} twice")
            seen.add(key)
            if key == "entries":
                yield from self._list()
            elif key == "version":
                version = self._value()
            else:
                self._value()
        self._skip_space()
        if self._at != len(self._text):
            raise FormatError("a table of contents with something after it", self._at)
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
                raise FormatError("a table of contents with a key that is no string", self._at)
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
                raise FormatError("a table of contents with an entry that is no object", self._at)
            yield entry
            if not self._next_is(","):
                self._expect("]")
                return

    def _value(self) -> Any:
        self._skip_space()
        try:
            value, self._at = self._scan(self._text, self._at)
        except RecursionError:
            raise FormatError("a table of contents nested too deeply", self._at) from None
        except ValueError as error:
            raise FormatError(f"a table of contents that is not JSON: {str(error)[:100]}", self._at) from None
        return value

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match, "it matches anywhere"
        self._at = match.end()

    def _next_is(self, mark: str) -> bool:
        self._skip_space()
        found = self._text.startswith(mark, self._at)
        self._at += len(mark) if found else 0
        return found

    def _expect(self, mark: str) -> None:
        if not self._next_is(mark):
            raise FormatError(f"a table of contents without {mark!r} where it belongs", self._at)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
